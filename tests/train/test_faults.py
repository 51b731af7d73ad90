"""What goes wrong while a training runs: one sentence, nothing lost, and the way on."""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import resource
import shutil
import signal
import weakref

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from accelerate.optimizer import patch_optimizer_step
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from helpers import engine
from helpers.config import load_config
from helpers.engine import train_loader, train_step
from helpers.evaluate.checkpoint import record_metrics
from helpers.files import UserError, save_figure, write_atomic, write_json
from helpers.grading import checks
from helpers.grading.readers import Invalid
from helpers.metrics import STATS, save_detections
from helpers.train import checkpoints, faults, run_folder, training
from helpers.train.training import build, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(coco_source, tmp_path_factory):
    return tiny.config(tmp_path_factory.mktemp("faults"), coco_source, "detr", epochs=2)


def at_call(monkeypatch, owner, name: str, number: int, act) -> None:
    """Let the ``number``-th call of ``owner.name`` return ``act(its result)``."""
    original, calls = getattr(owner, name), []

    def replaced(*args, **kwargs):
        result = original(*args, **kwargs)
        calls.append(1)
        return act(result) if len(calls) == number else result

    monkeypatch.setattr(owner, name, replaced)


def raise_(error: Exception):
    def act(_):
        raise error

    return act


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_number_that_is_not_finite_stops_with_the_photos(base, monkeypatch, what):
    """Training on would destroy the weights in one step; a gradient can be NaN under a finite loss. Stop before it,
    name the photos,
    keep the batch for a replay, leave the checkpoint."""
    cfg = base.with_(run_name=f"nan_{what}")
    batches = []
    at_call(monkeypatch, engine, "train_loader", 2, lambda loader: [batches.append(batch) or batch for batch in loader])
    if what == "loss":  # of the fifth step
        real, calls = training.take_fast_path, []

        def poisoned(model):
            real(model)
            loss = model.loss_function

            def broken(*a, **k):
                if model.training:
                    calls.append(1)
                value, parts, auxiliary = loss(*a, **k)
                return value * (math.nan if len(calls) == 5 else 1), parts, auxiliary

            model.loss_function = broken

        monkeypatch.setattr(training, "take_fast_path", poisoned)
    else:
        at_call(monkeypatch, training.Accelerator, "clip_grad_norm_", 5, lambda norm: norm * math.nan)
    with pytest.raises(UserError, match=f"The {what} is not a finite number at step 5") as caught:
        train(cfg)
    replay = faults.load_batch(cfg.run_dir / "failed_batch")
    assert replay["image_ids"] == batches[1]["image_ids"] and ", ".join(map(str, replay["image_ids"])) in str(
        caught.value
    )
    assert torch.equal(replay["pixel_values"], batches[1]["pixel_values"])
    for name in ("sizes", "orig_sizes"):
        assert list(map(tuple, replay[name])) == batches[1][name]
    for one, other in zip(replay["labels"], batches[1]["labels"], strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in other)
    assert {path.suffix for path in (cfg.run_dir / "failed_batch").iterdir()} == {".json", ".safetensors"}, "no pickle"
    assert all(checkpoints.damage(path) is None for path in cfg.run_dir.glob("checkpoint_*"))
    saved = load_file(cfg.run_dir / "checkpoint_last" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values() if value.is_floating_point())
    monkeypatch.undo()
    assert math.isfinite(train_step(build(cfg), [replay])["loss"])


def test_batch_with_nan_boxes_can_be_kept(tmp_path):
    """NaN is no JSON: the batch that causes the fault would be the one that cannot be saved."""
    batch = {
        "pixel_values": torch.zeros(2, 3, 4, 5, dtype=torch.uint8),
        "sizes": [(4, 5), (4, 5)],
        "image_ids": [3, 9],
        "unreadable": [7],
        "labels": [
            {"class_labels": torch.tensor([1]), "boxes": torch.full((1, 4), math.nan)},
            {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
        ],
    }
    back = faults.load_batch(faults.save_batch(tmp_path / "b", batch, 3))
    assert (
        back["labels"][0]["boxes"].isnan().all()
        and back["labels"][1]["boxes"].shape == (0, 4)
        and back["unreadable"] == [7]
    )
    stand_in = {**batch, "image_ids": []}  # of one of several processes, which has no photo left for the step
    assert len(faults.load_batch(faults.save_batch(tmp_path / "c", stand_in, 3))["labels"]) == 2


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize(
    "owner, name, error",
    [
        (engine, "loss_parts", OUT_OF_MEMORY[0]),
        (training.Accelerator, "backward", OUT_OF_MEMORY[0]),
        (torch.optim.AdamW, "step", OUT_OF_MEMORY[0]),
        (training, "predict", OUT_OF_MEMORY[0]),
        (training, "load_detector", OUT_OF_MEMORY[0]),
        (training.Accelerator, "backward", OUT_OF_MEMORY[1]),
        (training.Accelerator, "backward", OUT_OF_MEMORY[2]),
        (engine, "loss_parts", OUT_OF_MEMORY[3]),
        (training.Accelerator, "backward", OUT_OF_MEMORY[4]),
        (training, "predict", OUT_OF_MEMORY[5]),
    ],
    ids=["forward", "backward", "optimizer", "validation", "loading", "driver", "cuBLAS", "cuDNN", "CPU", "Python"],
)
def test_out_of_memory_says_what_to_lower(base, monkeypatch, owner, name, error):
    """It comes in the backward pass as well as in the forward pass, and in a traceback of forty frames."""
    at_call(monkeypatch, owner, name, 1, raise_(error))
    with pytest.raises(UserError, match="halve batch_size .* lower image_size") as caught:
        train(base.with_(run_name="memory", overwrite=True))
    assert "batch_size=4 at image_size=96" in str(caught.value) and "\n" not in str(caught.value)


def test_failed_step_lets_go_of_what_it_held(base):
    """A notebook keeps the last error: with it the GPU's memory stayed taken, and a dead worker was reported again
    and again.
    """
    held = []

    def step():
        batch = torch.zeros(3)
        held.append(weakref.ref(batch))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(UserError) as kept, faults.explained(base):
        step()
    assert held[0]() is None and kept.value.__suppress_context__


def test_an_error_of_ours_stays_one(base, monkeypatch):
    """A bug must not be taken for a lack of memory."""
    at_call(monkeypatch, engine, "loss_parts", 1, raise_(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(base.with_(run_name="memory", overwrite=True))


def test_full_disk_is_one_sentence(base, tmp_path):
    """The system's number is in an OSError, and in the text only of an error of safetensors."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            save_file({"x": torch.zeros(9000)}, tmp_path / "x.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def fail(error: Exception):
        raise error

    words = "no room to write in .*make room. Go on with resume=auto"
    for fill in (
        no_room,
        lambda: fail(OSError(errno.EDQUOT, "Disk quota exceeded")),
        lambda: fail(OSError(errno.ENOSPC, "No space left")),
    ):
        with pytest.raises(UserError, match=words), faults.explained(base):
            fill()
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(FileNotFoundError), faults.explained(base):
        (tmp_path / "nothing" / "x").write_text("")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_detections(
            path, [{"image_id": k, "category_id": 1, "bbox": [0.5] * 4, "score": 0.5} for k in range(500)]
        ),
        lambda path: write_json(path, list(range(5000))),
        lambda path: write_atomic(path, "<p>a report</p>" * 1000),
        lambda path: save_figure(Figure(), path),
        lambda path: [record_metrics(path, f"run{k}", "best", dict.fromkeys(STATS, 0.123456789)) for k in range(50)],
    ],
    ids=["detections", "JSON", "HTML", "figure", "metrics.csv"],
)
def test_full_disk_leaves_the_file_before(tmp_path, write):
    """Half a report, table or list of detections under its final name would be read, or graded, as a whole one."""
    path, limits = tmp_path / "file", resource.getrlimit(resource.RLIMIT_FSIZE)
    earlier = record_metrics(path, "earlier", "best", dict.fromkeys(STATS, 0.5)).to_csv(index=False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text().startswith(earlier) and path.stat().st_size <= 1000 and path.read_text().endswith("\n")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_photo_that_breaks_during_training_is_left_out_and_said(base, tmp_path, monkeypatch):
    """The disk fails after the checks: training goes on without the photo, even where it is a whole batch and the last
    one; a run that
    was stopped behind it goes on at the right photo, with no line of the log missing."""
    cfg = base.with_(run_name="unreadable", epochs=1, batch_size=1, data_dir=tmp_path / "data")
    shutil.copytree(base.data_dir, cfg.data_dir)
    index = build(cfg).train
    order = [int(batch[0]) for batch in engine.epoch_batches(index, 1, cfg.seed, 0)]
    for victim in (order[1], order[-1]):
        index.path(victim).unlink()
        index.path(victim).write_bytes(b"no photo")
    run = train(cfg)
    lost = [int(index.image_ids[order[k]]) for k in (1, -1)]
    assert all(any(str([photo]) in note and "could not be read" in note for note in run.notes) for photo in lost)
    assert run.step == 10 and [row["step"] for row in run.losses] == list(range(1, 11))
    stopped = cfg.with_(run_name="unreadable_stopped")
    with monkeypatch.context() as patch:
        at_call(patch, engine, "train_step", 4, lambda result: (os.kill(os.getpid(), signal.SIGTERM), result)[1])
        with pytest.raises(UserError, match="after step 4"):
            train(stopped)
    assert train(stopped.with_(resume="auto")).losses == run.losses


def test_run_before_survives_a_misspelt_model(base):
    """overwrite=True with a model that is not there: the finished run must not be gone."""
    cfg = base.with_(run_name="kept", epochs=1)
    train(cfg)
    before = {path.name: path.read_bytes() for path in cfg.run_dir.rglob("*") if path.is_file()}
    with pytest.raises(UserError):
        train(cfg.with_(overwrite=True, model=str(base.data_dir), epochs=2))  # a folder without a model
    assert {path.name: path.read_bytes() for path in cfg.run_dir.rglob("*") if path.is_file()} == before


def test_folder_that_is_no_run_is_left_alone(base):
    """output_dir=~ run_name=Documents must not empty that folder."""
    folder = base.output_dir / "Documents"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="holds something that is no run"):
        train(base.with_(run_name="Documents", overwrite=True))
    assert (folder / "thesis.txt").read_text() == "years"


def test_nothing_is_begun_anew_over_damaged_checkpoints(base):
    """resume=auto without one whole checkpoint: it would delete what a person may still repair, checkpoint_best
    included.
    """
    cfg = base.with_(run_name="all_damaged", epochs=1)
    train(cfg)
    for name in ("checkpoint_epoch_1", "checkpoint_last"):
        file = cfg.run_dir / name / "trainer_state.json"
        file.unlink()
        file.write_text("{")
    with pytest.raises(UserError, match="no whole checkpoint to go on from.*checkpoint_last is damaged"):
        train(cfg.with_(resume="auto"))
    assert checkpoints.damage(cfg.run_dir / "checkpoint_best") is None
    assert train(cfg.with_(resume="auto", overwrite=True)).epoch == 1


def test_going_on_from_another_runs_folder(base):
    """resume=FOLDER: its log comes along, and the other run stays as it is."""
    one = base.with_(run_name="one", epochs=1)
    run = train(one)
    other = train(base.with_(run_name="other", resume=str(one.run_dir / "checkpoint_last")))
    assert (
        other.losses[:3] == run.losses
        and other.step == 6
        and checkpoints.damage(one.run_dir / "checkpoint_last") is None
    )


def test_checkpoints_of_a_training_that_was_left_go(tmp_path):
    """After resume=2 with another recipe, resume=auto must not take the old epoch 5; a copy that someone made stays."""
    for name in ("1", "2", "3", "5", "3_mine"):
        (tmp_path / f"checkpoint_epoch_{name}").mkdir()
    checkpoints.drop_old(tmp_path, 3, later=False)
    assert {path.name[17:] for path in tmp_path.iterdir()} == {"2", "3", "5", "3_mine"}
    checkpoints.drop_old(tmp_path, 3)
    assert {path.name[17:] for path in tmp_path.iterdir()} == {"2", "3", "3_mine"}


def test_random_states_come_back(base, tmp_path):
    """Dropout and denoising draw from PyTorch's generator; whatever a student adds may draw from the two others."""
    import random

    run = build(base)
    checkpoints.save_state(tmp_path, run.detector.model, run.optimizer, None, {})
    first = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    checkpoints.load_state(tmp_path, run.detector.model, run.optimizer, None)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == first
    assert json.loads((tmp_path / "trainer_state.json").read_text())["rng_numpy"][0] == "MT19937"


def test_moments_come_back_in_the_weights_layout(tmp_path):
    """On a GPU convolutions are channels-last, and a fused step refuses moments that are not (on a CPU it mixes up
    their numbers): a killed training could not go on there.
    """

    def step(model, optimizer) -> None:
        model(torch.arange(2 * 4 * 64.0).view(2, 4, 8, 8).sin()).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer)
    other = copy.deepcopy(model)
    again = torch.optim.AdamW(other.parameters(), fused=True)
    checkpoints.save_state(tmp_path, model, optimizer, None, {})
    checkpoints.load_state(tmp_path, other, again, None)
    moments = again.state[other.weight]["exp_avg"]
    assert moments.stride() == other.weight.stride() != moments.contiguous().stride()
    step(model, optimizer)
    step(other, again)
    assert torch.equal(model.weight, other.weight)


def test_loader_starts_where_it_is_told(base):
    """The sampler's position: batches 2.. of an epoch are the same batches whether or not the others were read
    before.
    """
    run = build(base)
    whole, rest = ([batch["image_ids"] for batch in train_loader(run, 1, start)] for start in (0, 2))
    assert whole[2:] == rest and len(whole) == 3


@pytest.fixture
def fp16(monkeypatch):
    """The fp16 of a GPU on the CPU: accelerate's scaler, with the fused AdamW, around a computation in fp32."""
    build = training.build

    def with_scaler(*given):
        run = build(*given)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        run.accelerator.scaler = run.optimizer.scaler = scaler
        run.accelerator.native_amp = True
        monkeypatch.setattr(type(run.accelerator), "mixed_precision", property(lambda _: "fp16"))
        run.optimizer._accelerate_step_called = False
        run.optimizer._optimizer_original_step_method = run.optimizer.optimizer.step
        run.optimizer._optimizer_patched_step_method = patch_optimizer_step(run.optimizer, run.optimizer.optimizer.step)
        return run

    monkeypatch.setattr(training, "build", with_scaler)


def spoilt(monkeypatch, which, seen: list) -> None:
    """The gradient of the steps ``which(number)`` overflows; ``seen`` gets the weights before each step."""
    original = training.Accelerator.clip_grad_norm_

    def clip(self, parameters, *args):
        parameters = list(parameters)
        trained = [p for p in parameters if p.grad is not None]
        seen.append(trained[-1].detach().clone())
        if which(len(seen)):
            trained[-1].grad[...] = math.inf
        return original(self, parameters, *args)

    monkeypatch.setattr(training.Accelerator, "clip_grad_norm_", clip)


def test_step_that_the_scaler_leaves_out(base, monkeypatch, fp16):
    """fp16 overflows now and then: the step is left out, said, and graded as what it is; averaged weights do not count
    it.

    ``optimizer.step_was_skipped`` does not see it with a fused optimizer.
    """
    seen: list[torch.Tensor] = []
    spoilt(monkeypatch, lambda step: step == 3, seen)
    cfg = base.with_(run_name="overflow", ema=0.9, overwrite=True)
    run = train(cfg)
    assert torch.equal(seen[2], seen[3]) and not torch.equal(seen[1], seen[2]), "the weights of the left-out step moved"
    assert run.averaged.count == run.step - 1 and run.step == 6
    assert run.accelerator.scaler.get_scale() == 512
    table = pd.read_csv(cfg.run_dir / "losses.csv")
    assert (
        table["skipped"].tolist() == [0, 0, 1, 0, 0, 0]
        and table["grad_norm"].isna().tolist() == [False, False, True] + [False] * 3
    )
    checks.losses(cfg, cfg.run_dir / "losses.csv")
    write_atomic(cfg.run_dir / "losses.csv", table.assign(skipped=0).to_csv(index=False))
    with pytest.raises(Invalid, match="grad_norm that is no finite number"):
        checks.losses(cfg, cfg.run_dir / "losses.csv")


def test_gradient_that_stays_nan_ends_the_run(base, monkeypatch, fp16):
    """A scaler leaves out every step of a broken model, and the run "finishes" without having learnt anything."""
    spoilt(monkeypatch, lambda step: step > 2, [])
    cfg = base.with_(run_name="lost", epochs=10, overwrite=True)
    with pytest.raises(
        UserError, match="gradient is not a finite number at step 22 for the 20th step in a row"
    ) as caught:
        train(cfg)
    assert "failed_batch/" in str(caught.value) and (cfg.run_dir / "failed_batch" / "batch.safetensors").is_file()
    assert len(faults.load_batch(cfg.run_dir / "failed_batch")["image_ids"]) == 4
    assert (cfg.run_dir / "checkpoint_last").is_dir()


def test_kernel_without_a_fixed_order_is_named(base, monkeypatch):
    """``deterministic=true`` with a model that samples its feature maps: on a GPU there is no such kernel."""
    error = RuntimeError("grid_sampler_2d_backward_cuda does not have a deterministic implementation, but you set ...")
    at_call(monkeypatch, training.Accelerator, "backward", 1, raise_(error))
    with pytest.raises(
        UserError, match="deterministic=true cannot be had .*grid_sampler_2d_backward_cuda.* leave it out"
    ):
        train(base.with_(run_name="unordered", overwrite=True))


def test_resume_with_other_settings_says_what_changes(tmp_path):
    """Within an epoch the batches follow from the batch size and the seed: the rest would be photos seen before."""
    cfg = load_config("demo", output_dir=tmp_path)
    folder = cfg.run_dir / "checkpoint_last"
    folder.mkdir(parents=True)
    write_json(cfg.run_dir / "config.json", cfg.as_json())
    write_json(folder / "trainer_state.json", {"batch": 3})
    assert run_folder.changed_settings(cfg, folder) == []
    for change in ({"batch_size": 3}, {"seed": 7}, {"grad_accumulation": 2}):
        with pytest.raises(UserError, match=f"lies within an epoch that was begun with {next(iter(change))}="):
            run_folder.changed_settings(cfg.with_(**change), folder)
    (sentence,) = run_folder.changed_settings(cfg.with_(epochs=9, image_size=384), folder)
    assert f"image_size=384 (was {cfg.image_size}), epochs=9 (was {cfg.epochs})" in sentence
    write_json(folder / "trainer_state.json", {"batch": 0})
    taken, kept = run_folder.changed_settings(cfg.with_(batch_size=3, lr=0.5), folder)
    assert f"batch_size=3 (was {cfg.batch_size})" in taken and f"lr={cfg.lr} stay" in kept
