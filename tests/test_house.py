"""The house stands as the README draws it: imports run down, nothing is too long, one style."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.files import ROOT

# Who stands on whom: a room imports what stands before its own line, and itself.
FLOORS = (
    {"core"},
    {"pictures", "scenes", "families"},
    {"download"},
    {"sanity"},
    {"train"},
    {"evaluate"},
    {"export"},
    {"error_analysis"},
    {"synthetic_data"},
    {"grading"},
    {"report"},
    {"run"},
)
FIFTYONE = {"download/zoo.py", "error_analysis/fiftyone_export.py"}
MODULE_LINES, FUNCTION_LINES = 300, 50
CORE_LINES, ALL_LINES = 1_800, 11_530


def read(folder: Path) -> dict[str, ast.Module]:
    """The modules of a package, by their path in it: ``train/training.py``."""
    return {str(path.relative_to(folder)): ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


def room(path: str) -> str:
    """The folder, or the stage that is one module, or the core."""
    folder, slash, _ = path.partition("/")
    return folder if slash else "sanity" if path == "sanity.py" else "core"


def imports(tree: ast.Module) -> set[str]:
    """The dotted names that a module imports anywhere, in functions too: ``helpers.files``, ``helpers.files.ROOT``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import in line {node.lineno}: write helpers.{node.module or ''}"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def dependencies(modules: dict[str, ast.Module]) -> dict[str, set[str]]:
    """For each module the modules of the package that it imports."""
    names = {f"helpers.{path[:-3].replace('/', '.')}".removesuffix(".__init__"): path for path in modules}
    found = {path: {names[name] for name in imports(tree) & names.keys()} for path, tree in modules.items()}
    return {path: needed - {"__init__.py"} for path, needed in found.items()}


def faults(modules: dict[str, ast.Module]) -> list[str]:
    """A sentence per import that does not run down, per circle, and per import of FiftyOne where it may not be."""
    rank = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    needed, found = dependencies(modules), []
    for path in modules:
        if room(path) not in rank:
            found.append(f"{path}: its folder is not in FLOORS")
    for path, others in needed.items():
        for other in sorted(others):
            below = rank.get(room(other), 99) < rank.get(room(path), -1)
            if not below and room(other) != room(path):
                found.append(f"{path} imports {other}")
    try:
        graphlib.TopologicalSorter(needed).prepare()
    except graphlib.CycleError as error:
        found.append(f"a circle: {' <- '.join(error.args[1])}")
    for path, tree in modules.items():
        if path not in FIFTYONE and any(name.split(".")[0] == "fiftyone" for name in imports(tree)):
            found.append(f"{path} imports fiftyone")
    return found


def test_imports_run_down():
    """A reader who knows the floors below knows all that a module needs; the core can be read alone."""
    found = faults(read(ROOT / "helpers"))
    assert not found, "; ".join(found)


WHOLE = {
    "__init__.py": '"""A map."""',
    "files.py": "import os",
    "sanity.py": "from helpers import files",
    "pictures/draw.py": "import helpers.files",
    "download/zoo.py": "import fiftyone",
    "train/training.py": "from helpers.files import ROOT\nfrom helpers.pictures import draw",
    "evaluate/checkpoint.py": "def f():\n    from helpers.train.training import train",
    "evaluate/figures.py": "from helpers.evaluate.checkpoint import f",
    "run/runner.py": "from helpers.evaluate import figures",
}


@pytest.mark.parametrize(
    "path,source,words",
    [
        ("train/training.py", "from helpers.evaluate.checkpoint import f", "train/training.py imports evaluate/ch"),
        ("train/training.py", "def g():\n    import helpers.run.runner", "train/training.py imports run/runner.py"),
        ("train/training.py", "from helpers.evaluate import figures", "train/training.py imports evaluate/figures.py"),
        ("sanity.py", "from helpers.train import training", "sanity.py imports train/training.py"),
        ("files.py", "from helpers import sanity", "files.py imports sanity.py"),
        ("files.py", "from helpers.pictures import draw", "files.py imports pictures/draw.py"),
        ("pictures/draw.py", "from helpers.train import training", "pictures/draw.py imports train/training.py"),
        ("evaluate/checkpoint.py", "from helpers.evaluate import figures", "a circle"),
        ("evaluate/figures.py", "def f():\n    import fiftyone.zoo as zoo", "evaluate/figures.py imports fiftyone"),
        ("attic/old.py", "", "attic/old.py: its folder"),
    ],
)
def test_an_import_that_runs_up_is_found(tmp_path, path, source, words):
    """On a made-up house: without this, the test above might pass for nothing."""
    for name, text in {**WHOLE, path: source}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert any(fault.startswith(words) for fault in faults(read(tmp_path))), faults(read(tmp_path))
    (tmp_path / path).write_text(WHOLE.get(path, ""))
    if path in WHOLE:
        assert faults(read(tmp_path)) == []


def test_a_module_is_one_idea_and_a_function_fits_on_a_screen():
    long = []
    for path, tree in read(ROOT / "helpers").items():
        lines = (ROOT / "helpers" / path).read_text().count("\n")
        if lines > MODULE_LINES:
            long.append(f"{path}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{path}: {node.name} has {lines} lines")
    assert not long, "; ".join(long)


def test_the_core_is_thin():
    """What a student reads in an hour; and a package that grows without end is no thin one."""
    lines = {path: (ROOT / "helpers" / path).read_text().count("\n") for path in read(ROOT / "helpers")}
    core = {path: count for path, count in lines.items() if room(path) == "core"}
    assert sum(core.values()) <= CORE_LINES, core
    assert sum(lines.values()) <= ALL_LINES


def test_a_folder_says_what_it_is_and_hands_nothing_on():
    """A re-export is a second door to the same thing."""
    for folder in [path for path in (ROOT / "helpers").rglob("*") if path.is_dir() and any(path.glob("*.py"))]:
        tree = ast.parse((folder / "__init__.py").read_text())
        assert ast.get_docstring(tree) and len(tree.body) == 1, f"{folder.name}/__init__.py: a docstring, nothing else"


@pytest.mark.parametrize("command", [["check"], ["format", "--check", "--diff"]], ids=["check", "format"])
def test_one_style(command):
    """The rules are in pyproject.toml; ``ruff check --fix`` and ``ruff format`` mend most of what is found."""
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
