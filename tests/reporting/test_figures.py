import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from inheritune.reporting.figures import (
    Curve,
    Group,
    LayerLine,
    LayerPanel,
    Mark,
    Row,
    forest_figure,
    layers_figure,
    loss_figure,
    thin,
)


def _curve(label="round-1", points=3000):
    x = tuple(float(i) for i in range(points))
    return Curve(label, "child", x, tuple(2 + math.exp(-i / 500) for i in x))


def test_a_long_series_is_thinned_to_400_points_with_first_and_last_kept():
    x, y = thin(range(3001), range(3001))
    assert len(x) == len(y) == 400 and x[0] == 0 and x[-1] == 3000


def test_bucket_means_keep_the_mean_of_a_series():
    x, y = thin(range(4000), [i % 10 for i in range(4000)], average=True)
    assert len(x) == 400 and set(y) == {4.5}


def test_points_that_are_not_finite_are_dropped():
    assert thin([1, 2, 3], [1.0, math.nan, math.inf]) == ([1], [1.0])


@pytest.mark.parametrize("axis", ["tokens", "seconds"])
def test_the_same_values_give_the_same_small_well_formed_svg(axis):
    def draw():
        return loss_figure([_curve()], name="loss", axis=axis, reference_nats=2.0, marks=[Mark(1500.0, "grown")])

    svg = draw()
    assert svg == draw()
    assert len(svg) < 60_000
    ElementTree.fromstring(svg)
    assert "currentColor" in svg and "#010203" not in svg


def test_a_label_with_markup_dollars_or_unknown_letters_stays_text():
    svg = forest_figure([Group("g", (Row('<script>$x^2$ & 中"', 0.0, -0.1, 0.1),), 0.01)], name="f", description='a"<b')
    assert "<script" not in svg and "$x^2$" in svg
    ElementTree.fromstring(svg)


def test_ids_of_two_figures_on_one_page_do_not_meet():
    one, two = (loss_figure([_curve()], name=name, axis="tokens") for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (one, two)]
    assert not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]*)\)", one)) <= ids[0]
    assert set(re.findall(r'href="#([^"]*)"', one)) <= ids[0]


def test_empty_and_single_point_input_is_drawn():
    ElementTree.fromstring(loss_figure([Curve("a", "child", (), ())], name="a", axis="tokens"))
    ElementTree.fromstring(loss_figure([Curve("a", "child", (0.0,), (2.0,))], name="a", axis="seconds"))
    ElementTree.fromstring(forest_figure([], name="b"))


def test_layers_without_a_value_are_left_out_and_values_far_off_are_written_at_the_edge():
    def draw(*values):
        return layers_figure([LayerPanel("cost", "layer", (LayerLine("m", values),))], name="layers")

    svg = draw(5.31, 0.2, None, 0.1, 0.3)
    assert svg == draw(5.31, 0.2, None, 0.1, 0.3)
    ElementTree.fromstring(svg)
    assert "\u2191 5.31" in svg
    assert "\u2191" not in draw(0.4, 0.2, 0.1, 0.3)


def test_every_model_has_one_entry_in_the_legend_of_all_panels():
    lines = (LayerLine("reference", (1.0, 2.0)), LayerLine("child", (1.0,)))
    panels = [LayerPanel(title, "layer", lines) for title in ("rank", "mass", "loss")]
    svg = layers_figure(panels, name="layers")
    assert svg.count(">reference<") == svg.count(">child<") == 1
