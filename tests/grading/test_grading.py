"""The grading names what is wrong: each deliverable is damaged in turn, in each way that a run can go wrong."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import artifact_tree
import nbformat
import numpy as np
import orjson
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from helpers.files import ROOT
from helpers.grading import deliverables
from helpers.report.front_page import build_report
from helpers.train import checkpoints

A, RUN = "artifacts", "artifacts/demo"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    cfg = artifact_tree.make(root)
    build_report(cfg)
    return root, cfg


@pytest.fixture
def copy(whole, tmp_path):
    root, cfg = whole
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    return tmp_path, cfg.with_(data_dir=tmp_path / "data", output_dir=tmp_path / "artifacts")


def wrong(cfg) -> dict[str, str]:
    return {row["name"]: row["reason"] for row in deliverables.check_all(cfg) if not row["valid"]}


def test_a_whole_run_holds(whole):
    """Otherwise every test below would pass for nothing."""
    assert wrong(whole[1]) == {}


def test_start_that_finds_nothing_is_no_damage(copy):
    """A whole head may prefer other classes everywhere; what must hold then is that row one says 0."""
    _, cfg = copy
    (cfg.run_dir / "detections_val2017_start.json").write_text("[]")
    assert list(wrong(cfg)) == ["metrics"], "the row of the start still claims what the file does not give"
    (cfg.run_dir / "detections_val2017.json").write_text("[]")
    assert wrong(cfg)["detections"] == "it holds no detection"


@pytest.mark.parametrize("names", [("0", "NA", "1e5"), ("nan", "None", "true"), ("01", "null", "-inf")])
def test_class_names_that_look_like_values(tmp_path, monkeypatch, names):
    """Digits are classes (meters, plates), and pandas reads them, NA and others as something else."""
    monkeypatch.setattr(artifact_tree, "CLASSES", names)
    cfg = artifact_tree.make(tmp_path, run_name="01")
    page = build_report(cfg).read_text()
    assert wrong(cfg) == {}
    assert all(f">{name}</" in page for name in names)


def edit_csv(change):
    def damage(path: Path) -> None:
        table = pd.read_csv(path)
        change(table)
        table.to_csv(path, index=False)

    return damage


def edit_json(change):
    def damage(path: Path) -> None:
        value = orjson.loads(path.read_bytes())
        change(value)
        path.write_bytes(orjson.dumps(value))

    return damage


def put(column, value, row=0):
    return edit_csv(
        lambda table: table.__setitem__(column, [value if k == row else v for k, v in enumerate(table[column])])
    )


def without_row(row):
    def damage(path: Path) -> None:
        pd.read_csv(path).drop(index=row).to_csv(path, index=False)

    return damage


def absent(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_in_json(path: Path) -> None:
    text = path.read_text()
    digit = next(k for k, letter in enumerate(text) if letter.isdigit() and text[k - 1] in " :[")
    end = next(k for k in range(digit, len(text)) if text[k] not in "0123456789.e-")
    path.write_text(f"{text[:digit]}NaN{text[end:]}")


def nan_weights(path: Path) -> None:
    def fill(folder):
        for file in path.iterdir():
            shutil.copy(file, folder / file.name)
        (folder / "checksums.json").unlink()
        save_file({"weights": np.array([1, np.nan], dtype=np.float32)}, folder / "model.safetensors")

    checkpoints.write_folder(path.parent / "new", fill)
    shutil.rmtree(path)
    (path.parent / "new").rename(path)


def other_classes(path: Path) -> None:
    edit_json(lambda value: value["id2label"].update({"0": "zebra"}))(path)


def flat(path: Path) -> None:
    Image.new("RGB", (50, 50), "white").save(path)


def edit_notebook(change):
    def damage(path: Path) -> None:
        notebook = nbformat.read(path, as_version=4)
        change(notebook.cells[1])
        nbformat.write(notebook, path)

    return damage


def fail_cell(cell) -> None:
    cell.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[])]


def first(values: list, **changes):
    values[0].update(changes)


def swap_first_rows(path: Path) -> None:
    table = pd.read_csv(path)
    table.iloc[[1, 0]].to_csv(path, index=False)


def network_page(path: Path) -> None:
    path.write_text(
        path.read_text().replace("</main>", '<script src="https://cdn.example/require.js"></script></main>')
    )


def old_headline(path: Path) -> None:
    value = pd.read_csv(path.parents[1] / "metrics.csv")["mAP"].iloc[1]
    path.write_text(path.read_text().replace(f"{value:.3f}", "0.987"))


FILES = [  # deliverable, a file of it: absent, empty and truncated are tried on each
    ("data set", "data/manifest.json"),
    ("data set", "data/annotations/instances_val2017.json"),
    ("data check", f"{A}/data_sanity/class_counts.csv"),
    ("data check", f"{A}/data_sanity/class_counts.png"),
    ("configuration", f"{RUN}/config.json"),
    ("environment", f"{RUN}/environment.json"),
    ("losses", f"{RUN}/losses.csv"),
    ("epochs", f"{RUN}/epochs.csv"),
    ("loss curves", f"{RUN}/loss_curves.png"),
    ("best checkpoint", f"{RUN}/checkpoint_best/model.safetensors"),
    ("best checkpoint", f"{RUN}/checkpoint_best/config.json"),
    ("last checkpoint", f"{RUN}/checkpoint_last/model.safetensors"),
    ("TensorBoard events", f"{A}/runs/demo/EVENTS"),
    ("profile", f"{A}/profiler/demo/breakdown.csv"),
    ("profile", f"{A}/profiler/demo/trace.json.gz"),
    ("profile", f"{A}/profiler/demo/breakdown.png"),
    ("profile", f"{A}/profiler/demo/summary.json"),
    ("detections before training", f"{RUN}/detections_val2017_start.json"),
    ("detections", f"{RUN}/detections_val2017.json"),
    ("metrics", f"{A}/metrics.csv"),
    ("metrics of the run", f"{RUN}/metrics.json"),
    ("metrics by class", f"{RUN}/per_class.csv"),
    ("precision and recall", f"{RUN}/pr_curves.png"),
    ("visualizations", f"{A}/visualizations/0.jpg"),
    ("error summary", f"{A}/error_analysis/tide.json"),
    ("error table", f"{A}/error_analysis/errors.csv"),
    ("error pictures", f"{A}/error_analysis/missed/01.jpg"),
    ("synthetic data set", "data_synthetic/manifest.json"),
    ("synthetic data set", "data_synthetic/annotations/instances_train2017.json"),
    ("synthetic data set", "data_synthetic/images/train2017/synthetic_0.jpg"),
    ("arms of the experiment", f"{A}/synthetic_data/arms.csv"),
    ("effects of the arms", f"{A}/synthetic_data/effects.png"),
    ("executed notebooks", f"{A}/notebooks/03_train.ipynb"),
    ("report", f"{A}/report/index.html"),
    ("report", f"{A}/report/04_evaluate.html"),
]
ONE_OF_MANY = {f"{A}/visualizations/0.jpg"}  # without it the others are still there


def at(root: Path, file: str) -> Path:
    path = root / file
    return next(path.parent.glob("*tfevents*")) if path.name == "EVENTS" else path


def test_no_deliverable_is_forgotten(whole):
    """A deliverable that is added to the grading must be damaged here, too."""
    assert {name for name, _ in FILES} == {row.name for row in deliverables.deliverables(whole[1])}


@pytest.mark.parametrize("damage", [absent, empty, truncated], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name,file", FILES, ids=[file.removeprefix("artifacts/") for _, file in FILES])
def test_broken_file_is_named(copy, name, file, damage):
    """A full disk, a killed process, a forgotten notebook leave such files; their neighbours are not blamed for it."""
    root, cfg = copy
    if damage is absent and file in ONE_OF_MANY:
        absent((root / file).parent)
    else:
        damage(at(root, file))
    found = wrong(cfg)
    assert name in found and found[name]
    blamed = {row.name for row in deliverables.deliverables(cfg) if row.name in found and row.name != name}
    assert blamed <= ({"report"} if name == "data set" else set()), found


DAMAGES = [  # deliverable, file, damage, words of the reason
    (
        "data set",
        "data/manifest.json",
        edit_json(lambda v: v["splits"]["val2017"].update(images=99)),
        "counts 99 photos",
    ),
    ("data set", "data/annotations/instances_val2017.json", absent, "run notebook 01_download"),
    ("data check", f"{A}/data_sanity/class_counts.csv", put("train2017", np.nan), "no finite number"),
    ("data check", f"{A}/data_sanity/class_counts.csv", put("class", "zebra"), "other classes"),
    ("environment", f"{RUN}/environment.json", edit_json(lambda v: v.update(packages={})), "packages"),
    ("configuration", f"{RUN}/config.json", edit_json(lambda v: v.update(run_name="other")), "run other"),
    ("losses", f"{RUN}/losses.csv", put("loss", np.nan, 3), "column loss"),
    ("losses", f"{RUN}/losses.csv", put("loss", np.inf, 3), "column loss"),
    ("losses", f"{RUN}/losses.csv", put("step", 7), "steps are not"),
    ("losses", f"{RUN}/losses.csv", without_row(7), "ends at step 7"),
    ("epochs", f"{RUN}/epochs.csv", put("mAP", np.nan), "column mAP"),
    ("epochs", f"{RUN}/epochs.csv", put("train_loss", 0.5), "mean of losses.csv"),
    ("epochs", f"{RUN}/epochs.csv", without_row(1), "1 of the 2 epochs"),
    ("loss curves", f"{RUN}/loss_curves.png", flat, "flat"),
    ("best checkpoint", f"{RUN}/checkpoint_best", nan_weights, "not all finite"),
    ("best checkpoint", f"{RUN}/checkpoint_best/config.json", other_classes, "zebra"),
    ("last checkpoint", f"{RUN}/checkpoint_last", nan_weights, "not all finite"),
    ("last checkpoint", f"{RUN}/checkpoint_last/config.json", other_classes, "zebra"),
    ("profile", f"{A}/profiler/demo/breakdown.csv", put("ms", np.nan), "column ms"),
    ("profile", f"{A}/profiler/demo/breakdown.csv", put("share", 0.9), "add up to 1.80"),
    ("detections before training", f"{RUN}/detections_val2017_start.json", nan_in_json, "not valid JSON"),
    ("detections", f"{RUN}/detections_val2017.json", nan_in_json, "not valid JSON"),
    (
        "detections",
        f"{RUN}/detections_val2017.json",
        edit_json(lambda v: first(v, image_id=1)),
        "photo [1] does not belong",
    ),
    ("detections", f"{RUN}/detections_val2017.json", edit_json(lambda v: first(v, category_id=77)), "category"),
    ("detections", f"{RUN}/detections_val2017.json", edit_json(lambda v: first(v, score=1.5)), "between 0 and 1"),
    ("detections", f"{RUN}/detections_val2017.json", edit_json(lambda v: first(v, bbox=[1, 2, 3])), "no detection"),
    ("detections", f"{RUN}/detections_val2017.json", edit_json(lambda v: v.clear()), "no detection"),
    ("metrics", f"{A}/metrics.csv", put("mAP50", np.nan), "not a fraction"),
    ("metrics", f"{A}/metrics.csv", put("mAP", 0.77), "the row start says mAP 0.7700"),
    ("metrics", f"{A}/metrics.csv", put("mAP", 0.77, 1), "the row best says mAP 0.7700"),
    (
        "metrics",
        f"{RUN}/detections_val2017_start.json",
        edit_json(lambda v: v.pop(0)),
        "detections_val2017_start.json gives",
    ),
    ("metrics", f"{A}/metrics.csv", without_row(0), "start checkpoint"),
    ("metrics", f"{A}/metrics.csv", without_row(1), "no row"),
    ("metrics", f"{A}/metrics.csv", swap_first_rows, "start checkpoint"),
    (
        "metrics of the run",
        f"{RUN}/metrics.json",
        edit_json(lambda v: v["stats"].update(mAP=0.5)),
        "differ from metrics.csv",
    ),
    ("metrics of the run", f"{RUN}/metrics.json", nan_in_json, "not valid JSON"),
    ("metrics by class", f"{RUN}/per_class.csv", put("AP", 0.01), "the mean of AP"),
    ("metrics by class", f"{RUN}/per_class.csv", put("AP50", np.nan), "column AP50"),
    ("metrics by class", f"{RUN}/per_class.csv", put("class", "zebra"), "not those of the data set"),
    ("error summary", f"{A}/error_analysis/tide.json", edit_json(lambda v: v["counts"].update(Cls=5)), "errors.csv"),
    ("error summary", f"{A}/error_analysis/tide.json", edit_json(lambda v: v["delta_ap"].pop("Loc")), "keys"),
    (
        "error summary",
        f"{A}/error_analysis/tide.json",
        edit_json(lambda v: v["delta_ap"].update(Loc=12.0)),
        "fractions",
    ),
    ("error summary", f"{A}/error_analysis/tide.json", nan_in_json, "not valid JSON"),
    ("error table", f"{A}/error_analysis/errors.csv", put("area", np.nan), "column area"),
    ("error table", f"{A}/error_analysis/errors.csv", put("image_id", 5), "validation split"),
    ("error table", f"{A}/error_analysis/errors.csv", put("type", "odd"), "a type is unknown"),
    ("error table", f"{A}/error_analysis/errors.csv", put("score", np.nan), "has no score"),
    ("error pictures", f"{A}/error_analysis/duplicate", absent, "duplicate/ is missing"),
    ("synthetic data set", "data_synthetic/manifest.json", edit_json(lambda v: v.update(photos=3)), "counts 3 photos"),
    ("synthetic data set", "data_synthetic/manifest.json", edit_json(lambda v: v.update(kind="arm")), "another data"),
    ("arms of the experiment", f"{A}/synthetic_data/arms.csv", put("steps", 13), "trained for longer"),
    ("arms of the experiment", f"{A}/synthetic_data/arms.csv", put("mAP", np.nan), "column mAP"),
    ("executed notebooks", f"{A}/notebooks/03_train.ipynb", edit_notebook(fail_cell), "ended with an error"),
    (
        "executed notebooks",
        f"{A}/notebooks/03_train.ipynb",
        edit_notebook(lambda cell: cell.update(execution_count=None)),
        "not executed",
    ),
    ("executed notebooks", f"{A}/notebooks/timings.json", edit_json(lambda v: v.pop("02_sanity")), "no time"),
    ("report", f"{A}/report/index.html", network_page, "asks the network"),
    (
        "report",
        f"{A}/report/03_train.html",
        lambda path: path.write_text("x" * 15_000_001 + "</html>"),
        "larger than 15 MB",
    ),
    ("report", f"{A}/report/index.html", old_headline, "does not show the mAP"),
]


@pytest.mark.parametrize(
    "name,file,damage,words", DAMAGES, ids=[f"{row[1].rsplit('/', 1)[-1]}-{row[3]}" for row in DAMAGES]
)
def test_wrong_content_is_named(copy, name, file, damage, words):
    """Not a number, contradictions between two files, a schema that is not the agreed one."""
    root, cfg = copy
    damage(root / file)
    found = wrong(cfg)
    assert words in found.get(name, ""), found


def make(target: str, arguments: list[str], env: Path) -> subprocess.CompletedProcess:
    """A target of the Makefile, in an environment that is this one and that counts as installed."""
    (env / "bin").mkdir(parents=True)
    (env / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (env / "bin" / "python").chmod(0o755)
    wanted = subprocess.run(
        "cat requirements.txt pyproject.toml | cksum", shell=True, cwd=ROOT, capture_output=True, text=True
    ).stdout
    (env / ".assignment-installed").write_text(f"{ROOT} {wanted}")
    return subprocess.run(
        ["make", target, "PRESET=demo", f"ARGS={' '.join(map(shlex.quote, arguments))}"],
        cwd=ROOT,
        env={**os.environ, "VIRTUAL_ENV": str(env)},
        capture_output=True,
        text=True,
    )


def test_flag_file_and_exit_status(copy, capsys, tmp_path):
    """``make grade`` is for a script too: its status and deliverables.json say the same."""
    root, cfg = copy
    arguments = [
        "--preset",
        "demo",
        f"data_dir={root}/data",
        f"output_dir={root}/artifacts",
        f"classes={','.join(artifact_tree.CLASSES)}",
        "epochs=2",
    ]
    assert deliverables.main(arguments) == 0
    (root / RUN / "losses.csv").unlink()
    done = make("grade", arguments[2:], tmp_path / "env")
    assert done.returncode != 0
    assert deliverables.main(arguments) == 1
    shown = capsys.readouterr().out
    assert shown.splitlines()[-1] in done.stdout
    assert "MISSING  losses" in shown and 'make run PRESET=demo ARGS="--only 03' in shown
    document = orjson.loads((root / A / "grading.json").read_bytes())
    row = next(row for row in document["deliverables"] if row["name"] == "losses")
    assert (row["exists"], row["valid"], row["path"]) == (False, False, "artifacts/demo/losses.csv")
    assert document["valid"] == document["of"] - 1


def test_a_profile_that_was_not_asked_for_is_not_missing(copy):
    root, cfg = copy
    shutil.rmtree(root / A / "profiler")
    assert wrong(cfg) == {"profile": "demo is missing"}
    assert wrong(cfg.with_(profile=False)) == {}


def test_every_notebook_makes_something():
    """The commands in the grading name notebooks that there are."""
    from helpers.config import load_config

    made_by = {row.made_by for row in deliverables.deliverables(load_config("demo"))} - {"", "report"}
    there = {path.name[:2] for path in (ROOT / "notebooks").glob("0?_*.ipynb")}
    assert made_by == there
