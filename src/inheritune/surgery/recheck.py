"""A child looked at again, later: is it still what its certificate says, and does that still hold of the reference?"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inheritune.errors import SurgeryError
from inheritune.runs import read_json
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.cut import Cut, plan_cut
from inheritune.surgery.folder import Weights, check_files, decode_floats, encode_floats, resolve
from inheritune.surgery.proof import NotProved, first_difference, states_of
from inheritune.surgery.tensor_check import in_threads
from inheritune.surgery.tensor_file import FLOATS, Piece, content_of, sha256

DTYPE_FIELDS = ("dtype", "torch_dtype")
"""Where a config states the dtype; a child that was given the one it had states it anew."""


def recheck(child: str | Path, reference: str | Path, revision: str | None = None) -> Certificate:
    """Hold a child against its certificate and its reference: nothing is written.

    Every tensor must have the hash that the certificate records, every copied or sliced one the bytes that the
    reference gives today (converted where the child's were), the config must be the one that the cut gives, and where
    the certificate is of kind ``prefix`` the hidden states must be equal once more.

    Args:
        child: folder made by ``inherit``.
        reference: folder or hub id.
        revision: of a hub id.

    Returns:
        The child's certificate, which holds.

    Raises:
        SurgeryError: something differs; says what, how many of them, and the first.
    """
    folder = Path(child)
    certificate = Certificate.load(folder)
    if certificate.kind == "grown":
        raise SurgeryError(
            f"{folder} was grown from a trained child, so its layers are not its reference's. Only what `inheritune "
            "inherit` has made, and nobody has trained since, can be checked."
        )
    weights, own = check_files(resolve(reference, revision)), check_files(folder)
    check_hashes(certificate, own)
    cut = plan_cut(weights, certificate.layers, _dtype(certificate, own, weights))
    _check_config(folder, cut)
    _check_origins(certificate, cut, weights)
    if certificate.kind == "prefix":
        _check_states(own, weights, cut)
    return certificate


def check_hashes(certificate: Certificate, own: Weights) -> None:
    """The child's tensors are those of its certificate, bit for bit."""
    recorded = certificate.tensors
    for stray, fault in (
        (set(recorded) - set(own.tensors), "its certificate names, and its files lack"),
        (set(own.tensors) - set(recorded), "its files hold, and its certificate does not name"),
    ):
        if stray:
            raise SurgeryError(
                f"{own.folder} is not the child that was inherited: {len(stray)} tensors {fault} (first: "
                f"{min(stray)!r}). Inherit it again, or check another folder."
            )
    names = sorted(recorded)
    digests = dict(zip(names, in_threads(lambda name: sha256(own.tensors[name]), names), strict=True))
    changed = [name for name in names if digests[name] != recorded[name].sha256]
    if changed:
        raise SurgeryError(
            f"{own.folder} is not the child that was inherited: {len(changed)} of {len(names)} tensors have other "
            f"bytes than its certificate records (first: {changed[0]!r}). It was trained or changed since; check the "
            "folder that inherit made."
        )


def _dtype(certificate: Certificate, own: Weights, weights: Weights) -> str | None:
    """The dtype that the child's tensors were converted to; None where each kept its own."""
    for name, origin in certificate.tensors.items():
        source, word = weights.tensors.get(origin.source), own.tensors[name].dtype
        if origin.op != "init" and source is not None and source.dtype != word and word in FLOATS:
            return str(FLOATS[word]).removeprefix("torch.")
    return None


def _check_config(folder: Path, cut: Cut) -> None:
    """The child's config is the one that the cut gives."""
    found: Mapping[str, Any] = _without_dtype(decode_floats(read_json(folder / "config.json")))
    expected: Mapping[str, Any] = _without_dtype(decode_floats(encode_floats(cut.config)))
    absent = object()
    differing = sorted(
        name for name in {*found, *expected} if repr(found.get(name, absent)) != repr(expected.get(name, absent))
    )
    if differing:
        name = differing[0]
        raise SurgeryError(
            f"{folder / 'config.json'} is not what the cut gives: {len(differing)} fields differ, the first is {name}: "
            f"{found.get(name)!r}, where {expected.get(name)!r} is expected. It was edited since, or the reference was."
        )


def _without_dtype(value: Any) -> Any:
    """A config without the fields that state its dtype, at any level."""
    if isinstance(value, Mapping):
        return {name: _without_dtype(each) for name, each in value.items() if name not in DTYPE_FIELDS}
    return value


def _check_origins(certificate: Certificate, cut: Cut, weights: Weights) -> None:
    """What was copied has the bytes that the reference gives today."""
    pieces = {piece.name: piece for piece in cut.pieces}
    named = {name: origin for name, origin in certificate.tensors.items() if origin.op != "init"}
    for names, fault in (
        (set(named) - set(pieces), "come from it by the certificate, and it does not give them"),
        (set(pieces) - set(certificate.tensors), "it gives, and the certificate does not name them"),
    ):
        if names:
            raise SurgeryError(
                f"{weights.folder} is not the reference of this child: {len(names)} tensors {fault} (first: "
                f"{min(names)!r}). Name the reference {certificate.reference!r} that the certificate names."
            )
    ordered = sorted(named)
    digests = dict(zip(ordered, in_threads(lambda name: _sha256_of(pieces[name]), ordered), strict=True))
    sources = {name: "0" if pieces[name].source is None else cut.origins[name] for name in named}
    other = [name for name in ordered if (sources[name], digests[name]) != (named[name].source, named[name].sha256)]
    if other:
        raise SurgeryError(
            f"{weights.folder} is not the reference of this child: {len(other)} of {len(ordered)} tensors have other "
            f"bytes there than in the child (first: {other[0]!r} from {sources[other[0]]!r}). Name the reference "
            f"{certificate.reference!r} that the certificate names, at its revision."
        )


def _sha256_of(piece: Piece) -> str:
    """Hex SHA-256 of the bytes that the reference gives for a tensor."""
    digest = hashlib.sha256()
    for content in content_of(piece):
        digest.update(content)
    return digest.hexdigest()


def _check_states(own: Weights, weights: Weights, cut: Cut) -> None:
    """Child and reference still compute the same."""
    num_layers = len(cut.layers)
    whole = num_layers == cut.anatomy.depth
    try:
        expected = states_of(weights, num_layers, to_the_end=whole, is_child=False)
        difference, where = first_difference(expected, states_of(own, num_layers, to_the_end=whole, is_child=True))
    except NotProved as error:
        raise SurgeryError(
            f"every tensor of {own.folder} is the reference's, but it cannot be run here: {error}. Check it on a "
            "machine with more memory."
        ) from error
    if difference != 0.0:
        raise SurgeryError(
            f"every tensor of {own.folder} is the reference's, and yet it differs by {difference:.3g} {where}, where 0 "
            "is required: the installed transformers is not the one that it was inherited with."
        )
