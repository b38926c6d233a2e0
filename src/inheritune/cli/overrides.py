"""Recipe keys on the command line: ``--train.peak-lr 2e-4`` or ``--train.peak-lr=2e-4``."""

from typing import Annotated

from cyclopts import Parameter

from inheritune.errors import RecipeError

Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]
"""Any number of words; ``parse_overrides`` makes pairs of them."""


def parse_overrides(words: tuple[str, ...]) -> dict[str, str]:
    """Pairs of key and value from ``--key value`` and ``--key=value``.

    Raises:
        RecipeError: a word that is no key, or a key without a value.
    """
    pairs: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise RecipeError(f"{word!r} is not understood. Recipe keys are written --train.peak-lr 2e-4.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise RecipeError(f"--{key} needs a value. Recipe keys are written --train.peak-lr 2e-4.")
            value = rest.pop(0)
        if key in pairs:
            raise RecipeError(f"--{key} is given twice ({pairs[key]} and {value}). Give it once.")
        pairs[key] = value
    return pairs
