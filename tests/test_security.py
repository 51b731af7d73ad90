"""Nobody is let in: what is read is data, what is written tells nothing, and Jupyter has a door."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.translators import translate_parameters

from helpers import cli
from helpers.config import load_config
from helpers.evaluate.checkpoint import evaluate_checkpoint
from helpers.families.loading import load_detector
from helpers.files import ROOT, UserError
from helpers.index import open_split
from helpers.train.training import train

FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
HARMLESS = {"joblib.cpu_count"}  # of a package that can also read pickles: how many cores a container gives
CALLS = {
    "eval",
    "exec",
    "torch.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "accelerator.load_state",
    "accelerator.save_state",
    "torch.save",
}
WRITES = {"write_text", "write_bytes", "to_parquet", "imwrite", "savez", "tofile"}
ALLOWED = {
    ("files.py", "open"),
    ("scenes.py", "write_bytes"),
}  # write_atomic itself; a folder that is thrown away when it is not whole


def sources():
    """(name, syntax tree) of every helper, the checkpoint's script and the notebooks' code."""
    for path in [*sorted((ROOT / "helpers").rglob("*.py")), ROOT / "data" / "pretrained" / "make_checkpoint.py"]:
        yield path.name, ast.parse(path.read_text())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = "\n".join(
            re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.M)
            for cell in nbformat.read(path, 4).cells
            if cell.cell_type == "code"
        )
        yield path.name, ast.parse(code)


def test_nothing_that_is_read_can_run():
    """No pickle on any path, no evaluated text.

    The one file of PyTorch that is read, to make the shipped checkpoint, is read as tensors only.
    """
    for name, tree in sources():
        for node in ast.walk(tree):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            packages = {module.split(".")[0] for module in modules if module not in HARMLESS}
            assert not packages & FORBIDDEN, (name, node.lineno)
            if isinstance(node, ast.Call):
                safe = any(
                    keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True
                    for keyword in node.keywords
                )
                assert ast.unparse(node.func) not in CALLS or safe, (name, node.lineno)
                assert not any(
                    keyword.arg in ("allow_pickle", "shell", "trust_remote_code")
                    and getattr(keyword.value, "value", True)
                    for keyword in node.keywords
                ), (name, node.lineno)


def test_nothing_is_written_under_its_final_name():
    """Every file goes through write_atomic or write_folder: a full disk or a kill leaves no half of one (see the
    tests of those).
    """
    for name, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            to_file = [
                *node.args[:1],
                *(keyword.value for keyword in node.keywords if keyword.arg in ("path_or_buf", "buf")),
            ]
            writes = function in WRITES or function in ("to_csv", "to_json", "to_html") and bool(to_file)
            mode = next((argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)), "r")
            writes |= function == "open" and isinstance(mode, str) and bool(set(mode) & set("wax+"))
            assert not writes or (name, function) in ALLOWED, (name, node.lineno, function)


class Hostile:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["pickled weights", "own code"])
def test_checkpoint_from_a_stranger_runs_nothing(tmp_path, kind, monkeypatch):
    """A model folder may hold pickled weights, or Python that transformers offers to run; a "yes" at the prompt must
    not do it either.
    """
    folder, mark = tiny.detr(tmp_path / "model", backbone="test_resnet"), tmp_path / "hurt"
    if kind == "pickled weights":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile(mark)))
    else:
        about = json.loads((folder / "config.json").read_text())
        about |= {
            "model_type": "strange",
            "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForObjectDetection"), "evil.Evil"),
        }
        (folder / "config.json").write_text(json.dumps(about))
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError):
        load_detector(load_config("demo", model=str(folder)), ("person", "car"))
    assert not mark.exists()


text = st.one_of(
    st.text(max_size=20),
    st.lists(
        st.sampled_from(['"', "'", "\\", "\n", "\r", ";", "import os", "{", "}", "$", "#", "\0", "\u2028", '"""']),
        max_size=8,
    ).map("".join),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.dictionaries(st.sampled_from(["run_name", "model", "output_dir", "resume"]), text, min_size=1),
    st.lists(text, max_size=3),
)
def test_papermill_parameters_are_data(values, classes):
    """What `-p NAME VALUE` and the runner hand to papermill becomes source code: each value must come out as itself,
    and as nothing else.
    """
    tree = ast.parse(translate_parameters("python3", "python", {**values, "classes": classes}, "Parameters"))
    assert all(isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) for node in tree.body)
    assert {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body} == {**values, "classes": classes}


@pytest.mark.parametrize(
    "given_text",
    [
        'run_name=x";import os',
        "run_name=x\nimport os",
        "run_name=$(id)",
        "classes=[!!python/object/apply:os.getcwd []]",
        "x;import os=1",
        "__class__=1",
    ],
)
def test_command_line_takes_no_code(given_text):
    with pytest.raises(UserError):
        cli.configure("demo", [given_text])


def test_artifacts_tell_nothing_of_the_machine(coco_source, tmp_path, monkeypatch):
    """Checkpoints, logs, events and tables of a training and an evaluation: neither home folder, user, host, nor
    anything from the
    environment; and no name of a file comes from the data."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret0123456789")
    home = tmp_path / "home" / "ann"
    home.mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setenv("HOME", str(home))
    cfg, threads = tiny.config(home, coco_source, "detr", epochs=1, run_name="private"), torch.get_num_threads()
    torch.set_num_threads(1)  # of so small a model they only wait for each other
    train(cfg)
    evaluate_checkpoint(cfg, open_split(cfg, "val2017"), "best")
    torch.set_num_threads(threads)
    files = [path for path in cfg.output_dir.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".csv", ".safetensors"} and len(files) > 15
    for path in files + [cfg.data_dir / "manifest.json"]:
        data = path.read_bytes()
        for word in (str(home), "hf_secret0123456789", str(ROOT)):
            assert word.encode() not in data, (path.name, word)
        assert re.fullmatch(r"[\w.-]+", path.name), path.name


def test_make_lab_listens_here_and_asks_for_a_token():
    """Jupyter runs whatever it is told; on a VM with an open port that is everybody's shell. (The server itself:
    test_lab.py.)
    """
    recipe = subprocess.run(
        [shutil.which("make"), "-n", "-o", "setup", "lab"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "--ip=127.0.0.1" in recipe
    assert not re.search(r"token|password|allow_origin|allow_remote|disable_check_xsrf", recipe, re.IGNORECASE)


def test_every_dependency_has_its_licence_and_its_reason():
    """An audit needs to know what is there: each line of requirements.txt is in docs/dependencies.md, and each of its
    rows is a dependency.
    """
    wanted = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    }
    part = (ROOT / "docs" / "dependencies.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")
    ][2:]
    assert all(len(row) == 3 and all(row) for row in rows)
    listed = {name.strip().lower().replace("_", "-") for row in rows for name in row[0].split(",")}
    assert wanted <= listed and listed - wanted <= {"tidecv"}, (wanted - listed, listed - wanted)
