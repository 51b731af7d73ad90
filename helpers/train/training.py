"""A run of the training loop: built, gone on with, logged, validated, saved.

The epoch itself is ``helpers.engine.train_epoch``. What is random there depends on the seed, the epoch and the photo,
and the rest of the state is in the checkpoint: on a CPU a resumed run is the uninterrupted one, bit for bit. On a GPU
some kernels add up in an order of their own, so it is the same but for that noise; with ``deterministic=true`` it is
the same.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from tqdm import tqdm

from helpers.config import Config
from helpers.devices import autocast, peak_megabytes, pick_device, resolve_precision, set_up, share_cores
from helpers.engine import Run, eval_loader, predict, train_epoch
from helpers.families.loading import load_detector
from helpers.files import UserError, write_json
from helpers.index import open_split
from helpers.metrics import Detections, coco_metrics, ground_truth
from helpers.model import parameter_groups, train_mode
from helpers.schedule import MovingAverage
from helpers.train import checkpoints, launch, processes, run_folder
from helpers.train.fast_path import take_fast_path
from helpers.train.faults import StopRequests, explained

FLUSH_EVERY = 20  # steps between reads of the losses from the device
PROGRESS = ("epoch", "batch", "step", "seconds")  # of a run, kept with every checkpoint
BAR = {"mininterval": 1.0, "ncols": 100}


def build(cfg: Config, paste: Callable | None = None) -> Run:
    """Data, model, optimizer and accelerator of a config, seeded, at step 0; ``paste`` as for :func:`train`."""
    if (paste is None) != (cfg.copy_paste == "none"):
        raise UserError(f"copy_paste={cfg.copy_paste} needs the step of paste_step(cfg), and no other value does.")
    set_seed(cfg.seed)
    train, val = open_split(cfg, "train2017"), open_split(cfg, "val2017")
    for name, split in (("training", train), ("validation", val)):
        if not len(split):
            raise UserError(
                f"The {name} split of {cfg.data_dir.name} holds no usable photo: see notebook 02_sanity, or give "
                "more data."
            )
    precision, note = resolve_precision(cfg.precision)
    device = pick_device()
    set_up(device, cfg.deterministic)
    share_cores(cfg.num_workers)
    AcceleratorState._reset_state()  # else a second run in one kernel could not have another precision
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision), cpu=device.type == "cpu")
    detector = load_detector(cfg, train.classes)
    detector.model.to(accelerator.device)
    if precision == "bf16" and accelerator.device.type == "cpu":
        detector.model.set_attn_implementation("eager")  # PyTorch's fused attention is slow in bf16 on a CPU
    take_fast_path(detector.model)
    train_mode(detector.model)
    averaged = MovingAverage(detector.model, cfg.ema) if cfg.ema else None
    optimizer = torch.optim.AdamW(parameter_groups(detector, cfg), fused=True)
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    stand_in = processes.get_ready(accelerator, detector, cfg.seed)
    model, optimizer = accelerator.prepare(detector.model, optimizer)
    run = Run(cfg, accelerator, detector, model, averaged, optimizer, train, val, paste, stand_in)
    run.notes += [note] if note else []
    crowded = int((np.diff(train.starts) > run.most_objects).sum()) if run.most_objects else 0
    if crowded:
        run.notes.append(
            f"{crowded} photos have more than {run.most_objects} objects: the {run.most_objects} largest of each are "
            "learnt from."
        )
    return run


def train(cfg: Config, on_flush: Callable[[Run], None] | None = None, paste: Callable | None = None) -> Run:
    """Train as the config says and leave the run's folder; ``on_flush`` is called whenever new losses are known.

    ``paste`` is the step that ``cfg.copy_paste`` asks for, made by ``synthetic_data.copy_paste``. With ``processes``
    others train, and the run that they leave is read; ``on_flush`` then sees its log.

    Raises UserError when the run exists already (unless ``resume`` or ``overwrite``) or is being trained by another
    process, when the data or the checkpoint is missing, for the faults that ``faults.explained`` knows, and when it is
    asked to stop (Ctrl-C, SIGTERM) after the checkpoint is written.
    """
    if cfg.processes > 1 and "WORLD_SIZE" not in os.environ:  # one of several has no more to start
        said = launch.train_in_processes(cfg, on_flush)
        run = build(cfg)
        _restore(run, cfg.run_dir / "checkpoint_last")
        run.notes = said
        return run
    with processes.together(), run_folder.only_process(cfg), explained(cfg):
        resume, sentences = processes.from_first(lambda: run_folder.start_from(cfg))
        run = build(cfg, paste)
        run.notes += sentences
        if resume:
            _restore(run, resume)
        if processes.rank() == 0:
            if not resume:
                run_folder.empty(cfg)  # only now: a misspelt model must not cost the run before
            write_json(cfg.run_dir / "config.json", run_folder.as_trained(cfg))
            write_json(cfg.run_dir / "environment.json", {**run_folder.environment(), "process": run_folder.process()})
        with StopRequests() as stop, _tensorboard(run) as board:
            while run.epoch < cfg.epochs and not stop.asked:
                began = time.perf_counter()
                with _Log(run, board, on_flush) as log:
                    train_epoch(run, stop.agree, log)
                run.seconds += time.perf_counter() - began
                _finish_epoch(run, stop, board)
            if run.epoch < cfg.epochs:
                save_checkpoint(run, board, cfg.run_dir / "checkpoint_last")
                raise UserError(
                    f"Stopped as asked after step {run.step} of {run.total_steps}; the checkpoint is written, go on "
                    "with resume=auto."
                )
    return run


class _Log:
    """An epoch's steps on a progress bar; every ``FLUSH_EVERY`` their losses go to ``run.losses`` and TensorBoard."""

    def __init__(self, run: Run, board, on_flush: Callable[[Run], None] | None):
        self.run, self.board, self.on_flush, self.waiting = run, board, on_flush, []

    def __enter__(self) -> _Log:
        run, epoch = self.run, f"epoch {self.run.epoch + 1}/{self.run.cfg.epochs}"
        done = run.batch // run.cfg.grad_accumulation
        bar = {"total": run.steps_per_epoch, "initial": done, "desc": epoch, "unit": "step", **BAR}
        self.bar = tqdm(**bar, disable=self.board is None)
        return self

    def __exit__(self, kind, *_) -> None:
        if self.waiting and kind is None:
            self._flush()
        self.bar.close()

    def __call__(self, row: dict) -> None:
        self.waiting.append(row)
        self.bar.update()
        if len(self.waiting) == FLUSH_EVERY:
            self._flush()

    def _flush(self) -> None:
        rows, self.waiting = self.waiting, []
        names = [name for name in rows[0] if torch.is_tensor(rows[0][name])]
        values = torch.stack([torch.stack([row[name].float() for name in names]) for row in rows])
        values = self.run.accelerator.reduce(values, "mean") if processes.several() else values
        for row, numbers in zip(rows, values.cpu().tolist() if self.board else ()):
            row |= zip(names, numbers)
            if row.get("skipped"):
                row["grad_norm"] = float("nan")  # the scaler left the step out, whose gradient was no number
            self.run.losses.append(row)
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self.board.add_scalar(f"train/{name}", value, row["step"])
        if self.board is None:
            return
        memory = {"peak_MB": f"{peak_megabytes():.0f}"} if torch.cuda.is_available() else {}
        self.bar.set_postfix(loss=f"{rows[-1]['loss']:.3f}", **memory)
        if self.on_flush:
            self.on_flush(self.run)


def _finish_epoch(run: Run, stop: StopRequests, board) -> None:
    """Validate, log and save, unless asked to stop. The log is written with the checkpoint, so the two always agree."""
    cfg, epoch = run.cfg, run.epoch + 1
    processes.same_statistics(run.evaluated.model)
    share = slice(processes.rank(), None, processes.world())
    loader = eval_loader(run.val, run.detector.preprocess, cfg.batch_size, cfg.num_workers, share)
    bar = {"total": len(loader), "desc": "validation", "unit": "batch", "leave": False, "disable": board is None}
    loader = tqdm(itertools.takewhile(lambda _: not stop.told, loader), **bar, **BAR)
    how = {"device": run.accelerator.device, "autocast": autocast(cfg.precision), "with_loss": True}
    detections, parts = predict(run.evaluated, loader, run.val.category_ids, **how)
    if stop.agree():
        return
    everyones = processes.gathered((detections, parts, run.notes))
    if everyones:
        _log_epoch(run, board, everyones)
    run.epoch, run.batch, run.seconds = epoch, 0, 0.0
    folder = save_checkpoint(run, board, cfg.run_dir / f"checkpoint_epoch_{epoch}")
    if everyones:
        _publish(run, folder)
        checkpoints.drop_old(cfg.run_dir, epoch)


def _log_epoch(run: Run, board, shares: list[tuple]) -> None:
    """An epoch's row, of the detections, mean losses and notes of each process: the losses count by photos."""
    epoch, detections = run.epoch + 1, Detections.joined([found for found, *_ in shares])
    read = [len(np.unique(found.image_id)) for found, *_ in shares]  # photos: each has detections
    names = max((parts for _, parts, _ in shares), key=len)
    parts = {name: sum(n / sum(read) * part[name] for n, (_, part, _) in zip(read, shares) if part) for name in names}
    run.notes[:] = dict.fromkeys(note for *_, notes in shares for note in notes)
    trained = pd.DataFrame([r for r in run.losses if r["epoch"] == epoch]).filter(like="loss").mean()
    row = trained.add_prefix("train_").to_dict() | {f"val_{name}": value for name, value in parts.items()}
    stats = coco_metrics(ground_truth(run.val), detections)["stats"]
    row |= {"mAP": stats["mAP"], "mAP50": stats["mAP50"], "seconds": run.seconds}
    row |= {"photos_per_s": len(run.train) / run.seconds, "peak_MB": peak_megabytes()}
    run.epochs.append({"epoch": epoch, "step": run.step, **row})
    for name, value in row.items():
        board.add_scalar(f"epoch/{name}", value, run.step)


def save_checkpoint(run: Run, board, folder: Path) -> Path:
    """A Hugging Face folder with the trainer's state in it, and the logs up to here; the first process writes it."""
    states = processes.gathered(checkpoints.random_state())
    if states is None:
        return folder
    progress = {name: getattr(run, name) for name in PROGRESS}
    progress["averaged"] = run.averaged.count if run.averaged is not None else 0

    def fill(target: Path) -> None:
        run.evaluated.save(target)
        checkpoints.save_state(target, run.detector.model, run.optimizer, run.accelerator.scaler, progress, states)

    run_folder.write_log(run)
    board.flush()  # the events that wait in its queue belong to this checkpoint
    return checkpoints.write_folder(folder, fill)


def _publish(run: Run, folder: Path) -> None:
    """Make ``folder``, of a finished epoch, checkpoint_last, and checkpoint_best too where it is the best so far."""
    if folder.name != "checkpoint_last":
        checkpoints.copy_folder(folder, run.cfg.run_dir / "checkpoint_last", with_state=True)
    scores, best = [row["mAP"] for row in run.epochs], run.cfg.run_dir / "checkpoint_best"
    if not best.exists() or scores and scores.index(max(scores)) == len(scores) - 1:
        checkpoints.copy_folder(folder, best, with_state=False)


def _restore(run: Run, folder: Path) -> None:
    """Put the run where ``folder`` was written."""
    if run.averaged is not None:
        source = load_detector(run.cfg, run.train.classes, source=folder, class_head="remap").model
        run.averaged.module.load_state_dict(source.state_dict())
    state = checkpoints.load_state(folder, run.detector.model, run.optimizer, run.accelerator.scaler)  # the RNG last
    if run.averaged is not None:
        run.averaged.count = state["averaged"]
    for name in PROGRESS:
        setattr(run, name, state[name])
    for name, rows in run_folder.read_log(folder.parent).items():  # written before the checkpoint, perhaps again after
        setattr(run, name, [row for row in rows if row["step"] <= run.step])
    if not run.batch and processes.rank() == 0:  # a kill may have come before these
        _publish(run, folder)
        checkpoints.drop_old(run.cfg.run_dir, run.epoch, later=False)
    run.notes.append(f"Going on from {folder.name} (step {run.step} of {run.total_steps}).")


def _tensorboard(run: Run):
    """TensorBoard's writer, of the first process; events after the resumed step are hidden there."""
    if processes.rank():
        return contextlib.nullcontext()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run.cfg.output_dir / "runs" / run.cfg.run_name, purge_step=run.step + 1 if run.step else None)
