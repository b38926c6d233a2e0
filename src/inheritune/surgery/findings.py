"""What a diagnosis says: findings, each with its severity, its place, and what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from inheritune.errors import SurgeryError

FORMAT = 1

Severity = Literal["fault", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
"""From the worst on."""

SHOWN = 3
"""Names that a finding shows of many."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a folder, or that its user should know.

    Attributes:
        severity: ``fault``: the folder is not what its config says, or cannot be read; ``warning``: it is, and
            somebody will still be surprised; ``note``: good to know.
        kind: what it is about, in one or two words that stay the same: ``depth``, ``per-layer list``, ``missing``, ...
        where: file, and field or tensor in it.
        what: what is so, with the values.
        next: what to do or type; empty where nothing is to be done.
        is_mendable: whether ``repair`` mends it, and is certain how.
    """

    severity: Severity
    kind: str
    where: str
    what: str
    next: str
    is_mendable: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "where": self.where,
            "what": self.what,
            "next": self.next,
            "is_mendable": self.is_mendable,
        }


@dataclass(frozen=True)
class Diagnosis:
    """Whether a model folder is what its config says.

    Attributes:
        folder: as it was given.
        model_type: as in the config; None where that cannot be read.
        stated_depth: layers that the config states.
        held_depth: whole layers that the files hold, from layer 0 on.
        num_tensors: tensors of the files.
        num_bytes: of these tensors.
        findings: faults first.
    """

    folder: str
    model_type: str | None
    stated_depth: int | None
    held_depth: int | None
    num_tensors: int
    num_bytes: int
    findings: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """The findings that make the folder another thing than its config says."""
        return tuple(finding for finding in self.findings if finding.severity == "fault")

    @property
    def is_sound(self) -> bool:
        """Whether the folder is what its config says: there is no fault."""
        return not self.faults

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "format": FORMAT,
            "folder": self.folder,
            "is_sound": self.is_sound,
            "model_type": self.model_type,
            "stated_depth": self.stated_depth,
            "held_depth": self.held_depth,
            "num_tensors": self.num_tensors,
            "num_bytes": self.num_bytes,
            "findings": [finding.to_json() for finding in self.findings],
        }


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Faults, then warnings, then notes; within each as they were found."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def of_error(severity: Severity, kind: str, where: str, error: SurgeryError) -> Finding:
    """An error as a finding; its last sentence is what to do next."""
    what, _, advice = " ".join(str(error).split()).rpartition(". ")
    return Finding(severity, kind, where, what or advice, advice if what else "")


def in_words(names: Sequence[str]) -> str:
    """A few of many names, and how many there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
