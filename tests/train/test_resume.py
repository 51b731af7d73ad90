"""kill -9 and stop requests at chosen moments, then the same command with resume=auto: nothing is lost, and the end
is the same.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from forge import Forge
from safetensors.torch import load_file

from helpers.train import checkpoints, run_folder

SCORES = [0.1, 0.3, 0.2]  # the second epoch is the best one


@pytest.fixture(scope="module")
def forge():
    with Forge() as warm:
        yield warm


@pytest.fixture(scope="module")
def base(coco_source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    return {family: tiny.config(folder, coco_source, family) for family in ("detr", "dfine")}


@pytest.fixture(scope="module")
def whole(base, forge):
    """The uninterrupted run of each family."""
    configs = {family: cfg.with_(run_name=f"{family}_whole") for family, cfg in base.items()}
    for cfg in configs.values():
        ended = forge.train(cfg, scores=SCORES)
        assert ended.status == 0, ended.message
    return configs


def weights(cfg, checkpoint: str) -> dict:
    return load_file(cfg.run_dir / f"checkpoint_{checkpoint}" / "model.safetensors")


def epochs_of(cfg) -> pd.DataFrame:
    return pd.read_csv(cfg.run_dir / "epochs.csv").drop(columns=["seconds", "photos_per_s", "peak_MB"])


def scalars(cfg) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: tag -> step -> value; every step once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(cfg.output_dir / "runs" / cfg.run_name), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert len(steps) == len(set(steps)), f"{tag} has a step twice"
        found[tag] = {event.step: event.value for event in events.Scalars(tag)}
    return found


def assert_same_run(one, other) -> None:
    """Logs, learning rates, weights (last and best) and curves of two runs, bit for bit; and nothing left lying
    about.
    """
    assert (one.run_dir / "losses.csv").read_text() == (other.run_dir / "losses.csv").read_text()
    pd.testing.assert_frame_equal(epochs_of(one), epochs_of(other), check_exact=True)
    for checkpoint in ("last", "best"):
        a, b = weights(one, checkpoint), weights(other, checkpoint)
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a), checkpoint
    a, b = scalars(one), scalars(other)
    assert list(a["train/loss"]) == list(range(1, 10)) and list(a["epoch/mAP"]) == [3, 6, 9]
    for measured in ("epoch/seconds", "epoch/photos_per_s", "epoch/peak_MB"):
        assert a.pop(measured).keys() == b.pop(measured).keys()
    assert a == b
    assert {path.name for path in one.run_dir.iterdir()} == {path.name for path in other.run_dir.iterdir()}
    for cfg in (one, other):
        assert all(checkpoints.damage(folder) is None for folder in cfg.run_dir.glob("checkpoint_*"))


RANDOM = random.Random(7)
CHAINS = {  # (moment, its how-manieth time, the step that the process must have gone on from)
    "dfine": [
        ("step", RANDOM.randint(1, 3), 0),
        ("half a file", 1, 0),
        ("before last", 1, 0),
        ("inside a step", RANDOM.randint(1, 3), 3),
        ("validation", 1, 3),
        ("log", 1, 3),
        ("before the state", 1, 3),
        ("between the renames of last", 1, 3),
        ("between the renames of best", 1, 6),
        ("inside best", 1, 6),
        ("half removed", 1, 6),
    ],
    "detr": [
        ("before the checksums", 1, 0),
        ("before best", 1, 0),
        ("after the log", 1, 3),
        ("before the rename", 1, 3),
        ("before best", 2, 3),
        ("step", RANDOM.randint(1, 3), 6),
    ],
}


@pytest.mark.parametrize("family", CHAINS)
def test_killed_again_and_again(family, base, whole, forge):
    """At random steps, in the middle of a file, between two renames: whatever had its name is whole, and nothing is
    done twice that
    was saved once. Between the renames of checkpoint_last and checkpoint_best neither has its name."""
    cfg = base[family].with_(run_name=f"{family}_killed")
    for moment, count, step in CHAINS[family]:
        ended = forge.train(cfg, (moment, count), scores=SCORES)
        assert (ended.status, ended.began) == (-9, step), (moment, ended)
        assert moment == "half removed" or all(
            checkpoints.damage(path) is None for path in cfg.run_dir.glob("checkpoint_*")
        ), moment
        cfg = cfg.with_(resume="auto")
    ended = forge.train(cfg, scores=SCORES)
    assert ended.status == 0 and ended.began in (6, 9), ended
    assert_same_run(whole[family], cfg)


def test_killed_while_the_only_checkpoint_is_replaced(base, whole, forge):
    """Stopped twice in the first epoch there is checkpoint_last alone, and for a moment not even that."""
    cfg = base["dfine"].with_(run_name="only")
    assert forge.train(cfg, ("stop", 1), scores=SCORES).status == 1
    cfg = cfg.with_(resume="auto")
    ended = forge.train(cfg, ("stop", 1), ("between the renames of last", 1), scores=SCORES)
    assert (ended.status, ended.began) == (-9, 1) and not list(cfg.run_dir.glob("checkpoint_*"))
    ended = forge.train(cfg.with_(resume=None), scores=SCORES)
    assert ended.status == 1 and "exists already" in ended.message, "it must not be taken for an empty folder"
    ended = forge.train(cfg, scores=SCORES)
    assert (ended.status, ended.began) == (0, 2), ended
    assert_same_run(whole["dfine"], cfg)


def test_asked_to_stop(base, whole, forge):
    """SIGTERM of a VM that is taken away, to the workers too: in the middle of an epoch, and in a validation of many
    minutes.
    """
    cfg = base["detr"].with_(run_name="stopped", num_workers=1)
    ended = forge.train(cfg, ("stop", 2), scores=SCORES)
    assert ended.status == 1 and "resume=auto" in ended.message and "after step 2 of 9" in ended.message
    cfg = cfg.with_(resume="auto")
    ended = forge.train(cfg, ("stop in validation", 2), scores=SCORES)
    assert (ended.status, ended.began) == (1, 2) and "after step 6 of 9" in ended.message
    ended = forge.train(cfg, scores=SCORES)
    assert (ended.status, ended.began) == (0, 6), ended
    assert_same_run(whole["detr"], cfg)


def test_killed_under_bf16(base, forge):
    """Mixed precision: the same figures, within 1e-6."""
    one, other = (
        base["detr"].with_(run_name=name, precision="bf16", epochs=2) for name in ("bf16_whole", "bf16_killed")
    )
    assert forge.train(one).status == 0 and forge.train(other, ("step", 5)).status == -9
    assert forge.train(other.with_(resume="auto")).began == 3
    for table in ("losses.csv", "epochs.csv"):
        a, b = (
            pd.read_csv(cfg.run_dir / table).drop(columns=["seconds", "photos_per_s", "peak_MB"], errors="ignore")
            for cfg in (one, other)
        )
        assert np.abs(a - b).to_numpy().max() <= 1e-6


def test_full_disk(base, whole, forge):
    """Nothing half-written gets its final name, the checkpoints before stay, one sentence says it, and training goes
    on afterwards.
    """
    cfg = base["detr"].with_(run_name="full")
    ended = forge.train(cfg, ("disk full", 4), scores=SCORES)  # the second epoch's checkpoint
    assert ended.status == 1 and "no room" in ended.message and "resume=auto" in ended.message, ended
    assert {path.name for path in cfg.run_dir.glob("*checkpoint*")} == {
        "checkpoint_epoch_1",
        "checkpoint_last",
        "checkpoint_best",
    }
    assert all(checkpoints.damage(path) is None for path in cfg.run_dir.glob("checkpoint_*"))
    ended = forge.train(cfg.with_(resume="auto"), scores=SCORES)
    assert (ended.status, ended.began) == (0, 3), ended
    assert_same_run(whole["detr"], cfg)


@pytest.mark.parametrize("moment", ["worker", "worker of the validation"])
def test_data_loader_worker_that_dies_is_named(base, forge, moment):
    """The system kills it when memory is short; PyTorch says so in chained tracebacks, from inside whatever is
    running.
    """
    cfg = base["detr"].with_(run_name=moment.replace(" ", "_"), num_workers=2, batch_size=1, epochs=1)
    ended = forge.train(cfg, (moment, 1))
    assert ended.status == 1 and ended.message.count("\n") == 0, ended
    assert "A data-loader worker died (" in ended.message and "lower num_workers" in ended.message


def test_two_at_once(base, forge):
    """In its first epoch a run has no checkpoint yet: a second process would have taken its folder away."""
    cfg = base["detr"].with_(run_name="twice", overwrite=True)
    with run_folder.only_process(cfg):
        ended = forge.train(cfg)
    assert ended.status == 1 and "Another process is training the run twice" in ended.message
    assert not cfg.run_dir.exists()


def test_log_without_rows_is_no_file(tmp_path):
    """A first epoch that does not end leaves its losses, and no table of epochs that nobody can read."""
    run = SimpleNamespace(cfg=SimpleNamespace(run_dir=tmp_path), losses=[{"step": 1, "loss": 0.5}], epochs=[])
    run_folder.write_log(run)
    assert [file.name for file in tmp_path.iterdir()] == ["losses.csv"]
    assert run_folder.read_log(tmp_path) == {"losses": run.losses, "epochs": []}
