"""What a notebook looks like here: one parameters cell, short cells, no outputs in git, a check that can fail."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import nbformat
import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config as Traits

from helpers.config import Config, load_config
from helpers.files import notebooks

PATHS = notebooks()
STAGES = {"01_download", "02_sanity", "03_train", "04_evaluate", "05_error_analysis", "06_synthetic_data"}


@pytest.fixture(scope="module", params=PATHS, ids=[path.stem for path in PATHS])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook) -> list[str]:
    """The code cells' sources, without magics."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for source in sources]


def test_the_notebooks_are_there():
    assert {path.stem for path in PATHS} >= STAGES


def test_outputs_are_stripped(notebook):
    """Committed outputs are several megabytes of somebody else's numbers."""
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None, cell.source[:60]
        assert set(cell.metadata) <= {"tags"}, cell.metadata
    assert "papermill" not in notebook.metadata and "widgets" not in notebook.metadata


def test_nbstripout_agrees():
    """Nothing is in git that nbstripout, installed as its filter, would take out again."""
    subprocess.run(
        [sys.executable, "-m", "nbstripout", "--verify", "--keep-id", *map(str, PATHS)], check=True, capture_output=True
    )


def test_it_is_a_valid_notebook_of_this_python(notebook):
    """Ids (format 4.5) keep diffs small; any other kernel name would not be there on the next machine."""
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


def parameters_of(notebook) -> str:
    """The source of the one parameters cell, which is the first code cell."""
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert tagged[0] is next(cell for cell in notebook.cells if cell.cell_type == "code")
    return tagged[0].source


def test_one_parameters_cell_with_what_a_student_would_change(notebook):
    """A list that fits on a screen, each parameter with a word of comment; a preset must stand behind every None.

    The heading is longer than that of papermill's cell: by it the two are told apart.
    """
    heading, *lines = parameters_of(notebook).splitlines()
    assert heading.startswith("# Parameters: ")
    values = {
        statement.targets[0].id: ast.literal_eval(statement.value) for statement in ast.parse("\n".join(lines)).body
    }
    assert len(values) == len(lines) <= 15 and set(values) <= set(Config.model_fields) and list(values)[0] == "preset"
    assert {name: value for name, value in values.items() if value is not None} == {"preset": "demo"}
    for line in lines:
        assert re.fullmatch(r"\w+ = \S+  # [^=]+", line), line


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_papermill_sees_every_parameter(path):
    """papermill cannot inspect a union annotation, nor a line with two equal signs: it would not know the parameter."""
    statements = ast.parse(parameters_of(nbformat.read(path, as_version=4))).body
    assert list(papermill.inspect_notebook(str(path))) == [statement.targets[0].id for statement in statements]


def test_the_config_cell_may_run_again(notebook, tmp_path, monkeypatch):
    """Trap 21, in IPython itself: what later cells of this notebook assign is no parameter; what a student edits is."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    shell = InteractiveShell(config=Traits(HistoryManager={"enabled": False}))
    own, config_cell = (
        parameters_of(notebook),
        code(notebook)[1].partition("cfg = ")[0] + "cfg = notebook_config(globals())",
    )
    run = lambda source: shell.run_cell(source, store_history=True).raise_error()
    for source in (own, "# Parameters\nbatch_size = 3", config_cell):
        run(source)
    assert shell.user_ns["cfg"] == load_config("demo", batch_size=3)
    assigned = {node.id for cell in code(notebook)[2:] for node in ast.walk(ast.parse(cell)) if type(node) is ast.Name}
    run("\n".join(f"{name} = object()" for name in sorted({*Config.model_fields, "seed"} & assigned)))
    run(config_cell)
    assert shell.user_ns["cfg"] == load_config("demo", batch_size=3)
    run(own.replace("demo", "mini", 1))
    run(config_cell)
    assert shell.user_ns["cfg"] == load_config("mini", batch_size=3)


def test_cells_are_short(notebook):
    """15 lines fit on a screen beside their figure; the parameters are a list and may be longer."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 15, cell.source


def test_no_program_lives_in_a_notebook(notebook):
    """A function of more than a few lines belongs into helpers/, where it has a test; a class does in any case."""
    for source in code(notebook):
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef), source
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno - node.lineno < 6, source


def test_it_opens_with_its_question(notebook):
    opening = notebook.cells[0].source
    title = opening.splitlines()[0]
    assert title.startswith("# ") and title.endswith("?"), title
    for word in ("Reads", "Writes", "Minutes"):
        assert f"**{word}" in opening, word
    headings = re.findall(
        r"^# .+$", "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"), re.MULTILINE
    )
    assert headings == [title]


def test_it_closes_with_what_was_learnt(notebook):
    """Numbers in the closing words are computed: a code cell follows the heading."""
    place = [
        k
        for k, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown" and "## What we learnt" in cell.source
    ]
    assert len(place) == 1
    rest = notebook.cells[place[0] + 1 :]
    assert any(cell.cell_type == "code" for cell in rest)
    assert not any(re.search(r"^## ", cell.source, re.MULTILINE) for cell in rest)


def test_config_is_built_from_the_parameters(notebook):
    """The second code cell refuses what papermill would let pass."""
    second = [cell.source for cell in notebook.cells if cell.cell_type == "code"][1]
    assert "cfg = notebook_config(globals())" in second


def test_there_are_checks_that_can_fail(notebook):
    asserts = [
        node for source in code(notebook) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)
    ]
    assert len(asserts) >= 3
    assert not [ast.unparse(node) for node in asserts if isinstance(node.test, ast.Constant)]


def test_prose_stands_between_code(notebook):
    """A reader gets a few lines before a piece of code, not a lecture, and not four cells of code in a row."""
    run = 0
    for cell in notebook.cells[2:]:
        run = run + 1 if cell.cell_type == "code" else 0
        assert run <= 4, cell.source
        if cell.cell_type == "markdown":
            assert len(cell.source.splitlines()) <= 25, cell.source[:80]


def test_no_absolute_paths_or_downloads(notebook):
    """Paths come from the config; nothing but FiftyOne's zoo reaches for the network."""
    text = "\n".join(code(notebook))
    assert not re.search(r"""["'](/|~/|[A-Z]:\\)[\w.]""", text)
    assert not re.search(r"\b(requests|urllib|wget|curl|pip install)\b", text)
