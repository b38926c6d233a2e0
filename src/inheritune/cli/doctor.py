"""inheritune doctor."""

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inheritune.surgery.findings import Diagnosis

COLOURS = {"fault": "bold red", "warning": "yellow", "note": "dim"}


def doctor(folder: str, /, *, repair: Path | None = None, values: bool = False, json: bool = False) -> int:
    """Say whether a model folder is what its config says: inheritune doctor FOLDER --repair OUT

    Exit code 0 where it is, or where --repair has made a copy that is; 3 where there is a fault.

    Args:
        folder: Folder or hub id.
        repair: Write a corrected copy to this folder, where it is certain what is right.
        values: Read every weight too, and look for NaN and infinity.
        json: Print JSON.
    """
    from inheritune.errors import SurgeryError
    from inheritune.surgery.doctor import MENDABLE, diagnose

    diagnosis = diagnose(folder, values=values)
    if not json:
        _show(diagnosis)
    if repair is not None and diagnosis.is_sound and not any(each.kind in MENDABLE for each in diagnosis.findings):
        print("there is nothing to mend, so no copy was made", file=sys.stderr)
    elif repair is not None:
        from inheritune.surgery.repair import repair as mend

        mended = mend(folder, repair, values=values)
        if not json:
            print()
            _show(mended)
        diagnosis = mended
    if json:
        print(json_module.dumps(diagnosis.to_json(), indent=2, ensure_ascii=False))
    return 0 if diagnosis.is_sound else SurgeryError.exit_code


def _show(diagnosis: "Diagnosis") -> None:
    """Print what was found: a table on a terminal, a line for each finding elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=not on_terminal)
    console.print(Text(_heading(diagnosis)))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 1, 0))
    for finding in diagnosis.findings:
        parts = [_plain(part) for part in (finding.where, finding.what, finding.next) if part]
        if on_terminal:
            styles = ("bold", "", "cyan")
            lines = [Text(part, style=style) for part, style in zip(parts, styles, strict=False)]
            table.add_row(Text(finding.severity, style=COLOURS[finding.severity]), Text("\n").join(lines))
        else:
            console.print(Text(" | ".join([finding.severity, *parts])))
    if table.row_count:
        console.print()
        console.print(table)
    console.print(Text(_verdict(diagnosis), style="bold red" if diagnosis.faults else "bold green"))


def _heading(diagnosis: "Diagnosis") -> str:
    """The folder in a line."""
    from inheritune.units import format_bytes

    depths = []
    if diagnosis.stated_depth is not None:
        depths.append(f"{diagnosis.stated_depth} layers stated")
    if diagnosis.held_depth is not None:
        depths.append(f"{diagnosis.held_depth} in the files")
    parts = [diagnosis.model_type or "no known model type", *depths]
    parts.append(f"{diagnosis.num_tensors} tensors, {format_bytes(diagnosis.num_bytes)}")
    return f"{diagnosis.folder}: {' | '.join(parts)}"


def _plain(text: str) -> str:
    """Names of tensors and files come from strangers: nothing in them may steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _verdict(diagnosis: "Diagnosis") -> str:
    """Sound or not, in a line."""
    faults = len(diagnosis.faults)
    if not faults:
        return "sound: the folder is what its config says"
    mends = all(finding.is_mendable for finding in diagnosis.faults)
    how = "; all of it can be mended with --repair" if mends else ""
    return f"not sound: {faults} fault{'s' if faults > 1 else ''}{how}"
