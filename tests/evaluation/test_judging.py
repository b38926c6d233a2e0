"""From items to what can be said: floors, marks, paired differences, both rules."""

import math

import pytest

from inheritune.evaluation.harness import Item, Run
from inheritune.evaluation.judging import judge
from inheritune.evaluation.scorer import Answer, Tally
from inheritune.evaluation.scores import short_names
from inheritune.evaluation.statistics import mcnemar

FACTS = {
    "suite": "test", "window": 128, "engine": "ours", "limit": None, "notes": (), "agreement": {}, "published": {},
    "published_source": None,
}  # fmt: skip


def right_on(*hits, choices=("a", "b", "c", "d")):
    """Items of which some are answered right; four choices that differ from item to item."""
    return tuple(
        Item("t", f"d{number}", "p", 0, tuple(f"{each}{number}" for each in choices),
             (Answer(-1.0, False),) * len(choices), {"acc": float(hit)})
        for number, hit in enumerate(hits)
    )  # fmt: skip


def judged(models, others, tasks, **facts):
    """``models``: name -> task -> items."""
    runs = {name: Run(items, Tally(), {}) for name, items in tasks.items()}
    metrics = dict.fromkeys(next(iter(tasks.values())), "acc")
    return judge(runs, metrics, models, others, **{**FACTS, **facts})


def test_a_score_at_chance_is_marked_and_one_above_is_not():
    found = judged(["a", "b"], [], {"a": {"t": right_on(*[1, 0, 0, 0] * 25)}, "b": {"t": right_on(*[1, 1, 1, 0] * 25)}})
    (low,), (high,) = found.scores["a"], found.scores["b"]
    assert (low.score, low.floor, low.at_floor) == (0.25, 0.25, True)
    assert (high.score, high.floor, high.at_floor) == (0.75, 0.25, False)
    assert high.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 99))
    assert "25.0 ±4.4*" in found.table()
    assert "75.0 ±4.4\n" in found.table()


def test_a_score_below_the_floor_is_marked_too():
    found = judged(["a"], [], {"a": {"t": right_on(*[0] * 60)}})
    assert found.scores["a"][0].at_floor


def test_differences_are_paired():
    """The same number right, on other items: the interval is wide; on the same items: it is a point."""
    tasks = {"a": {"t": right_on(*[1, 0] * 50)}, "b": {"t": right_on(*[0, 1] * 50)}, "c": {"t": right_on(*[1, 0] * 50)}}
    other, same = judged(["a"], ["b", "c"], tasks).differences
    assert (other.only_model, other.only_against, other.p_value) == (50, 50, 1.0)
    assert other.interval.low < -0.1 < 0.1 < other.interval.high
    assert (same.only_model, same.only_against, same.p_value) == (0, 0, 1.0)
    assert (same.interval.low, same.interval.mean, same.interval.high) == (0, 0, 0)


def test_mcnemar_is_the_binomial_test_of_the_discordant_items():
    assert mcnemar(0, 5) == pytest.approx(2 * 0.5**5)
    assert mcnemar(0, 0) == 1
    assert mcnemar(3, 9) == mcnemar(9, 3) == pytest.approx(0.146, abs=1e-3)


def test_a_mean_names_the_tasks_that_say_nothing():
    good, guess = right_on(*[1, 1, 1, 0] * 25), right_on(*[1, 0, 0, 0] * 25)
    tasks = {
        "child": {"firm": good, "firm too": good, "bound": guess},
        "big": {"firm": good, "firm too": good, "bound": guess},
    }
    found = judged(["child"], ["big"], tasks)
    everything, firm = found.averages["child"]
    assert everything.interval.mean == pytest.approx((0.75 + 0.75 + 0.25) / 3)
    assert everything.at_floor == ("bound",)
    assert firm.tasks == ("firm", "firm too")
    assert "not distinguishable from the floor on 1: bound" in found.table()
    spread = 1.959964 * math.sqrt(3 * found.scores["child"][0].stderr ** 2) / 3
    assert everything.interval.high - everything.interval.mean == pytest.approx(spread)


def test_the_paper_s_rule_passes_a_child_at_chance_and_ours_does_not():
    reference, child = right_on(*([1] * 30 + [0] * 70)), right_on(*([1] * 14 + [0] * 59 + [1] * 14 + [0] * 13))
    found = judged(["child"], ["big"], {"child": {"t": child}, "big": {"t": reference}})
    (rule,) = found.rules
    assert rule.paper  # 28 % is more than 90 % of 30 %
    assert rule.ours == "says nothing"  # 30 of 100 cannot be told from 25 %


def test_ours_is_shown_by_a_child_that_keeps_the_gain():
    reference = right_on(*([1] * 80 + [0] * 20))
    kept, lost = right_on(*([1] * 79 + [0] * 21)), right_on(*([1] * 70 + [0] * 30))
    rules = judged(["kept", "lost"], ["big"], {"kept": {"t": kept}, "lost": {"t": lost}, "big": {"t": reference}}).rules
    assert [(rule.model, rule.ours) for rule in rules] == [("kept", "shown"), ("lost", "not shown")]


def test_two_beaten_baselines_pass_the_paper_s_rule():
    big, child = right_on(*([1] * 90 + [0] * 10)), right_on(*([1] * 60 + [0] * 40))
    tasks = {"child": {"t": child}, "big": {"t": big}}
    for scores, expected in (([0.5, 0.55], True), ([0.5, 0.7], False)):
        printed = {f"other {number}": {"t": score} for number, score in enumerate(scores)}
        (rule,) = judged(["child"], ["big"], tasks, published=printed).rules
        assert rule.paper is expected


def test_bits_per_byte_are_better_when_fewer():
    def pages(bits):
        nats = -bits * math.log(2) * 100
        return tuple(
            Item("w", f"d{number}", "p", "text", ("text",), (Answer(nats, False),), {"bits_per_byte": (nats, 100.0)})
            for number in range(40)
        )

    runs = {name: Run({"wikitext": pages(bits)}, Tally(), {}) for name, bits in (("a", 2.0), ("b", 9.0))}
    found = judge(runs, {"wikitext": "bits_per_byte"}, ["a"], ["b"], **FACTS)
    (a,), (b,) = found.scores["a"], found.scores["b"]
    assert (a.score, a.floor, a.at_floor) == (pytest.approx(2), 8, False)
    assert b.at_floor
    (difference,) = found.differences
    assert difference.interval.mean == pytest.approx(-7)
    assert difference.p_value is None
    assert found.rules == ()


def test_csv_and_json_hold_every_score():
    found = judged(["child"], ["big"], {"child": {"t": right_on(1, 0, 1)}, "big": {"t": right_on(1, 1, 1)}},
                   published={"OPT": {"t": 0.5}})  # fmt: skip
    lines = found.to_csv().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["child", "big", "OPT (published)"]
    plain = found.to_json()
    assert plain["scores"]["child"][0]["at_floor"] == found.scores["child"][0].at_floor
    assert plain["published"] == {"OPT": {"t": 0.5}}


def test_models_are_named_by_what_tells_them_apart():
    assert short_names(["/x/a/model", "/x/b/model", "c"]) == {
        "/x/a/model": "a/model",
        "/x/b/model": "b/model",
        "c": "c",
    }
    assert short_names(["/x/a"]) == {"/x/a": "a"}
