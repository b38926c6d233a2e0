"""The certificate of an inheritance: where every tensor of the child comes from, and what was proved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from inheritune.errors import SurgeryError
from inheritune.runs import read_json, write_json

FORMAT = 1
FILE = "certificate.json"

Kind = Literal["prefix", "bytes", "grown"]
Operation = Literal["copy", "slice", "constant", "init"]


@dataclass(frozen=True)
class TensorOrigin:
    """Where one tensor of the child comes from.

    Attributes:
        source: the reference's tensor, by its name in the reference's files (JSON: ``from``).
        op: how it came here.
        sha256: hex, of the tensor's bytes in the child's file.
    """

    source: str
    op: Operation
    sha256: str


@dataclass(frozen=True)
class Certificate:
    """What an inheritance did and proved.

    Attributes:
        kind: ``prefix``: the hidden state after each of the child's layers was compared with the reference's;
            ``bytes``: every tensor's bytes were read back and hashed (compared, too, unless the notes say
            that it is not verified); ``grown``: a trained child with further layers
            on top, whose hidden state below them was compared with that of the child it was.
        reference: path or hub id, as it was given.
        layers: kept layers of the reference, counted from 0.
        max_abs_difference: of the hidden states (and logits, when all layers are kept, or the added ones are no-ops),
            float32; None for ``bytes``.
        tensors: the child's tensor name -> its origin.
        notes: what a reader should know, in words.
    """

    kind: Kind
    reference: str
    layers: tuple[int, ...]
    max_abs_difference: float | None
    tensors: Mapping[str, TensorOrigin]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, in the format of ``certificate.json``."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            "reference": self.reference,
            "layers": list(self.layers),
            "max_abs_difference": self.max_abs_difference,
            "tensors": {
                name: {"from": origin.source, "op": origin.op, "sha256": origin.sha256}
                for name, origin in self.tensors.items()
            },
            "notes": list(self.notes),
        }

    def save(self, folder: Path) -> None:
        """Write ``certificate.json`` into the child's folder."""
        write_json(folder / FILE, self.to_json())

    @classmethod
    def load(cls, folder: Path) -> "Certificate":
        """Read a child's ``certificate.json``.

        Raises:
            SurgeryError: there is none, or it is not of this format.
        """
        path = folder / FILE
        if not path.is_file():
            raise SurgeryError(
                f"{folder} has no {FILE}, so it is no child made by `inheritune inherit`. Make one first."
            )
        try:
            value = read_json(path)
            if value["format"] != FORMAT:
                raise ValueError(f"format {value['format']!r}, this version reads {FORMAT}")
            _check_words(value)
            return cls(
                kind=value["kind"],
                reference=value["reference"],
                layers=tuple(value["layers"]),
                max_abs_difference=value["max_abs_difference"],
                tensors={
                    name: TensorOrigin(origin["from"], origin["op"], origin["sha256"])
                    for name, origin in value["tensors"].items()
                },
                notes=tuple(value["notes"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SurgeryError(f"{path} is not a certificate ({error!r}). Inherit the child again.") from error


def _check_words(value: Mapping[str, Any]) -> None:
    """Check that a certificate says nothing that no inheritance says.

    Raises:
        ValueError: a kind, an operation or a difference that there is not.
    """
    kind, difference = value["kind"], value["max_abs_difference"]
    if kind not in get_args(Kind) or (difference is not None if kind == "bytes" else difference != 0.0):
        raise ValueError(f"kind {kind!r} with a largest difference of {difference!r}")
    for name, origin in value["tensors"].items():
        words = origin["from"], origin["sha256"]
        if origin["op"] not in get_args(Operation) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"tensor {name!r} with the origin {origin!r}")
