"""The assignment as it runs on COCO, on the real parts: FiftyOne's downloader with its database, the hub's client, a
DETR of
the true shape, papermill, all five notebooks. Only the two hosts are stand-ins on loopback, and the weights are
random.
"""

import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import torch
from mirror import Mirror

from helpers.files import ROOT


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A models folder with ``facebook/detr-resnet-50``: the published architecture, class names and processor, random
    weights.
    """
    from coco_folder import coco_category_ids
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

    folder = tmp_path_factory.mktemp("hub")
    names = dict.fromkeys(range(91), "N/A") | {key: name for name, key in coco_category_ids().items()}
    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(id2label=names, label2id={name: key for key, name in names.items()}))
    assert 41e6 < sum(p.numel() for p in model.parameters()) < 42e6
    model.save_pretrained(folder / "facebook" / "detr-resnet-50")
    DetrImageProcessor().save_pretrained(folder / "facebook" / "detr-resnet-50")
    return folder


@pytest.fixture(scope="module")
def executed(hub, coco_source, tmp_path_factory):
    """``python -m helpers.run --preset mini`` with few photos, small ones, and one epoch."""
    folder = tmp_path_factory.mktemp("true")
    values = {
        "max_train_images": 24,
        "max_val_images": 4,
        "image_size": 128,
        "batch_size": 4,
        "epochs": 1,
        "precision": "fp32",
        "arms": "real,on_the_fly",
        "arm_seeds": "0",
        "arm_steps": 5,  # of four photos: the probe of 06 needs 20 synthetic ones
    }
    with Mirror(coco=coco_source, models=hub) as mirror:
        mirror.run("mini", folder, values)
        asked = list(mirror.requests)
    return folder / "artifacts", asked


def test_photos_and_weights_came_from_the_two_hosts(executed):
    """A cache or a local copy that answered instead would prove nothing."""
    _, asked = executed
    assert any("annotations_trainval2017.zip" in url for url in asked)
    assert sum(url.endswith(".jpg") for url in asked) == 24 + 4
    assert any("facebook/detr-resnet-50" in url and url.endswith("model.safetensors") for url in asked)


def test_every_deliverable_is_there_and_holds(executed):
    artifacts, _ = executed
    rows = json.loads((artifacts / "grading.json").read_text())
    rows = rows if isinstance(rows, list) else rows["deliverables"]
    assert len(rows) >= 15 and all(row["valid"] for row in rows), [row for row in rows if not row["valid"]]
    assert (artifacts / "report" / "index.html").stat().st_size > 10_000
    metrics = pd.read_csv(artifacts / "metrics.csv")
    assert metrics["checkpoint"].tolist() == ["start", "best", "last", "last"]
    assert metrics["run"].tolist() == ["mini", "mini", "mini-real-100-s0", "mini-on_the_fly-100-s0"]


def test_checkpoint_is_a_detr_of_ten_classes(executed):
    """The saved folder says what it can detect, in the order of the class list."""
    artifacts, _ = executed
    config = json.loads((artifacts / "mini" / "checkpoint_best" / "config.json").read_text())
    manifest = json.loads((artifacts.parent / "data" / "mini" / "manifest.json").read_text())
    assert list(config["id2label"].values()) == manifest["classes"] and len(manifest["classes"]) == 10
    assert config["model_type"] == "detr"


def test_papermill_alone_works_from_another_folder(executed, tmp_path):
    """``papermill notebooks/03_train.ipynb out.ipynb -p epochs 1`` must not depend on the folder that it is called
    from; and a run can start from what another one left.
    """
    artifacts, _ = executed
    values = {
        "preset": "mini",
        "data_dir": artifacts.parent / "data" / "mini",
        "output_dir": tmp_path / "out",
        "image_size": 96,
        "batch_size": 4,
        "epochs": 1,
        "num_workers": 0,
        "profile": False,
        "precision": "fp32",
        "model": artifacts / "mini" / "checkpoint_best",
    }
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / "03_train.ipynb"),
        "x.ipynb",
        "--no-progress-bar",
    ]
    for name, value in values.items():
        command += ["-p", name, str(value)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "x.ipynb").exists() and (
        tmp_path / "out" / "mini" / "checkpoint_best" / "model.safetensors"
    ).exists()


def test_live_curves_leave_one_figure(executed):
    """A display per update would fill the executed notebook, and the page made of it."""
    artifacts, _ = executed
    cells = json.loads((artifacts / "notebooks" / "03_train.ipynb").read_text())["cells"]
    live = next(cell for cell in cells if "LiveCurves()" in "".join(cell["source"]))
    assert sum("image/png" in output.get("data", {}) for output in live["outputs"]) == 1  # the curves, once


def test_every_notebook_runs_a_second_time(executed):
    """Fresh kernels on what the first time left, and without the two hosts: nothing is fetched, trained or listed
    twice.
    """
    artifacts, _ = executed
    losses = (artifacts / "mini" / "losses.csv").read_bytes()
    values = {**json.loads((artifacts / "mini" / "config.json").read_text()), "resume": "auto", "profile": False}
    names = (
        "data_dir",
        "output_dir",
        "max_train_images",
        "max_val_images",
        "image_size",
        "batch_size",
        "epochs",
        "num_workers",
        "precision",
        "arms",
        "arm_seeds",
        "arm_steps",
        "resume",
        "profile",
    )
    env = {**os.environ, "HF_HOME": str(artifacts.parent / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "helpers.run", "--preset", "mini", *(f"{name}={values[name]}" for name in names)],
        env=env,
        cwd=artifacts,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (artifacts / "mini" / "losses.csv").read_bytes() == losses
    assert pd.read_csv(artifacts / "metrics.csv")["checkpoint"].tolist() == ["start", "best", "last", "last"]
