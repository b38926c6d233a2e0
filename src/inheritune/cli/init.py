"""inheritune init."""

from pathlib import Path


def init(path: Path = Path("recipe.yaml"), /) -> None:
    """Write a commented recipe: inheritune init my.yaml

    Args:
        path: File to write; one that exists is left alone.
    """
    from inheritune.errors import RecipeError
    from inheritune.recipe import commented_recipe
    from inheritune.runs import write_text

    if path.exists():
        raise RecipeError(f"{path} exists already. Name another file, or delete it first.")
    write_text(path, commented_recipe())
    print(f"wrote {path}; fill in reference.model and data.sources, then: inheritune run {path}")
