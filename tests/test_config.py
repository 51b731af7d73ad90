"""The config: what is unknown, misspelt or out of range is refused by name, wherever it comes from."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np
import orjson
import pydantic
import pytest
import yaml

from helpers import cli
from helpers.config import PRESETS, Config, load_config, notebook_config
from helpers.files import ROOT, UserError, notebooks, require, write_atomic, write_json

SHIPPED = ("demo", "mini", "coco_top10", "coco_street")


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_presets_are_valid(preset):
    folders = (
        {"coco_root": "somewhere"} if preset.startswith("photos") else {}
    )  # whose photos is for the command line to say
    cfg = load_config(preset, **folders)
    assert cfg.preset == cfg.run_name == preset
    assert cfg.run_dir == ROOT / "artifacts" / preset and cfg.data_dir.is_relative_to(ROOT / "data" / preset)


def test_presets_are_those_of_the_assignment():
    """The recipe that the assignment names, to the number."""
    assert set(SHIPPED) <= {path.stem for path in PRESETS.glob("*.yaml")}
    top10, street = load_config("coco_top10"), load_config("coco_street")
    assert (top10.model, top10.top_k, top10.image_size, top10.batch_size, top10.epochs) == (
        "facebook/detr-resnet-50",
        10,
        512,
        8,
        25,
    )
    assert (top10.weight_decay, top10.scheduler, top10.warmup_ratio, top10.precision) == (1e-4, "cosine", 0.1, "fp16")
    assert (street.batch_size, street.epochs) == (4, 10)
    assert street.classes == (
        "person",
        "car",
        "bicycle",
        "bus",
        "truck",
        "traffic light",
        "stop sign",
        "cat",
        "dog",
        "chair",
    )
    demo = load_config("demo")
    assert (demo.data_source, demo.overwrite) == ("demo", True)


def test_presets_name_their_class_head():
    """Trap 3: a fresh head at one small learning rate is how mAP 0.0059 came about."""
    for preset in SHIPPED:
        assert load_config(preset).class_head == "remap", preset


@pytest.mark.parametrize(
    "given,words",
    [
        ({"epochss": 3}, "'epochs'"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"batch": 3}, "batch"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"lr": -1}, "lr=-1"),
        ({"lr": math.nan}, "lr"),
        ({"lr": math.inf}, "lr"),
        ({"ema": 1.0}, "ema"),
        ({"image_size": 10}, "image_size"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"augment": True}, "augment"),
        ({"data_source": "zoo"}, "data_source"),
        ({"top_k": 81}, "top_k=81"),
        ({"classes": ["cat", "cat"]}, "twice"),
        ({"data_source": "folder"}, "coco_root"),
        ({"run_name": "a/b"}, "run_name"),
        ({"run_name": ".."}, "run_name"),
        ({"run_name": "x" * 300}, "run_name"),
        ({"run_name": "x\n"}, "run_name"),
        ({"run_name": "Runs"}, "taken"),
        ({"run_name": "notebooks"}, "taken"),
        ({"classes": ["cat"], "top_k": 3}, "one of the two"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_by_name(given, words):
    with pytest.raises(UserError) as caught:
        load_config("demo", **given)
    message = str(caught.value)
    assert words in message and "\n" not in message and message.endswith((".", "?"))


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="'coco_top10'"):
        load_config("coco_top_10")
    with pytest.raises(UserError):
        load_config("../presets/demo")


@pytest.mark.parametrize(
    "text, words",
    [
        ('epochs: !!python/object/apply:os.system ["touch hurt"]', "not valid YAML"),
        ("epochs: [1", "not valid YAML"),
        ("- 1", "NAME: VALUE"),
        ("epohcs: 3", "did you mean 'epochs'"),
    ],
)
def test_preset_is_data_and_nothing_else(tmp_path, monkeypatch, text, words):
    """A preset that someone sends along must not run anything; a slip in one is said in a sentence."""
    (tmp_path / "sent.yaml").write_text(text)
    monkeypatch.setattr("helpers.config.PRESETS", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        load_config("sent")
    assert "\n" not in str(caught.value) and not (tmp_path / "hurt").exists()


def test_frozen():
    """A cell that changes the config halfway would make config.json a lie."""
    with pytest.raises(pydantic.ValidationError):
        load_config("demo").epochs = 3


def test_with_validates_again():
    cfg = load_config("demo")
    assert cfg.with_(epochs=7).epochs == 7 and cfg.epochs != 7
    with pytest.raises(UserError, match="epochs"):
        cfg.with_(epochs=-7)
    with pytest.raises(UserError, match="epochs"):
        cfg.with_(epoch=7)


def test_none_means_the_presets_value():
    assert load_config("mini", epochs=None, lr=None) == load_config("mini")


def test_classes_and_top_k_replace_each_other():
    """The preset has one of them; naming the other one must not clash with it."""
    assert load_config("coco_top10", classes="cat, dog").classes == ("cat", "dog")
    assert load_config("coco_top10", classes="cat").top_k is None
    assert load_config("coco_street", top_k=3).classes is None


def test_relative_paths_mean_the_repository(tmp_path, monkeypatch):
    """Trap 12: papermill's working folder is the caller's."""
    monkeypatch.chdir(tmp_path)
    cfg = load_config("demo", output_dir="out", data_dir=str(tmp_path / "d"), data_source="folder", coco_root="a, b")
    assert cfg.output_dir == ROOT / "out" and cfg.data_dir == tmp_path / "d"
    assert cfg.coco_roots == [ROOT / "a", ROOT / "b"]


def test_json_tells_no_home_folder():
    values = load_config("demo").as_json()
    assert (values["data_dir"], values["output_dir"]) == ("data/demo", "artifacts")
    assert str(Path.home()) not in orjson.dumps(values).decode()
    assert load_config(**values) == load_config("demo")


def test_describe_marks_what_was_changed():
    table = load_config("demo", epochs=9).describe()
    assert list(table.index) == list(Config.model_fields)
    assert table.index[table[""] == "changed"].tolist() == ["epochs"]


OWN = '# Parameters: None means the preset\'s value\npreset = "mini"\nepochs = None  # times\nlr = None'


@pytest.mark.parametrize(
    "cells,expected",
    [
        ([OWN], {}),
        ([OWN.replace("epochs = None", "epochs = 2")], {"epochs": 2}),
        ([OWN, "# Parameters\nepochs = 2"], {"epochs": 2}),
        ([OWN, '# Parameters\nbatch_size = 3\nclasses = ["cat"]'], {"batch_size": 3, "classes": ["cat"]}),
        ([OWN, OWN.replace("lr = None", "lr = 1e-3")], {"lr": 1e-3}),
        ([OWN + "\nseed = 3", OWN], {}),  # the line was taken out again
        ([OWN, "# Parameters\nepochs = 2", OWN.replace("lr = None", "lr = 1e-3")], {"epochs": 2, "lr": 1e-3}),
        ([OWN, "# Parameters\nepochs = 2", OWN.replace("epochs = None", "epochs = 9")], {"epochs": 2}),
        ([OWN, "# Parameters\nepochs = 2", "# Parameters\nepochs = 4"], {"epochs": 4}),
        ([OWN, "# Parameters of mine\nepochs = 5"], {"epochs": 5}),
        ([OWN + "\nlr: float = 1e-3"], {"lr": 1e-3}),
        ([OWN + "\nseed = (", OWN], {}),
        ([OWN, "seed = 3\n# Parameters"], {}),
    ],
)
def test_notebook_config_takes_the_last_run_of_each_parameters_cell(cells, expected):
    """As *Run All Cells* would: the notebook's own first, then the one that papermill injects."""
    assert notebook_config({"In": ["", "import os", *cells, "cfg = ..."]}) == load_config("mini", **expected)


def test_notebook_config_reads_nothing_else():
    """Trap 21: later cells call a loop variable seed, the data set's classes classes, and the profile profile; when the
    config cell ran again, these became the run's parameters.
    """
    later = {
        "seed": 3,
        "classes": ("cat",),
        "profile": object(),
        "epochs": [1, 2],
        "checkpoint": "last",
        "preset": "demo",
    }
    assert notebook_config({**later, "In": ["", OWN, "# Parameters\nepochs = 2"]}) == load_config("mini", epochs=2)


@pytest.mark.parametrize(
    "cell,words",
    [
        ("epohcs = 2", "did you mean 'epochs'"),  # papermill injects what the notebook does not know, and only warns
        ("epochs = 2 * 3", "'epochs = 2 * 3'"),
        ("epochs = lr = 3", "'epochs = lr = 3'"),
        ("epochs += 3", "'epochs += 3'"),
        ("import os", "'import os'"),
        ("if True:\n    epochs = 3", "NAME = VALUE"),
        ("epochs = 3\nlr = (", "line 3"),
        ("lr = float('inf')", "plain values"),
        ("epochs, lr = 3, 1", "Unknown parameter"),
    ],
)
def test_notebook_config_refuses_what_is_no_parameter(cell, words):
    """A line that would be passed over in silence is a parameter that has no effect; nothing of the cell is run."""
    with pytest.raises(UserError) as caught:
        notebook_config({"In": ["", OWN, f"# Parameters\n{cell}"]})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_notebook_config_wants_its_cell():
    with pytest.raises(UserError, match="run it first"):
        notebook_config({"preset": "mini", "In": ["", "import os"]})


def test_user_error_has_no_traceback():
    assert UserError("Give more photos.")._render_traceback_() == ["UserError: Give more photos."]


def test_require_names_the_notebook(tmp_path):
    assert require(tmp_path, "01_download") == tmp_path
    with pytest.raises(UserError, match="03_train.*--only 03"):
        require(tmp_path / "losses.csv", "03_train")


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk or a kill never leaves half a file under its final name, nor its temporary beside it."""
    path = write_atomic(tmp_path / "a" / "b.txt", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [1.0, {"b": math.nan}]}])
def test_json_refuses_what_it_cannot_hold(tmp_path, value):
    """orjson writes NaN as null, and a null AP is read as 'there is none'."""
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", value)
    assert not (tmp_path / "x.json").exists()


def test_json_writes_numpy_values(tmp_path):
    write_json(tmp_path / "x.json", {"a": np.float64(0.1), "b": np.arange(3), "c": Path("d")})
    assert orjson.loads((tmp_path / "x.json").read_bytes()) == {"a": 0.1, "b": [0, 1, 2], "c": "d"}


def rows_under(heading: str, page: str) -> dict[str, list[str]]:
    """The first table under a heading of a page: first cell -> the other cells, without backquotes."""
    part = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^## |\Z)", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )
    assert part, f"{page} has no heading {heading!r}"
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in part[1].splitlines()
        if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in rows[2:]}


def test_every_parameter_is_explained_with_its_default():
    """A page that disagrees with the code is worse than none."""
    rows = rows_under("Parameters", "docs/parameters.md")
    assert list(rows) == list(Config.model_fields)
    for name, (default, meaning) in rows.items():
        field = Config.model_fields[name]
        assert meaning
        if default.startswith(("data/", "the ", "artifacts")):  # computed by the config
            assert name in ("data_dir", "run_name", "output_dir", "lr_head")
            continue
        value = yaml.safe_load(default) if default else None
        value = tuple(value) if isinstance(value, list) else value
        assert (value if value is not None else None) == (field.default if field.default != () else None) or float(
            default
        ) == field.default, name


def test_every_preset_has_its_row():
    rows = rows_under("Presets", "docs/parameters.md")
    assert set(rows) == {path.stem for path in PRESETS.glob("*.yaml")} and list(rows)[: len(SHIPPED)] == list(SHIPPED)
    for preset, cells in rows.items():
        values = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
        line = " ".join(cells)
        assert (
            values["model"] in line and f"{values['epochs']} epoch" in line and f"{values['image_size']} px" in line
        ), preset


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_pages_name_real_files_and_commands(page):
    """Every `make` target, module, path and link of a page is there."""
    text = (ROOT / page).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", "".join(re.findall(r"`[^`]+`", text)))) <= targets
    for module in re.findall(r"python -m (helpers\.\w+)", text):
        assert (ROOT / module.replace(".", "/") / "__main__.py").is_file(), module
    for path in re.findall(r"`(?:python )?((?:helpers|notebooks|tests|data|benchmarks)/[\w./]+)", text):
        assert (ROOT / path.rstrip("/")).exists() or path.startswith("data/"), path
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_readmes_tree_is_the_house():
    """Whoever adds a room, or takes one away, draws it; and each notebook has its question."""
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"^helpers/\n(.*?)^\w", text, re.MULTILINE | re.DOTALL)[1]
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "helpers").iterdir() if not path.name.startswith("__")}
    assert set(re.findall(r"\b\w+(?:\.py\b|/)", tree)) == there
    assert {f"notebooks/{path.name}" for path in notebooks()} == set(re.findall(r"`(notebooks/0\w+\.ipynb)` \|", text))


SHARED_BY_SCRIPTS = {"machine", "peer", "gpu_lab", "gpu_right", "gpu_speed"}  # the last three: parts of gpu_check


def test_every_benchmark_has_its_claim():
    """A script whose claim nobody reads, or a claim without its command; the other modules are what scripts share."""
    rows = rows_under("Benchmarks", "benchmarks/README.md")
    named = {
        re.match(r"(?:python benchmarks/|make )([\w-]+)", cells[2])[1].replace("-", "_") for cells in rows.values()
    }
    assert named == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - SHARED_BY_SCRIPTS
    assert all(len(cells) == 3 and all(cells) for cells in rows.values())


def test_requirements_are_pinned():
    """A run of next year must be the run of today."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[\w.]+", line) for line in lines if line)


def test_options_and_values_in_any_order():
    """``epochs=3 --only 03 lr=1e-5`` ended in "Unrecognized arguments"."""
    parser = cli.parser("helpers.run", "")
    parser.add_argument("--only")
    found = parser.parse_intermixed_args(["epochs=3", "--only", "03", "lr=1e-5", "--preset", "mini", "seed=1"])
    assert (found.overrides, found.only, found.preset) == (["epochs=3", "lr=1e-5", "seed=1"], "03", "mini")
    with pytest.raises(UserError, match="--nope"):
        parser.parse_intermixed_args(["epochs=3", "--nope", "a=1"])
