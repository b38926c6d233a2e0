"""Tables and figure of ``docs/performance.md``, from a result file alone."""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from commit import short

FIGURES = ("tokens_per_s", "flops_per_s", "share_of_own_time", "peak_memory_bytes")
BORROWS = "freed memory kept"
"""In the name of a peer that is given a setting of ours, which its users do not have."""

COLOURS = ("#0b5394", "#38761d", "#b45f06", "#741b47")


def medians(shape: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Contender to the medians over rounds.

    ``ratio`` is ours over it, round by round, then the median, where ours ran beside it; ``utilisation`` is a share of
    the fastest product of its precision that anyone timed in the round, ours before it trains included.
    """
    rounds = [each["contenders"] for each in shape["rounds"]]
    found: dict[str, dict[str, float]] = {}
    for name in rounds[0]:
        if any("failed" in each[name] for each in rounds):
            continue
        found[name] = {figure: statistics.median(each[name][figure] for each in rounds) for figure in FIGURES}
        found[name]["compile_s"] = rounds[0][name]["compile_s"]
        if len(rounds) > 1:
            found[name]["warm_s"] = statistics.median(each[name]["compile_s"] for each in rounds[1:])
        found[name]["utilisation"] = statistics.median(
            each["contenders"][name]["flops_per_s"] / fastest_product(each, each["contenders"][name]["precision"])
            for each in shape["rounds"]
        )
        if all("tokens_per_s" in each.get("ours", {}) for each in rounds):
            ratios = [each["ours"]["tokens_per_s"] / each[name]["tokens_per_s"] for each in rounds]
            found[name]["ratio"] = statistics.median(ratios)
    return found


def fastest_product(turn: dict[str, Any], precision: str) -> float:
    """FLOP/s of the fastest matrix product of a precision that was timed in one round."""
    probes = [each for each in turn["contenders"].values() if each.get("precision") == precision]
    seen = [each["choices"]["peak_gflops"] for each in probes if "choices" in each]
    return 1e9 * max([turn["matrices"][precision]["peak_gflops"], *seen])


def side_by_side(name: str, shape: dict[str, Any]) -> str:
    """One shape's table."""
    lines = [
        f"### `{name}`",
        "",
        "| | tokens/s | ours / it | GFLOP/s | own matrix time / step | of the peak | peak memory, GB "
        "| compiling, s | from cached code, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for contender, each in medians(shape).items():
        ratio = f"{each['ratio']:.2f}" if "ratio" in each else ""
        warm = f"{each['warm_s']:.1f}" if "warm_s" in each else ""
        lines.append(
            f"| {contender} | {each['tokens_per_s']:,.0f} | {ratio} | {each['flops_per_s'] / 1e9:,.0f} "
            f"| {each['share_of_own_time']:.0%} | {each['utilisation']:.0%} | {each['peak_memory_bytes'] / 1e9:.2f} "
            f"| {each['compile_s']:.1f} | {warm} |"
        )
    for contender, each in shape["rounds"][0]["contenders"].items():
        if "failed" in each:
            lines.append(f"| {contender} | failed: {each['failed']} | | | | | | | |")
    for contender, package in shape["not_installed"].items():
        lines.append(f"| {contender} | {package} was not installed | | | | | | | |")
    count = len(shape["rounds"])
    lines += ["", f"{count} round{'s' if count > 1 else ''} at commit {short(shape['commit'])}{spread(shape)}.", ""]
    return "\n".join(lines)


def spread(shape: dict[str, Any]) -> str:
    """Slowest and fastest round of ours, and ours over the best peer in each."""
    rounds = [each["contenders"] for each in shape["rounds"]]
    speeds = [each["ours"]["tokens_per_s"] for each in rounds if "tokens_per_s" in each.get("ours", {})]
    if len(speeds) < 2 or len(speeds) < len(rounds):
        return ""
    said = f"; ours from {min(speeds):,.0f} to {max(speeds):,.0f} tokens/s"
    for whom, count_borrowed in (("the best peer", False), ("the best one with our allocator setting", True)):
        ratios = []
        for ours, each in zip(speeds, rounds, strict=True):
            peers = [
                told["tokens_per_s"]
                for name, told in each.items()
                if not name.startswith("ours") and "tokens_per_s" in told and (count_borrowed or BORROWS not in name)
            ]
            ratios += [f"{ours / max(peers):.2f}"] if peers else []
        if ratios and (not count_borrowed or any(BORROWS in name for name in rounds[0])):
            said += f"; over {whom} of each round {', '.join(ratios)}"
    return said


def own_time(shape: dict[str, Any]) -> str:
    """What the step's matrix products take alone, by kind."""
    matrices = [each["matrices"] for each in shape["rounds"]]
    dtypes = list(matrices[0])
    lines = [f"| products | {' | '.join(f'{dtype}, ms' for dtype in dtypes)} |", f"|---|{'---|' * len(dtypes)}"]

    def row(name: str, of: Callable[[dict[str, Any]], float]) -> str:
        """One quantity in each precision."""
        values = [statistics.median(of(each[dtype]) for each in matrices) for dtype in dtypes]
        return f"| {name} | {' | '.join(f'{value:,.0f}' for value in values)} |"

    lines += [
        row(kind, lambda each, kind=kind: 1e3 * each["seconds"][kind]) for kind in matrices[0][dtypes[0]]["seconds"]
    ]
    lines += [row("all of them", lambda each: 1e3 * each["sum_s"])]
    return "\n".join([*lines, row("fastest product, GFLOP/s", lambda each: each["peak_gflops"]), ""])


def where(profiles: list[dict[str, Any]]) -> str:
    """What a step's time goes to, without the fast paths and with them."""
    plain, fast = profiles
    kinds = sorted(
        {*plain["milliseconds"], *fast["milliseconds"]}, key=lambda kind: -plain["milliseconds"].get(kind, 0)
    )
    lines = ["| kind of work | before, ms | after | before, share | after |", "|---|---|---|---|---|"]
    for kind in kinds:
        ms, shares = ([each[name].get(kind, 0.0) for each in profiles] for name in ("milliseconds", "share"))
        lines.append(f"| {kind} | {ms[0]:,.0f} | {ms[1]:,.0f} | {shares[0]:.0%} | {shares[1]:.0%} |")
    sums = [sum(each["milliseconds"].values()) for each in profiles]
    return "\n".join([*lines, f"| all | {sums[0]:,.0f} | {sums[1]:,.0f} | | |", ""])


def growth(sweep: dict[str, list[dict[str, float]]]) -> str:
    """One line for each size that was varied."""
    lines = ["| size | value | tokens/s | GFLOP/s | peak memory, GB |", "|---|---|---|---|---|"]
    for size, points in sweep.items():
        for point in points:
            lines.append(
                f"| {size} | {point['value']:,} | {point['tokens_per_s']:,.0f} | {point['flops_per_s'] / 1e9:,.0f} "
                f"| {point['peak_memory_bytes'] / 1e9:.2f} |"
            )
    return "\n".join([*lines, ""])


def figure(result: dict[str, Any], path: Path) -> None:
    """Speeds side by side, and how they grow."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "inheritune"
    from matplotlib import pyplot

    sweep = next(iter(result["sweeps"].values()), {})
    count = len(result["shapes"]) + len(sweep)
    columns = min(4, count)
    rows = -(-count // columns)
    canvas, axes = pyplot.subplots(rows, columns, figsize=(3.6 * columns, 2.9 * rows), squeeze=False)
    places = [place for row in axes for place in row]
    for place, (name, shape) in zip(places, result["shapes"].items(), strict=False):
        found = medians(shape)
        names = list(found)[::-1]
        bars = place.barh(names, [found[each]["tokens_per_s"] for each in names], color=COLOURS[0])
        for bar, each in zip(bars, names, strict=True):
            bar.set_color(COLOURS[0] if each.startswith("ours") else "#999999")
        place.set_title(f"{name}: tokens/s", fontsize=9)
        place.tick_params(labelsize=7)
    for place, (size, points) in zip(places[len(result["shapes"]) :], sweep.items(), strict=False):
        values = [point["value"] for point in points]
        place.plot(values, [point["tokens_per_s"] for point in points], "o-", color=COLOURS[0], label="tokens/s")
        place.set_xscale("log", base=2)
        place.set_xticks(values, [f"{value:,}" for value in values])
        place.minorticks_off()
        place.set_ylim(0, 1.1 * max(point["tokens_per_s"] for point in points))
        place.set_title(f"{size} (dashed: memory, GB)", fontsize=9)
        place.tick_params(labelsize=7)
        memory = place.twinx()
        memory.plot(values, [point["peak_memory_bytes"] / 1e9 for point in points], "s--", color=COLOURS[2])
        memory.set_ylim(0, 1.1e-9 * max(point["peak_memory_bytes"] for point in points))
        memory.tick_params(labelsize=7)
    for place in places[count:]:
        place.set_visible(False)
    canvas.tight_layout()
    canvas.savefig(path, metadata={"Date": None})
    pyplot.close(canvas)


def graphics(result: dict[str, Any]) -> list[str]:
    """Names of the GPUs that ours trained on."""
    turns = [each["contenders"] for shape in result["shapes"].values() for each in shape["rounds"]]
    names = {told["choices"].get("device_name") for each in turns for told in each.values() if "choices" in told}
    return sorted(names - {None})


def render(source: Path, docs: Path, place: str | None = None) -> None:
    """Put the tables of a result file between the marks of ``performance.md``, and draw ``throughput.svg``.

    What the file does not hold stays on the page as it is.

    Args:
        source: the result file.
        docs: folder of the page.
        place: the second machine's, say: what the file holds goes between marks that begin with this word, and no
            figure is drawn.

    Raises:
        ValueError: the page lacks a pair of marks.
    """
    result = json.loads(source.read_text())
    page = docs / "performance.md"
    text = page.read_text()
    command = "python benchmarks/throughput.py"
    origin = (
        f"Made by `{command} --render benchmarks/results/{source.name}`: {result['date']}, "
        f"{' and '.join([*graphics(result), result['machine']['processor']])}, {result['machine']['cores']} cores, "
        f"torch {result['versions']['torch']}, transformers {result['versions']['transformers']}.\n"
    )
    tables = [side_by_side(name, shape) for name, shape in result["shapes"].items()]
    commits = {part: f", commit {short(commit)}" for part, commit in result.get("commits_of", {}).items()}
    own = [f"`{name}`:\n\n{own_time(shape)}" for name, shape in result["shapes"].items()]
    sweeps = [
        f"`{name}`{commits.get('sweeps', '')}, one run a point:\n\n{growth(sweep)}"
        for name, sweep in result["sweeps"].items()
    ]
    profiles = [
        f"`{name}`{commits.get('profiles', '')}:\n\n{where(each)}" for name, each in result.get("profiles", {}).items()
    ]
    rounds = []
    for name, (first, fresh) in result.get("growth", {}).items():
        for told, process in ((first, "first process, nothing cached"), (fresh, "a new process, code cached")):
            rounds += [
                f"| {name} | {depth} | {process} | {max(0.0, more):.1f} |"
                for depth, more in told["first_step_more_s"].items()
            ]
    if rounds:
        rounds = ["| shape | depth | where | compiling, s |", "|---|---|---|---|", *rounds, ""]
    parts = {
        "side-by-side": [origin, *tables] if tables else [],
        "own-time": own,
        "growth": sweeps,
        "profile": profiles,
        "compile": rounds,
    }
    prefix = f"{place}-" if place else ""
    for mark, content in parts.items():
        if not content:
            continue
        begin, end = f"<!-- {prefix}{mark}:begin -->", f"<!-- {prefix}{mark}:end -->"
        if begin not in text or end not in text:
            raise ValueError(f"{page} lacks {begin} or {end}")
        head, _, rest = text.partition(begin)
        text = head + begin + "\n" + "\n".join(content) + end + rest.partition(end)[2]
    page.write_text(text)
    if tables and not place:
        figure(result, docs / "throughput.svg")
