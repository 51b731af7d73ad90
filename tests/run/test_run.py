"""The runner: refuses early, stops at the first failure with everything kept, and says how to go on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import artifact_tree
import nbformat
import orjson
import pytest

from helpers import cli
from helpers.config import Config
from helpers.files import ROOT, UserError, without_folders
from helpers.run import runner

RUNNER = """
import sys
from pathlib import Path
from helpers import cli
from helpers.run import runner
runner.finish = lambda cfg, must_hold: print(f"finished, must_hold={must_hold}") or 0
cli.command(lambda _: runner.main(sys.argv[2:], Path(sys.argv[1])))
"""


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook as the project's are: one parameters cell, then ``sources``."""
    names = [f"{name} = {'demo'!r}" if name == "preset" else f"{name} = None" for name in Config.model_fields]
    parameters = nbformat.v4.new_code_cell("# Parameters\n" + "\n".join(names), metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell("# What?"), parameters, *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "nobody-has-this", "display_name": "x"}}
        ),
        path,
    )


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "notebooks {of} a student"  # papermill reads braces in a path as placeholders
    made.mkdir()
    write_notebook(
        made / "01_a.ipynb",
        "print(epochs, lr, classes, run_name, [model])",
        "import sys, os\nprint(sys.executable, os.getcwd())",
    )
    write_notebook(
        made / "02_b.ipynb", "print('before')", "import os\nexec(os.environ.get('CELL', '1'))", "print('after')"
    )
    write_notebook(made / "03_c.ipynb", "1 + 1")
    return made


def start(folder: Path, *arguments: str, cell: str = "1") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUNNER, str(folder), f"output_dir={folder.parent}/out", *arguments],
        cwd=folder.parent,
        env={**os.environ, "CELL": cell},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def finished(folder, monkeypatch, capsys):
    """Runs the notebooks of ``folder`` in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(runner, "finish", lambda cfg, must_hold: print(f"finished, must_hold={must_hold}") or 0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # a busy machine is a test of its own

    def call(*arguments: str, cell: str = "1") -> tuple[int, str, str]:
        monkeypatch.setenv("CELL", cell)
        status = runner.main([f"output_dir={folder.parent}/out", *arguments], folder)
        return status, *capsys.readouterr()

    return call


def executed(folder: Path, name: str):
    return nbformat.read(folder.parent / "out" / "notebooks" / f"{name}.ipynb", as_version=4)


def printed(notebook) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["epoch=3"], "did you mean 'epochs'"),
        (["--preset", "dmo"], "did you mean 'demo'"),
        (["epochs=many"], "epochs"),
        (["epochs=0"], "epochs"),
        (["epochs"], "NAME=VALUE"),
        (["epochs="], "NAME=VALUE"),
        (["preset=mini"], "--preset mini"),
        (["--only", "09"], "no notebook '09'"),
        (["--from", "99_x"], "no notebook '99_x'"),
        (["--from", "02,03"], "no notebook '02,03'"),
        (["--frm", "03"], "--frm"),
        (["--only", "01", "--from", "02"], "not allowed with"),
        (["--cell-minutes", "0"], "more than 0"),
        (["lr=__import__('os').system('touch hurt')"], "lr"),
        (["classes=[a, b"], "not a list"),
        (["--only", ","], "names no notebook"),
        (["overwrite=perhaps"], "overwrite"),
        (["run_name=../x"], "run_name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_refused_before_anything_runs(folder, arguments, words):
    """papermill itself only warns about an unknown parameter, and then trains for a night with the wrong one."""
    with pytest.raises(UserError) as caught:
        runner.main([f"output_dir={folder.parent}/out", *arguments], folder)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder.parent / "out").exists()


def test_misspelt_parameter_of_the_real_command():
    """One sentence on stderr, status 2, from whatever folder it is called."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.run", "--preset", "demo", "epohcs=3"], cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1 and "epochs" in done.stderr


def test_values_become_typed_parameters():
    """They go to papermill as plain data: a number stays a number, a list a list, and text is text."""
    _, values = cli.configure(
        "demo",
        [
            "epochs=3",
            "lr=1e-5",
            "classes=person,car",
            "run_name=2024-01-01",
            "profile=no",
            "resume=3",
            'output_dir=a"b\\',
        ],
    )
    assert values == {
        "preset": "demo",
        "epochs": 3,
        "lr": 1e-5,
        "classes": ["person", "car"],
        "run_name": "2024-01-01",
        "profile": False,
        "resume": "3",
        "output_dir": 'a"b\\',
    }
    assert cli.configure("demo", ["classes=[person, traffic light]"])[1]["classes"] == ["person", "traffic light"]


def test_all_notebooks_run_in_order(folder, finished):
    """In this very Python and from the project's folder, whatever kernel the notebook names; each one's time is
    noted.
    """
    # a value must stay a value on its way into the notebook
    hostile = f"x\"; import os; os.mkdir('{folder.parent}/hurt'); y = \"\\"
    status, out, err = finished("epochs=3", "lr=1e-5", "classes=person,car", "run_name=x.1", f"model={hostile}")
    assert (status, err) == (0, ""), err
    assert (
        f"3 1e-05 ['person', 'car'] x.1 {[hostile]}" in printed(executed(folder, "01_a"))
        and not (folder.parent / "hurt").exists()
    )
    kernel = printed(executed(folder, "01_a")).splitlines()[-1]
    assert kernel == without_folders(f"{sys.executable} {ROOT}")
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["01_a", "02_b", "03_c"]
    assert "finished, must_hold=True" in out
    times = orjson.loads((folder.parent / "out" / "notebooks" / "timings.json").read_bytes())
    assert all(times[name]["seconds"] > 0 and times[name]["succeeded"] for name in ("01_a", "02_b", "03_c"))
    assert not list((folder.parent / "out" / "notebooks").glob(".*"))


def test_the_run_ends_with_the_report_and_the_grading(tmp_path, capsys):
    """Whoever waited for a night reads where they are, and what does not hold; the files named there exist."""
    cfg = artifact_tree.make(tmp_path)
    assert runner.finish(cfg, must_hold=True) == 0
    out = capsys.readouterr().out
    for line, file in zip(out.splitlines(), ("report/index.html", "grading.json")):
        assert str(cfg.output_dir / file) in line and (cfg.output_dir / file).is_file()
    (cfg.run_dir / "losses.csv").unlink()
    assert runner.finish(cfg, must_hold=False) == 0
    assert runner.finish(cfg, must_hold=True) == 1 and "losses.csv is missing" in capsys.readouterr().err


def test_another_kernel_of_this_name_is_not_taken(folder, finished, tmp_path, monkeypatch):
    """A python3 that another environment registered for this user would import other versions, or nothing."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "other", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert finished("--only", "03")[0] == 0


def test_threads_sleep_beside_other_work(folder, finished, monkeypatch):
    """In a real kernel beside real work, as in JupyterLab or by papermill: set before PyTorch is there to read it."""
    monkeypatch.delenv("OMP_WAIT_POLICY")
    cell = "import sys; from helpers.config import notebook_config; before = 'torch' in sys.modules\n"
    cell += "notebook_config(globals()); print(before, os.environ.get('OMP_WAIT_POLICY'))"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
    try:
        assert finished("--only", "02", cell=cell)[0] == 0
    finally:
        for process in busy:
            process.kill()
    assert "False PASSIVE\n" in printed(executed(folder, "02_b"))


def test_only_and_from(folder, finished):
    names = [path.stem for path in runner.select(folder, only="03,01")]
    assert names == ["01_a", "03_c"]  # in the notebooks' order
    assert [path.stem for path in runner.select(folder, start="02_b")] == ["02_b", "03_c"]
    assert [path.stem for path in runner.select(folder)] == ["01_a", "02_b", "03_c"]
    status, out, _ = finished("--only", "03")
    assert status == 0 and "must_hold=False" in out
    assert [path.name for path in (folder.parent / "out" / "notebooks").glob("*.ipynb")] == ["03_c.ipynb"]


def test_profile_only_leaves_out_what_needs_a_checkpoint(folder, finished):
    """Without a training there is nothing that 04 could evaluate; an incomplete run is no failure then."""
    write_notebook(folder / "04_d.ipynb", "raise SystemExit(1)")
    for name in ("01_a", "02_b"):
        (folder / f"{name}.ipynb").unlink()
    status, out, _ = finished("profile_only=true")
    assert status == 0 and "04_d" not in out and "must_hold=False" in out


@pytest.mark.parametrize(
    "cell,words",
    [
        (
            "from helpers.files import UserError\nraise UserError('Give more photos.')",
            "02_b failed in cell [4]: Give more photos.",
        ),
        ("1 / 0", "02_b failed in cell [4]: ZeroDivisionError: division by zero"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "02_b failed in cell [4]: the kernel died"),
    ],
    ids=["user error", "bug", "dead kernel"],
)
def test_failure_keeps_what_is_there(folder, finished, cell, words):
    """Trap 12: a dead kernel leaves papermill's copy as if complete.

    One message, no traceback, and the way to go on.
    """
    status, out, err = finished("epochs=2", cell=cell)
    assert status == 1
    assert words in err and "Traceback" not in err and "--preset demo" in err and "epochs=2 --from 02" in err
    copy = executed(folder, "02_b")
    nbformat.validate(copy)
    errors = [output for cell in copy.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    assert len(errors) == 1
    assert "before" in printed(copy) and "after" not in printed(copy)
    assert (folder.parent / "out" / "notebooks" / "01_a.ipynb").exists()
    assert not (folder.parent / "out" / "notebooks" / "03_c.ipynb").exists()
    times = orjson.loads((folder.parent / "out" / "notebooks" / "timings.json").read_bytes())
    assert (times["01_a"]["succeeded"], times["02_b"]["succeeded"]) == (True, False)


def test_kernel_that_does_not_start(folder, finished, monkeypatch):
    """A broken installation of ipykernel: a sentence, not a traceback of the runner's."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    status, _, err = finished("--only", "03")
    assert status == 1 and "03_c failed: the kernel did not start" in err and "Traceback" not in err


def test_time_limit_of_a_cell(folder, finished):
    """A cell that hangs over night must not hold a batch job until its end."""
    began = time.monotonic()
    status, _, err = finished("--only", "02", "--cell-minutes", "0.05", cell="import time; time.sleep(600)")
    assert status == 1 and "--cell-minutes" in err and "Traceback" not in err
    assert time.monotonic() - began < 300
    assert any(
        output.output_type == "error" for cell in executed(folder, "02_b").cells for output in cell.get("outputs", [])
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_stop_request_reaches_the_kernel(folder, number):
    """A VM that is taken away sends SIGTERM to the runner: the training cell must hear it and write its checkpoint."""
    cell = (
        "import time, pathlib\nmark = pathlib.Path('"
        + str(folder.parent / "mark")
        + "')\nmark.write_text('began')\ntry:\n"
        "    time.sleep(600)\nexcept KeyboardInterrupt:\n    mark.write_text('checkpoint')\n    raise"
    )
    process = start(folder, "--only", "02", cell=cell)
    deadline = time.monotonic() + 240
    while not (folder.parent / "mark").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1 and "02_b failed in cell [4]" in err and "Traceback" not in err
    assert (folder.parent / "mark").read_text() == "checkpoint"


def test_copies_tell_no_folder_of_this_machine(folder, finished, monkeypatch):
    """Artifacts are handed in: a home folder in a traceback is nobody's business. A picture's letters stay."""
    status, _, _ = finished("--only", "02", cell="import json; json.loads('{')")
    assert status == 1
    text = (folder.parent / "out" / "notebooks" / "02_b.ipynb").read_text()
    assert str(ROOT) not in text
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    text = '"/home/ann/x", a=/home/ann, "AAA/home/ann/x=", "/home/anna"'
    assert without_folders(text) == '"~/x", a=~, "AAA/home/ann/x=", "/home/anna"'


def test_a_damaged_list_of_times_is_no_obstacle(tmp_path):
    file = tmp_path / "timings.json"
    file.write_text("{")
    runner.note_time(file, "02_b", 3.0, True)
    runner.note_time(file, "01_a", 4.0, False)
    assert {name: (row["seconds"], row["succeeded"]) for name, row in orjson.loads(file.read_bytes()).items()} == {
        "01_a": (4.0, False),
        "02_b": (3.0, True),
    }


def test_full_disk_is_one_message(folder, monkeypatch, capsys):
    """No room for the executed copy: a sentence, and what an earlier run left there stays whole."""

    def no_room(*_, **__):
        raise OSError(28, "No space left on device")

    notebooks = folder.parent / "out" / "notebooks"
    notebooks.mkdir(parents=True)
    (notebooks / "01_a.ipynb").write_text("earlier")
    monkeypatch.setattr("papermill.engines.write_ipynb", no_room)
    assert runner.main([f"output_dir={folder.parent}/out", "--only", "01"], folder) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert (notebooks / "01_a.ipynb").read_text() == "earlier"
