"""inheritune inherit."""

import json as json_module
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from inheritune.surgery.certificate import Certificate

WARNING = "moved layers"
"""How a note begins that the terminal shows as a warning: what is inherited does not compute what it did."""


def inherit(
    reference: str,
    child: str | None = None,
    /,
    *others: Annotated[str, Parameter(show=False)],
    layers: Annotated[str, Parameter(allow_leading_hyphen=True)] = "half",
    parts: Literal["all", "attention", "attention+norms", "mlp", "mlp+norms", "attention+mlp", "published"] = "all",
    seed: int = 0,
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    max_shard_size: str = "5GB",
    revision: str | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    no_verify: Annotated[bool, Parameter(name="--no-verify", negative="")] = False,
    verify: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Cut a child with some layers of the reference: inheritune inherit REFERENCE CHILD --layers 12

    Layers count from 0. --layers 12 keeps the first 12, half the first half.
    Others: last-12, every-2, spread-12 (evenly, with the first and the last),
    0-5,8,-1 (both ends included; below 0 from the end), and in quotes
    'drop 20-27' (all but these), 'best-12 scores.csv' (the highest scores; its
    columns are layer and score).

    Args:
        reference: Folder or hub id.
        child: Folder to make; not needed for a dry run.
        layers: Which layers the child keeps.
        parts: What is inherited of them; the rest begins at the model's own initialiser. published: the layers and the
            head alone, as the published scripts did.
        seed: Of the initialiser.
        dtype: Convert the weights; by default they stay as they are, byte for byte.
        max_shard_size: Largest weight file, such as 2GB.
        revision: Of a hub id.
        dry_run: Say what would be kept, dropped, read, written and needed; write nothing.
        no_verify: Leave out the proof that child and reference compute the same.
        verify: Check an existing child again: inheritune inherit --verify CHILD REFERENCE
        json: Print JSON.
    """
    from inheritune.cli.quantities import size
    from inheritune.errors import RecipeError
    from inheritune.selection_words import parse_selection_words

    try:
        parse_selection_words(layers)
    except ValueError as error:
        raise RecipeError(f"--layers {layers!r}: {error}.") from error
    max_shard_bytes = size(max_shard_size, "--max-shard-size")
    if others:
        raise RecipeError(
            f"two folders are named here, and then {' '.join(others)!r}. Write: inheritune inherit REFERENCE CHILD; "
            "a selection with a space in it needs quotes: --layers 'drop 20-27'."
        )
    if verify:
        given = {
            "--layers": layers != "half",
            "--parts": parts != "all",
            "--seed": seed != 0,
            "--dtype": dtype is not None,
            "--max-shard-size": max_shard_size != "5GB",
            "--dry-run": dry_run,
            "--no-verify": no_verify,
        }
        _recheck(reference, child, revision, [option for option, is_given in given.items() if is_given], as_json=json)
        return
    if child is None and not dry_run:
        raise RecipeError(
            "no folder for the child. Write: inheritune inherit REFERENCE CHILD; or add --dry-run to see what it would "
            "be."
        )
    if dry_run:
        from inheritune.surgery.preview import preview

        foreseen = preview(
            reference,
            child,
            layers=layers,
            parts=parts,
            seed=seed,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            verify=not no_verify,
            revision=revision,
        )
        print(json_module.dumps(foreseen.to_json(), indent=2) if json else foreseen.text())
        _say(foreseen.notes, as_json=json)
        if not json:
            print("dry run: nothing was written")
        return
    assert child is not None

    from inheritune.surgery.transplant import inherit as cut

    certificate = cut(
        reference,
        child,
        layers=layers,
        parts=parts,
        seed=seed,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
        verify=not no_verify,
        revision=revision,
    )
    _show(certificate, child, reference, as_json=json)


def _recheck(child: str, reference: str | None, revision: str | None, given: list[str], *, as_json: bool) -> None:
    """Check an existing child again.

    Raises:
        RecipeError: there is no child, or options are given that make one.
    """
    from inheritune.errors import RecipeError
    from inheritune.surgery.certificate import FILE

    what = (
        "--verify checks a child that exists: inheritune inherit --verify CHILD REFERENCE. A new child is always "
        "proved unless --no-verify is given, so leave --verify out to make one"
    )
    if given:
        raise RecipeError(f"{what}; {', '.join(given)} cannot go with it.")
    if reference is None:
        raise RecipeError(f"{what}. No reference is named.")
    if Path(child).is_dir() and not (Path(child) / FILE).is_file():
        swapped = (Path(reference) / FILE).is_file()
        advice = f" The child comes first: inheritune inherit --verify {reference} {child}." if swapped else ""
        raise RecipeError(f"{what}. {child} is no child: it has no {FILE}.{advice}")

    from inheritune.surgery.recheck import recheck

    certificate = recheck(Path(child), reference, revision)
    _show(certificate, child, reference, as_json=as_json)
    if not as_json:
        print("checked again: everything is as the certificate says")


def _show(certificate: "Certificate", child: str, reference: str, *, as_json: bool) -> None:
    """Print what a child is: its layers, its certificate, its size, and what a reader should know."""
    from inheritune.surgery.selection import show_selection
    from inheritune.units import format_bytes

    if as_json:
        print(json_module.dumps(certificate.to_json(), indent=2))
    else:
        num_bytes = sum(path.stat().st_size for path in Path(child).glob("*.safetensors"))
        ops = [origin.op for origin in certificate.tensors.values()]
        words = {"copy": "copied", "slice": "copied in part", "constant": "constant", "init": "from the initialiser"}
        tensors = ", ".join(f"{ops.count(op)} {words[op]}" for op in words if op in ops)
        number = len(certificate.layers)
        print(f"{child}: {number} layer{'s' if number > 1 else ''} of {reference}")
        print(show_selection(certificate.layers))
        if certificate.max_abs_difference is None:
            print("certificate: bytes, a hash for each tensor")
        else:
            print(f"certificate: {certificate.kind}, largest difference {certificate.max_abs_difference}")
        print(f"weights: {format_bytes(num_bytes)}; tensors: {tensors}")
    _say(certificate.notes, as_json=as_json)


def _say(notes: Iterable[str], *, as_json: bool) -> None:
    """Print notes; those that are warnings go to stderr, and in JSON the others are there already."""
    for note in notes:
        if note.startswith(WARNING):
            print(f"warning: {note}", file=sys.stderr)
        elif not as_json:
            print(f"note: {note}")
