"""Two processes (gloo, on the CPU) against one that sees the same photos in a step: numbers, files, failures, resume.

Two starts of ``torchrun`` do all trainings of two processes (tests/support/two_processes.py); those of one are done
here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import two_processes
from coco_folder import scenes_like_coco
from safetensors.torch import load_file
from transformers import DetrImageProcessor

from helpers import engine
from helpers.config import Config
from helpers.download.prepare import prepare
from helpers.engine import eval_loader, predict
from helpers.families.loading import load_detector
from helpers.files import ROOT, UserError
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth
from helpers.train import checkpoints
from helpers.train.training import train

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(1800)]  # on a busy machine
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@dataclass
class Launched:
    """What the processes left: how each training ended in each of them, and all that was printed."""

    folder: Path
    configs: dict[str, Config]
    printed: str

    def ended(self, name: str) -> list[dict]:
        return [json.loads((self.folder / f"{name}.{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Config]:
    """Trainings of one process, four photos a step; 13 photos: the last step has one, and the second process none.

    Nothing in them differs between one process and two: squares, so that no photo's padding hangs on its neighbours;
    no dropout; no norm that learns its statistics."""
    folder = tmp_path_factory.mktemp("processes")
    source = scenes_like_coco(folder / "coco", n_train=24, n_val=12)
    cfg = tiny.config(folder, source, "detr", max_train_images=13, max_val_images=5, overwrite=True)
    DetrImageProcessor(size={"height": 96, "width": 96}).save_pretrained(cfg.model)
    file = Path(cfg.model) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dropout": 0.0}))
    runs = {"whole": cfg.with_(run_name="whole"), "stopped": cfg.with_(run_name="stopped")}
    runs["accumulated"] = cfg.with_(run_name="accumulated", epochs=1, grad_accumulation=2)
    return runs


@pytest.fixture(scope="module")
def whole(alone):
    return train(alone["whole"])


def stopped_at(cfg: Config, step: int) -> None:
    """Train, and be told to stop before a step is done."""
    original, calls = engine.train_step, []

    def train_step(*args):
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    engine.train_step = train_step
    try:
        with pytest.raises(UserError, match=f"after step {step} of 12"):
            train(cfg)
    finally:
        engine.train_step = original


def pretrained(cfg: Config, folder: Path) -> Config:
    """A short training of the small checkpoint, which finds something in the scenes."""
    settings = {"model": "data/pretrained", "image_size": 128, "epochs": 1, "ema": 0.9, "data_dir": folder / "data"}
    settings |= {"classes": None, "top_k": 12, "max_train_images": 5, "max_val_images": 7}
    cfg = cfg.with_(run_name="dfine", **settings)
    prepare(cfg)
    return cfg


@pytest.fixture(scope="module")
def two(alone, tmp_path_factory) -> Launched:
    """All trainings of two processes, half of the photos each."""
    folder = tmp_path_factory.mktemp("launched")
    stopped_at(alone["stopped"], 6)
    halved = {name: cfg.with_(batch_size=cfg.batch_size // 2) for name, cfg in alone.items()}
    configs = {
        "two": halved["whole"].with_(run_name="two"),
        "two_accumulated": halved["accumulated"].with_(run_name="two_accumulated"),
        "from_one": halved["stopped"].with_(resume="auto"),
        "told": halved["whole"].with_(run_name="told"),
        "again": halved["whole"].with_(run_name="told", overwrite=False),
        "not_finite": halved["whole"].with_(run_name="not_finite"),
        "dfine": pretrained(halved["whole"], folder),
        "killed": halved["whole"].with_(run_name="killed"),
    }
    faults = {"told": "stop", "not_finite": "not finite", "killed": "kill"}
    plain = lambda cfg: {name: value for name, value in json.loads(cfg.model_dump_json()).items() if value is not None}
    jobs = [{"name": "gradients"}]
    jobs += [{"name": name, "config": plain(cfg), "fault": faults.get(name)} for name, cfg in configs.items()]
    printed = launch(folder, [job for job in jobs if job["name"] == "not_finite"])
    return Launched(folder, configs, printed + launch(folder, [job for job in jobs if job["name"] != "not_finite"]))


def launch(folder: Path, jobs: list[dict]) -> str:
    """Run them in two processes, which end with the first that fails; what was printed."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = ROOT / "tests" / "support" / "two_processes.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}  # torchrun leaves a folder behind
    with open(folder / "printed.txt", "w+") as out:
        subprocess.run([*command, str(script), str(folder)], env=env, stdout=out, stderr=out, timeout=1500)
        out.seek(0)
        return out.read()


def table(cfg: Config, name: str = "losses") -> pd.DataFrame:
    found = pd.read_csv(cfg.run_dir / f"{name}.csv")
    return found.drop(columns=["seconds", "photos_per_s", "peak_MB"], errors="ignore")


def assert_same_run(one: Config, other: Config) -> None:
    """Every loss part of every step, each of which hangs on all steps before, and the AP of every epoch.

    Not the validation's loss, which hangs on how photos lie in batches; nor the weights one by one: where the gradient
    is nothing but rounding, AdamW makes a whole step of it.
    """
    pd.testing.assert_frame_equal(table(one), table(other), **TOLERANCE)
    for column in ("mAP", "train_loss"):
        assert np.allclose(table(one, "epochs")[column], table(other, "epochs")[column], **TOLERANCE)


def test_two_are_one(whole, alone, two):
    """Twelve steps: the loss by the objects of all, each photo once, the log of all, one writer; the same AP on five
    photos, of which one process has three."""
    assert [ended["status"] for ended in two.ended("two")] == ["done", "done"], two.printed
    assert len(table(two.configs["two"])) == 12
    assert_same_run(alone["whole"], two.configs["two"])
    assert not list(two.configs["two"].run_dir.glob(".*")), "a second writer left something"
    assert json.loads((two.configs["two"].run_dir / "config.json").read_text())["processes"] == 2
    events = list((two.configs["two"].output_dir / "runs" / "two").glob("events*"))
    assert len(events) == 1


def test_gradients_are_exchanged_once_a_step(alone, two):
    """Two batches a step: accelerate and DDP would exchange after each."""
    train(alone["accumulated"])
    for ended in two.ended("two_accumulated"):
        assert ended["steps"] == 2 and ended["exchanges"] == 2
    assert_same_run(alone["accumulated"], two.configs["two_accumulated"])


@pytest.mark.parametrize("objects", two_processes.OBJECTS)
@pytest.mark.parametrize("family", two_processes.LOSSES)
def test_loss_is_that_of_the_whole_batch(two, family, objects):
    """The library divides by this process's objects, by all, or by all and once more by the processes."""
    halves = [load_file(two.folder / f"gradients.{rank}.safetensors")[f"{family}, {objects}"] for rank in (0, 1)]
    one = two_processes.gradients(family, two_processes.OBJECTS[objects], slice(None))
    both = torch.stack(halves, dim=1).flatten(0, 1) / 2  # photos 0, 2 and 1, 3; DDP takes the mean
    there = [k for k, count in enumerate(two_processes.OBJECTS[objects]) if count is not None]
    torch.testing.assert_close(both[there], one, rtol=1e-5, atol=1e-7)
    absent = [k for k in range(4) if k not in there]
    assert not both[absent].any()


def test_resume_from_one_to_two(whole, alone, two):
    """In the middle of an epoch; the second process has no state there."""
    ended = two.ended("from_one")
    assert all("step 6 of 12" in each["said"] for each in ended), ended
    assert_same_run(alone["whole"], two.configs["from_one"])


def test_told_to_stop_all_stop_after_the_same_step_and_one_goes_on(whole, alone, two):
    """Only the second was told; the checkpoint is whole, has both random states, and one process ends the run."""
    ended = two.ended("told")
    assert [each["status"] for each in ended] == ["said", "silent"], ended
    assert "Process 0 of 2: Stopped as asked after step 3 of 12" in ended[0]["said"]
    cfg = two.configs["told"]
    state = load_file(cfg.run_dir / "checkpoint_last" / "trainer_state.safetensors")
    assert {"rng.torch", "rng.torch.1"} <= state.keys() and not torch.equal(state["rng.torch"], state["rng.torch.1"])
    with pytest.raises(UserError, match="begun with processes=2"):
        train(cfg.with_(resume="auto"))
    copy = alone["whole"].with_(run_name="told_copy", resume="auto")
    shutil.copytree(cfg.run_dir, copy.run_dir)
    train(copy)
    assert_same_run(alone["whole"], copy)


def test_refused_by_one_all_leave(two):
    """Only the first looks at the folder of the run."""
    ended = two.ended("again")
    assert [each["status"] for each in ended] == ["said", "silent"], ended
    assert "The run told exists already" in ended[0]["said"]


def test_loss_that_is_no_number_names_the_process(two):
    """The second's batch; the first only sees that the gradient is none."""
    ended = two.ended("not_finite")
    assert [each["status"] for each in ended] == ["silent", "said"], ended
    assert "Process 1 of 2: The loss is not a finite number at step 3" in ended[1]["said"]
    folder = two.configs["not_finite"].run_dir / "failed_batch_of_process_1"
    assert checkpoints.damage(folder) is None
    assert max(each["seconds"] for each in ended) < 60


def test_killed_process_is_named(two):
    """It cannot say anything; the other does, once, and ends."""
    ended = json.loads((two.folder / "killed.0.json").read_text())
    assert ended["status"] == "said" and "Process 1 of 2 died without a word" in ended["said"], ended
    assert ended["seconds"] < 60 and not (two.folder / "killed.1.json").exists()


def test_averaged_weights_norms_and_denoising(two):
    """D-FINE: norms that learn statistics from the photos of one process, averaged weights, denoising queries that a
    process without objects lacks. The saved checkpoint, read by one process, has the AP that the two found."""
    cfg = two.configs["dfine"]
    assert [ended["status"] for ended in two.ended("dfine")] == ["done", "done"], two.printed
    assert two.ended("dfine")[0]["rng"] != two.ended("dfine")[1]["rng"], "the same dropout and noise in both"
    val = open_split(cfg, "val2017")
    detector = load_detector(cfg, val.classes, cfg.run_dir / "checkpoint_last")
    loader = eval_loader(val, detector.preprocess, cfg.batch_size, 0)
    found, losses = predict(detector, loader, val.category_ids, with_loss=True)
    epoch = table(cfg, "epochs").iloc[-1]
    assert len(set(found.image_id)) == len(val)
    assert epoch["mAP"] > 0.05
    assert np.isclose(coco_metrics(ground_truth(val), found)["stats"]["mAP"], epoch["mAP"], atol=1e-6)
    assert np.isclose(losses["loss"], epoch["val_loss"], rtol=1e-4)


def test_started_from_a_cell(alone):
    """``processes=2`` starts them; the log is seen while they train, Ctrl-C writes the checkpoint, and the cell that
    is run again goes on."""
    cfg = alone["whole"].with_(batch_size=2, processes=2, run_name="cell", epochs=500, overwrite=False)
    seen = []

    def interrupt(run) -> None:
        seen.append(len(run.losses))
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(UserError, match="Process 0 of 2: Stopped as asked after step") as stopped:
        train(cfg, on_flush=interrupt)
    step = int(str(stopped.value).split("after step ")[1].split()[0])
    assert 0 < seen[0] <= step == len(table(cfg)) and (cfg.run_dir / "checkpoint_last" / "trainer_state.json").exists()
    epochs, before = step // 4 + 1, set(Path(tempfile.gettempdir()).glob("torchelastic_*"))
    run = train(cfg.with_(resume="auto", epochs=epochs))
    assert set(Path(tempfile.gettempdir()).glob("torchelastic_*")) == before, "torchrun's folders go"
    assert run.epoch == epochs and len(run.losses) == run.step == 4 * epochs and len(run.epochs) == epochs
    assert any(f"Going on from checkpoint_last (step {step}" in note for note in run.notes)
