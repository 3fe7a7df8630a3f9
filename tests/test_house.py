"""The floor plan: the README's tree is the folders; a stage imports only what stands before it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "src" / "deepen"
TREE = (ROOT / "README.md").read_text(encoding="utf-8").split("\nsrc/deepen/\n")[1]
TREE = TREE.split("benchmarks/")[0]
MODULES = sorted(HOUSE.rglob("*.py"))
MOST_ENTRIES, MOST_MODULES, MOST_LINES, MOST_LINES_OF_A_FUNCTION = 16, 12, 400, 60


def folders_of_the_tree():
    """Return folder → what the README says is in it, in the README's order."""
    listed, parent = {}, ""
    for indent, name, modules in re.findall(
        r"^( {2,4})(\w+)/ .+\n((?: {9,}.+\n)+)", TREE, re.MULTILINE
    ):
        parent = name if len(indent) == 2 else parent
        folder = name if len(indent) == 2 else f"{parent}/{name}"
        listed[folder] = " ".join(modules.split()).split(" · ")
    return listed


LISTED = folders_of_the_tree()
ROOMS = [name for name in LISTED if "/" not in name]


def is_hidden(path):
    return path.name.startswith("__") or path.name == "py.typed"


def test_every_line_of_the_tree_names_a_folder_or_what_is_in_it():
    assert len(LISTED) == len(re.findall(r"^ {2,4}\S", TREE, re.MULTILINE))


def test_the_rooms_of_the_tree_are_the_folders():
    assert sorted(ROOMS) == sorted(path.name for path in HOUSE.iterdir() if not is_hidden(path))


@pytest.mark.parametrize("folder", LISTED)
def test_what_the_tree_lists_is_what_is_there(folder):
    there = [
        path.stem if path.suffix == ".py" else f"{path.name}/"
        for path in (HOUSE / folder).iterdir()
        if not is_hidden(path) and f"{folder}/{path.name}" not in LISTED
    ]
    assert sorted(there) == sorted(LISTED[folder])


def rooms_imported(tree):
    """Return the rooms that a module names in its imports, lazy ones and those for types too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("deepen.")}


def id_of(file):
    return file.relative_to(HOUSE).as_posix()


@pytest.mark.parametrize("file", [f for f in MODULES if f.parent != HOUSE], ids=id_of)
def test_a_stage_imports_only_what_stands_before_it(file):
    room = file.relative_to(HOUSE).parts[0]
    allowed = ROOMS[: ROOMS.index(room) + 1]
    assert rooms_imported(ast.parse(file.read_text(encoding="utf-8"))) <= {*allowed}


def test_an_arrow_that_points_back_is_seen():
    lazily = "def f():\n    from deepen.report import text\n    import deepen.cli.options\n"
    assert rooms_imported(ast.parse(lazily + "from deepen import methods")) == {
        "report",
        "cli",
        "methods",
    }


def test_no_room_is_crowded():
    assert sum(not is_hidden(path) for path in HOUSE.iterdir()) <= MOST_ENTRIES
    for folder in {file.parent for file in MODULES}:
        modules = [file for file in folder.glob("*.py") if not is_hidden(file)]
        assert len(modules) <= MOST_MODULES, folder


@pytest.mark.parametrize("file", MODULES, ids=id_of)
def test_modules_and_functions_can_be_read_at_once(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name


def test_tests_mirror_the_house():
    """A test of a module lies where the module lies; tests of more than one go where they fit."""
    folders = {file.parent.relative_to(HOUSE) for file in MODULES}
    tested = {
        file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")
    }
    assert tested <= folders
