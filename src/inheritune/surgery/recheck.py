"""A child looked at again, later: is it still what its certificate says, and is that still the reference?"""

from pathlib import Path

from inheritune.errors import SurgeryError
from inheritune.surgery.certificate import Certificate
from inheritune.surgery.folder import check_files, resolve
from inheritune.surgery.tensor_file import sha256


def recheck(child: Path, reference: str | Path, revision: str | None = None) -> Certificate:
    """Hold a child against its certificate and its reference.

    Args:
        child: folder made by ``inherit``.
        reference: folder or hub id.
        revision: of a hub id.

    Returns:
        The child's certificate, which holds.

    Raises:
        SurgeryError: the certificate, a tensor or the config is not what the cut gave; names the first.
    """
    certificate = Certificate.load(child)
    resolve(reference, revision)
    tensors = check_files(child).tensors
    for name, origin in certificate.tensors.items():
        if name not in tensors or sha256(tensors[name]) != origin.sha256:
            raise SurgeryError(f"tensor {name!r} of {child} is not the one that its certificate names.")
    return certificate
