"""The training loop: schedule, determinism, resume, refusals and faults."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from safetensors.torch import load_file

from helpers.engine import to_coco
from helpers.files import UserError
from helpers.schedule import MovingAverage, lr_factor
from helpers.train import run_folder
from helpers.train.training import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(coco_source, tmp_path_factory):
    """A small data set and a tiny model of each family: {name: Config}."""
    folder = tmp_path_factory.mktemp("engine")
    return {family: tiny.config(folder, coco_source, family) for family in ("detr", "dfine")}


def weights(cfg, checkpoint: str = "last") -> dict:
    return load_file(cfg.run_dir / f"checkpoint_{checkpoint}" / "model.safetensors")


def assert_same_run(one, other) -> None:
    assert (one.run_dir / "losses.csv").read_text() == (other.run_dir / "losses.csv").read_text()
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=["detr", "dfine"])
def finished(request, base):
    """An uninterrupted run, the reference of those that are interrupted."""
    cfg = base[request.param].with_(run_name=f"{request.param}_whole")
    return cfg, train(cfg)


@pytest.mark.parametrize("scheduler", ["cosine", "constant", "flat_cosine"])
def test_schedule(scheduler):
    """A warm-up that never ends, or a cosine that starts again, shows only hours later."""
    factors = np.array([lr_factor(step, 200, scheduler, 0.1) for step in range(200)])
    assert np.allclose(factors[:20], np.arange(1, 21) / 20) and factors.max() == 1.0
    after = factors[20:]
    assert (np.diff(after) <= 1e-12).all()
    assert {
        "cosine": after[-1] < 0.001,
        "constant": after[-1] == 1,
        "flat_cosine": after[79] == 1 and after[-1] < 0.001,
    }[scheduler]
    assert lr_factor(0, 1, scheduler, 0.0) == 1.0


def test_average_forgets_the_start():
    """With the full decay from the first step, the averaged model kept the first steps' variances and found nothing: AP
    0.0004
    beside 0.34 of the trained weights after 1,500 steps."""
    model = torch.nn.BatchNorm1d(1)
    model.running_var.fill_(1000.0)
    averaged = MovingAverage(model, 0.999)
    averaged.update()
    model.running_var.fill_(1.0)
    for _step in range(300):
        averaged.update()
    assert averaged.module.running_var.item() < 1.01
    model.weight.data.fill_(5.0)
    averaged.update()
    assert 1 < averaged.module.weight.item() < 1.2, "it is an average, not a copy"


def test_run_leaves_what_it_promises(finished):
    cfg, run = finished
    losses, epochs = pd.read_csv(cfg.run_dir / "losses.csv"), pd.read_csv(cfg.run_dir / "epochs.csv")
    assert losses["step"].tolist() == list(range(1, 10)) and losses["epoch"].tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert np.isfinite(losses).all().all() and np.allclose(
        losses.filter(like="loss_").sum(axis=1), losses["loss"], rtol=1e-4
    )
    assert {"mAP", "mAP50", "val_loss", "train_loss"} < set(epochs) and len(epochs) == 3
    assert losses["lr"].iloc[0] > losses["lr"].iloc[-1] > 0 and (losses["lr_backbone"] < losses["lr"]).all()
    names = {path.name for path in cfg.run_dir.glob("checkpoint_*")}
    assert names == {
        "checkpoint_best",
        "checkpoint_last",
        "checkpoint_epoch_2",
        "checkpoint_epoch_3",
    }  # the last two stay
    assert not (cfg.run_dir / "checkpoint_best" / "trainer_state.json").exists()
    assert {path.suffix for path in cfg.run_dir.rglob("*") if path.is_file()} == {
        ".json",
        ".csv",
        ".safetensors",
    }  # no pickle
    assert list((cfg.output_dir / "runs" / cfg.run_name).glob("events*"))
    start = load_file(f"{cfg.model}/model.safetensors")
    trained = weights(cfg)
    moved = [
        name
        for name in trained
        if name in start and trained[name].shape == start[name].shape and not torch.equal(trained[name], start[name])
    ]
    assert any("decoder" in name for name in moved) and not any(
        "conv_stem" in name or "backbone.model.conv1" in name for name in moved
    )


def test_same_seed_same_numbers(finished):
    """Otherwise no two runs can be compared. Workers must not matter either."""
    cfg, _ = finished
    again = cfg.with_(run_name=cfg.run_name + "_again", num_workers=2)
    train(again)
    assert_same_run(cfg, again)


def test_resume_from_a_named_epoch_is_the_uninterrupted_run(finished):
    """Optimizer moments, schedule, data order, dropout and averaged weights: anything that is forgotten shows in the
    last bit.
    """
    cfg, _ = finished
    copy = cfg.with_(run_name=cfg.run_name + "_resumed", resume="2")
    shutil.copytree(cfg.run_dir, copy.run_dir)
    shutil.rmtree(copy.run_dir / "checkpoint_epoch_3")
    train(copy)
    assert_same_run(cfg, copy)


def test_damaged_checkpoint_is_passed_over(finished):
    """Half a file under its final name must be seen, and the one before taken."""
    cfg, _ = finished
    copy = cfg.with_(run_name=cfg.run_name + "_damaged", resume="auto")
    shutil.copytree(cfg.run_dir, copy.run_dir)
    for name in ("checkpoint_epoch_3", "checkpoint_last"):
        file = copy.run_dir / name / "trainer_state.safetensors"
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="damaged"):
        train(copy.with_(resume="3"))
    run = train(copy)
    assert any("checkpoint_epoch_2" in note for note in run.notes)
    assert_same_run(cfg, copy)


def test_existing_run_is_not_overwritten(finished, monkeypatch):
    """Two runs under one name: refused, unless asked for; the same cell run twice goes on instead."""
    cfg, run = finished
    before = (cfg.run_dir / "losses.csv").read_text()
    again = train(cfg)  # this very process began it: nothing is left to do
    assert again.step == run.step and (cfg.run_dir / "losses.csv").read_text() == before
    monkeypatch.setattr(run_folder, "process", lambda: "another")
    with pytest.raises(UserError, match="exists already"):
        train(cfg)
    assert (cfg.run_dir / "losses.csv").read_text() == before
    with pytest.raises(UserError, match="not a checkpoint to go on from"):
        train(cfg.with_(resume="17"))


def test_accumulated_batches_are_one_step(base):
    """grad_accumulation=3 of batch 4 makes one step of twelve photos an epoch, not three."""
    cfg = base["detr"].with_(run_name="accumulated", grad_accumulation=3, epochs=1)
    run = train(cfg)
    assert run.step == 1 and len(run.losses) == 1 and run.total_steps == 1


def test_bf16_on_the_cpu_learns_and_saves_fp32(base):
    """Mixed precision: the weights stay fp32."""
    cfg = base["detr"].with_(run_name="bf16", precision="bf16", epochs=1)
    run = train(cfg)
    assert np.isfinite(run.losses[-1]["loss"]) and all(
        v.dtype == torch.float32 for v in weights(cfg).values() if v.is_floating_point()
    )


def test_fp16_without_a_gpu_says_so(base):
    if torch.cuda.is_available():
        pytest.fail("this test is for machines without a GPU; give it one that hides it: CUDA_VISIBLE_DEVICES=")
    run = train(base["detr"].with_(run_name="fp16", precision="fp16", epochs=1))
    assert any("needs a GPU" in note for note in run.notes)


def test_edges_that_cross_are_a_box_of_no_area():
    """A trained D-FINE gave one box of 30,900 a height of -27 pixels, which other COCO tools refuse."""
    crossed = torch.tensor([[10.0, 40.0, 30.0, 20.0], [0.0, 0.0, 5.0, 8.0]])
    result = {"scores": torch.tensor([0.2, 0.9]), "labels": torch.tensor([0, 0]), "boxes": crossed}
    processor = SimpleNamespace(post_process_object_detection=lambda *_, **__: [result])
    output = SimpleNamespace(logits=torch.zeros(1, 2, 1), pred_boxes=torch.zeros(1, 2, 4))
    found = to_coco(output, processor, [7], torch.tensor([[50, 50]]), [3])
    assert [row["bbox"] for row in found] == [[0.0, 0.0, 5.0, 8.0], [10.0, 40.0, 20.0, 0.0]]
