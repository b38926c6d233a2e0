"""The house holds: imports point down, and help costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "inheritune"

FLOORS = [
    ["errors"],
    ["units", "selection_words"],
    ["recipe_parts", "recipe_yaml"],
    ["recipe", "runs"],
    ["machine"],
    ["surgery"],
    ["data"],
    ["evaluation"],
    ["analysis"],
    ["training"],
    ["planning"],
    ["growth"],
    ["reporting"],
    ["job"],
    ["cli"],
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
READS_RECIPES = {"training", "planning", "growth", "reporting", "job", "cli"}


def part_of(path):
    relative = path.relative_to(PACKAGE).with_suffix("")
    return relative.parts[0]


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative import"
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "inheritune":
            if node.module == "inheritune":
                yield from ((node.lineno, alias.name) for alias in node.names)
            else:
                yield node.lineno, node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("inheritune."):
                    yield node.lineno, alias.name.split(".")[1]


SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if part_of(path) not in ("__init__", "__main__"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path):
    here = part_of(path)
    assert here in FLOOR_OF, f"{here} has no floor in the house"
    for line, part in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.relative_to(PACKAGE)}:{line} imports {part}"
        assert part in FLOOR_OF, where
        assert part == here or FLOOR_OF[part] <= FLOOR_OF[here], where
        if part == "recipe":
            assert here in READS_RECIPES or here == "recipe", where


def test_the_test_would_see_an_import_that_points_up():
    source = "def f():\n    from inheritune.reporting.page import report\n"
    assert list(imports_of(ast.parse(source))) == [(2, "reporting")]
    assert FLOOR_OF["reporting"] > FLOOR_OF["growth"]


def test_every_module_and_folder_is_documented_and_none_is_empty():
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
    for folder in (path for path in PACKAGE.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        assert [each for each in folder.iterdir() if each.name not in ("__init__.py", "__pycache__")], folder


HEAVY = {"torch", "transformers", "datasets", "matplotlib", "numpy"}


VERBS = ["demo", "init", "run", "inherit", "doctor", "prepare", "train", "eval", "analyze", "report"]


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)], ids=str)
def test_help_does_not_import_torch(verb):
    words = ["-m", "inheritune", *verb, "--help"]
    ended = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert "inheritune" in imported
    assert not HEAVY & imported
    assert "Usage: inheritune" in ended.stdout


@pytest.mark.parametrize("module", ["reporting.page", "reporting.figures", "reporting.card", "recipe", "runs"])
def test_reading_a_run_folder_needs_no_torch(module):
    code = f"import sys, inheritune.{module}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_there_and_the_package_itself_imports_nothing_heavy():
    code = (
        "import sys, inheritune\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert all(hasattr(inheritune, name) for name in inheritune.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
