"""inheritune inherit."""

from typing import Literal


def inherit(
    reference: str,
    out: str,
    /,
    *,
    layers: str = "half",
    dtype: Literal["float32", "float16", "bfloat16"] | None = None,
    verify: bool = True,
    revision: str | None = None,
) -> None:
    """Cut a child with the reference's first layers: inheritune inherit REFERENCE CHILD --layers 12

    Args:
        reference: Folder or hub id.
        out: Folder to make.
        layers: A number of layers, half, or indices such as 0,1,2,5.
        dtype: Convert the weights; by default they stay as they are, byte for byte.
        verify: Prove that child and reference compute the same, and write that into certificate.json.
        revision: Of a hub id.
    """
    from inheritune.errors import RecipeError

    indices = layers.split(",")
    if len(indices) > 1 and not all(index.strip().isdecimal() for index in indices):
        raise RecipeError(f"--layers {layers!r} is not understood. Write a number, half, or indices such as 0,1,2,5.")
    selection = [int(index) for index in indices] if len(indices) > 1 else layers

    from inheritune.surgery.transplant import inherit as cut

    certificate = cut(reference, out, layers=selection, dtype=dtype, verify=verify, revision=revision)
    kept = ", ".join(map(str, certificate.layers))
    print(f"{out}: layers {kept} of {reference}")
    print(f"certificate: {certificate.kind}, largest difference {certificate.max_abs_difference}")
    for note in certificate.notes:
        print(f"note: {note}")
