"""inheritune run."""

from pathlib import Path

from inheritune.cli.overrides import Overrides, parse_overrides


def run(recipe: Path, /, *overrides: Overrides, fresh: bool = False) -> int:
    """Make the child that a recipe asks for: inheritune run my.yaml --train.peak-lr 2e-4

    Any key of the recipe can be given as --part.key VALUE. Run it again to go on after a stop.
    Exit code 0: parity shown; 5: finished, parity not shown; 4: stopped and saved.

    Args:
        recipe: YAML file; `inheritune init` writes one.
        fresh: Start over.
    """
    from inheritune.recipe import Recipe

    loaded = Recipe.load(recipe, parse_overrides(overrides))

    from inheritune.cli.ending import show_ending
    from inheritune.job import grow

    result = grow(loaded, fresh=fresh)
    show_ending(result)
    return result.exit_code
