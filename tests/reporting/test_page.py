import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from inheritune.errors import RecipeError
from inheritune.reporting.card import write_card
from inheritune.reporting.page import report

ATTACK = '</pre><script>alert(1)</script><img src="http://evil.example/x" onerror=alert(1)>'


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def _assert_offline(html):
    parser = _Tags()
    parser.feed(html)
    names = {tag for tag, _ in parser.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attrs in parser.tags:
        for key in ("src", "href", "xlink:href", "action", "data"):
            assert (attrs.get(key) or "#").startswith("#")
        assert not any(key.startswith("on") for key in attrs)
    assert "@import" not in html and "url(http" not in html


@pytest.mark.parametrize("state", ["better", "parity", "not shown", "stopped"])
def test_a_page_is_one_small_offline_file_with_the_verdict_mark(make_run, state):
    run = make_run(state)
    path = report(run)
    assert path == run / "report.html"
    html = path.read_text(encoding="utf-8")
    assert len(html.encode()) < 2_000_000
    _assert_offline(html)
    mark = {"stopped": "unfinished", "not shown": "not-shown"}.get(state, state)
    assert f'<section class="verdict {mark}"' in html


def test_the_page_shows_recipe_command_hashes_seeds_and_limits(make_run):
    html = report(make_run("parity")).read_text(encoding="utf-8")
    assert "data: {sources: [made-up.txt], token_budget: 5M, sequence_length: 256}" in html
    assert "inheritune run &#39;my recipe.yaml&#39;" in html
    for text in (
        "ef" * 32,
        "cd" * 32,
        "ab" * 32,
        "1 seed",
        "not downstream",
        "400M tokens",
        "0.762",
        "prefix",
        "float32",
    ):
        assert text.replace("not downstream", "no downstream task") in html


def test_unknown_training_tokens_of_the_reference_are_said_to_be_unknown(make_run):
    reference = {"path": "x", "depth": 8, "parameters": 2_100_000, "loss_nats": 1.86, "training_tokens": None}
    html = report(make_run("parity", reference=reference)).read_text(encoding="utf-8")
    assert "How many tokens the reference itself was trained on is unknown" in html


def test_a_page_rebuilt_from_the_same_folder_has_the_same_bytes(make_run):
    run = make_run("parity")
    assert report(run).read_bytes() == report(run).read_bytes()


def test_a_malicious_sample_name_and_warning_stay_text(make_run):
    sample = {"prompt": ATTACK, "reference": ATTACK, "child": ATTACK}
    run = make_run("not shown", advice=ATTACK, samples=[sample], validation={"warnings": [ATTACK], "documents": ATTACK})
    summary = (run / "summary.json").read_text(encoding="utf-8")
    (run / "summary.json").write_text(summary.replace('"layout-test"', '"<script>alert(1)</script>"'), encoding="utf-8")
    (run / "recipe.yaml").write_text(f"# {ATTACK}\n", encoding="utf-8")
    html = report(run).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    _assert_offline(html)


@pytest.mark.parametrize(
    "missing",
    [
        "recipe.yaml",
        "provenance.json",
        "metrics.jsonl",
        "events.jsonl",
        "model/certificate.json",
        "stages/round-1/probe.json",
    ],
)
def test_a_missing_file_leaves_a_page_that_says_so(make_run, missing):
    run = make_run("parity")
    whole = report(run).read_text(encoding="utf-8")
    (run / missing).unlink()
    html = report(run).read_text(encoding="utf-8")
    _assert_offline(html)
    assert html != whole
    if missing in ("recipe.yaml", "provenance.json", "metrics.jsonl"):
        assert f"{missing} is missing" in html


def test_a_summary_with_only_its_state_gives_a_page(make_run):
    run = make_run("parity")
    (run / "summary.json").write_text('{"format": 1, "state": "stopped"}', encoding="utf-8")
    html = report(run).read_text(encoding="utf-8")
    assert "no verdict yet" in html and "Last recorded: stage <code>scratch</code>" in html


def test_several_runs_make_a_comparison_with_equal_names_told_apart(make_run, tmp_path):
    runs = [make_run("parity", "a"), make_run("not shown", "b"), make_run("stopped", "c")]
    summary = (runs[1] / "summary.json").read_text(encoding="utf-8")
    (runs[1] / "summary.json").write_text(summary.replace('"name": "b"', '"name": "a"'), encoding="utf-8")
    (runs[1] / "recipe.yaml").write_text("train: {peak_lr: 0.0007}\n", encoding="utf-8")
    path = report(runs, tmp_path / "comparison.html")
    html = path.read_text(encoding="utf-8")
    _assert_offline(html)
    for text in ("3 runs compared", "a (a)", "a (b)", "train.peak_lr", "0.0007", "unfinished", "did not record"):
        assert text in html
    assert path.read_bytes() == report(runs, path).read_bytes()


def test_runs_on_other_validation_documents_are_cautioned_against(make_run, tmp_path):
    runs = [make_run("parity", "a"), make_run("parity", "b", validation={"sha256": "other"})]
    html = report(runs, tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "do not share their validation documents (2 different): their losses do not compare" in html
    assert "do not share their reference" not in html


def test_a_file_that_is_no_report_is_not_overwritten(make_run, tmp_path):
    mine = tmp_path / "mine.html"
    mine.write_text("<html>my own page</html>", encoding="utf-8")
    with pytest.raises(RecipeError, match="not overwritten"):
        report(make_run("parity"), mine)
    assert mine.read_text(encoding="utf-8") == "<html>my own page</html>"
    with pytest.raises(RecipeError, match="it is a folder"):
        report(tmp_path / "runs" / "layout-test", tmp_path)
    with pytest.raises(RecipeError, match="none was named"):
        report([])


def test_page_figures_and_card_import_neither_torch_nor_transformers(make_run):
    run = make_run("parity")
    code = (
        "import sys; from pathlib import Path; from inheritune.reporting.page import report; "
        "from inheritune.reporting.card import write_card; run = Path(sys.argv[1]); report(run); "
        "write_card(run / 'model', run); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_with_a_number_as_target_no_difference_stands_under_another_name(make_run):
    run = make_run("not shown")
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    summary["target"], summary["against"]["target"] = 1.0, {"mean": 0.89, "low": 0.88, "high": 0.9, "seeds": 1}
    for part in summary["rounds"]:
        part["minus_reference"], part["interval"] = part["interval"], {"mean": 0.95, "low": 0.94, "high": 0.96}
    path.write_text(json.dumps(summary))
    html = report(run).read_text()
    assert "+0.0900" in html and "+0.9500" not in html  # the first round's difference to the reference, not the target
    groups = [part.partition("</text>")[0] for part in html.split("<text")]
    assert sum("child minus target" in group for group in groups) == 2  # a title, and one row under it
    assert sum("child minus baseline" in group for group in groups) == 1


def test_the_page_gives_the_command_that_scores_again_as_the_run_did(make_run):
    html = report(make_run("parity")).read_text()
    assert "/model --data" in html and "--against layout-test/reference --sequence-length 256</pre>" in html


@pytest.mark.parametrize("made_here", [False, True])
def test_what_the_reference_may_have_read_is_said_where_it_is_not_known(make_run, made_here):
    run = make_run("parity")
    if made_here:
        recipe = (run / "recipe.yaml").read_text()
        trained = "reference: {train: {config: {model_type: llama}, passes: 2}}"
        (run / "recipe.yaml").write_text(trained + "\n" + recipe.partition("\n")[2])
    unknown = "Whether the reference met" in report(run).read_text()
    card = write_card(run / "model", run).read_text()
    assert unknown is (not made_here)
    assert ("Whether the reference met the validation documents" in card) is (not made_here)
    assert ("from a llama model of 8 layers that the same run trained on 400M tokens" in card) is made_here


@pytest.mark.parametrize(("energy_j", "shown"), [(2.0, "1.20"), (None, "unknown")])
def test_speed_memory_and_energy_of_each_stage_are_shown(energy_j, shown, make_run):
    folder = make_run("parity")
    path = folder / "metrics.jsonl"
    measures = {"flops_per_s": 1.5e11, "utilisation": 0.41, "memory_bytes": 2.5e9, "energy_j": energy_j}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | (measures if line["kind"] == "train" else {})) + "\n" for line in lines))
    page = report(folder).read_text()
    assert f"<td>150</td><td>41 %</td><td>2.50</td><td>{shown}</td>" in page


def test_metrics_from_before_these_measures_were_kept_still_give_a_page(make_run):
    page = report(make_run("parity")).read_text()
    assert "<td>not recorded</td><td>not recorded</td><td>not recorded</td><td>unknown</td>" in page


def some_analysis(name):
    cost = {"mean": 0.1, "low": 0.05, "high": 0.2}
    layer = {"max_rank": 1.2, "mean_rank": 1.1, "mean_mass": 3.0, "lazy": True, "strictly_lazy": False}
    attention = [{"layer": 0, **layer, "ranks": [1.2, 1.0], "masses": [3.0, 3.0]}]
    nothing = {"max_rank": None, "mean_rank": None, "mean_mass": None, "lazy": False, "strictly_lazy": False}
    attention.append({"layer": 1, **nothing, "ranks": [], "masses": []})
    suggestion = {"depth": 1, "layers": [0], "reason": "because it is so"}
    model = {"model": name, "depth": 2, "documents": 7, "tokens": 1234, "loss_nats": 2.5, "suggestion": suggestion}
    losses = {"prefix_nats": [5.0, 3.0, 2.5], "costs": [cost, cost], "influence": [0.9, 0.3], "angles": []}
    return {
        "data": "d",
        "sequences": 100,
        "sequence_tokens": 100,
        "energy": 0.9,
        "lazy_below": 1.5,
        "seed": 0,
        "against": None,
        "models": [{**model, **losses, "attention": attention}],
    }


def test_what_analyze_has_written_into_the_run_is_shown(make_run):
    run = make_run()
    assert "<h2>Layers</h2>" not in report(run).read_text()
    (run / "analysis").mkdir()
    (run / "analysis" / "analysis.json").write_text(json.dumps(some_analysis(ATTACK)))
    html = report(run).read_text()
    _assert_offline(html)
    assert "<h2>Layers</h2>" in html and "Lazy layers: 0; strictly lazy: none. Without softmax attention: 1." in html
    assert "1 layers (0): because it is so." in html and "+0.1000 [+0.0500, +0.2000]" in html


def test_an_analysis_of_attention_alone_is_shown(make_run):
    run = make_run()
    analysis = some_analysis("m")
    analysis["models"][0] |= dict.fromkeys(("loss_nats", "prefix_nats", "costs", "influence", "angles", "suggestion"))
    (run / "analysis").mkdir()
    (run / "analysis" / "analysis.json").write_text(json.dumps(analysis))
    html = report(run).read_text()
    assert "Lazy layers: 0" in html and "loss without a layer" not in html


def some_scores(name):
    def score(value, at_floor, metric="acc"):
        floor = 8.0 if metric == "bits_per_byte" else 0.5
        return {"metric": metric, "items": 100, "score": value, "stderr": 0.04, "floor": floor, "at_floor": at_floor}

    interval = {"mean": -0.1, "low": -0.2, "high": 0.05}
    alone = {"only_model": 3, "only_against": 13, "p_value": 0.021}
    difference = {"model": name, "against": "big", "interval": interval, "metric": "acc", **alone}
    return {
        "suite": "paper",
        "window": 2048,
        "limit": 7,
        "engine": "ours",
        "reference": "big",
        "names": {name: "short", "big": "big"},
        "scores": {
            name: [{"task": "piqa", **score(0.52, True)}, {"task": "wikitext", **score(1.25, False, "bits_per_byte")}],
            "big": [{"task": "piqa", **score(0.77, False)}, {"task": "wikitext", **score(1.0, False, "bits_per_byte")}],
        },
        "differences": [
            {"task": "piqa", **difference},
            {"task": "wikitext", **difference, "metric": "bits_per_byte", **dict.fromkeys(alone)},
        ],
        "averages": {
            name: [
                {"tasks": ["piqa", "wsc", "wnli"], "interval": interval, "at_floor": ["piqa"]},
                {"tasks": ["wsc", "wnli"], "interval": interval, "at_floor": []},
            ]
        },
        "rules": [{"model": name, "task": "piqa", "paper": True, "ours": "not shown"}],
        "published": {"OPT": {"piqa": 0.718}},
        "published_source": "a paper",
        "notes": [f"{name}: a note"],
    }


def test_downstream_scores_in_the_run_are_shown_with_their_floors(make_run):
    run = make_run()
    assert "<h2>Tasks</h2>" not in report(run).read_text()
    (run / "evaluation").mkdir()
    (run / "evaluation" / "downstream.json").write_text(json.dumps(some_scores(ATTACK)))
    html = report(run).read_text()
    _assert_offline(html)
    assert "<h2>Tasks</h2>" in html and "the first 7 items of each only" in html
    assert '<td class="soft">52.0 ± 4.0 *</td><td>77.0 ± 4.0</td><td>71.8</td>' in html
    assert "<td>piqa</td><td>acc</td><td>100</td><td>50.0</td>" in html
    assert "mean of 3 tasks -10.0" in html
    assert "mean of 2 tasks (wsc, wnli; there the reference is above the floor) -10.0" in html
    assert "<td>1.250 ± 0.040</td>" in html and "<td>8.000</td>" in html
    assert "not distinguishable from the floor on 1: piqa" in html
    assert "<td>-10.0 [-20.0, +5.0]</td><td>short minus big</td><td>3, 13</td><td>0.021</td>" in html
    assert "1 of 1 tasks. By ours" in html
    assert "percentage points" in html


def some_texts(name):
    ways = {
        way: {"texts": [f"{way} text"], "distinct_1": 0.5, "distinct_2": 0.75, "repetition": 0.125}
        for way in ("greedy", "sampled")
    }
    return {"prompts": ["The house"], "seed": 3, "temperature": 0.8, "models": {name: ways, "big": ways}}


def test_what_the_probe_has_written_into_the_run_is_shown(make_run):
    run = make_run()
    assert "<h2>How they write</h2>" not in report(run).read_text()
    (run / "evaluation").mkdir()
    (run / "evaluation" / "probe.json").write_text(json.dumps(some_texts(ATTACK)))
    html = report(run).read_text()
    _assert_offline(html)
    assert "The same 1 prompts for all, continued greedily and sampled (temperature 0.8, seed 3)" in html
    assert "<td>big</td><td>sampled</td><td>0.500</td><td>0.750</td><td>0.125</td>" in html
    assert '<h4>big, greedy</h4><pre class="text">greedy text</pre>' in html


BESIDE = {
    "analysis/analysis.json": {"models": [{"attention": [{}]}]},
    "evaluation/downstream.json": {"scores": {"m": [{}]}},
    "evaluation/probe.json": {"models": {"m": {"greedy": {}}}, "prompts": []},
}


@pytest.mark.parametrize("content", ["{", "[1]", None])
@pytest.mark.parametrize("name", BESIDE)
def test_a_damaged_file_of_another_verb_is_left_out_and_named(make_run, name, content):
    run = make_run()
    (run / name).parent.mkdir()
    (run / name).write_text(content or json.dumps(BESIDE[name]))
    assert f"{name} is damaged and left out; write it anew with: inheritune" in report(run).read_text()
