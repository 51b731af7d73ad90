"""The training loop.

One epoch: shuffled batches -> forward -> loss -> backward -> clip -> AdamW -> schedule; then validation and a
checkpoint. Everything random in a batch (order, augmentation) depends on the seed, the epoch and the photo alone, and
the rest of the state is in the checkpoint, so a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm import tqdm

from helpers.augment import augmentation
from helpers.config import Config
from helpers.dataset import CocoDetection, epoch_batches, leave_signals_to_the_loop
from helpers.devices import autocast, environment, named_range, resolve_precision
from helpers.engine import MovingAverage, eval_loader, lr_factor, predict
from helpers.files import UserError, write_atomic, write_json
from helpers.index import CocoIndex, open_split
from helpers.metrics import coco_metrics, ground_truth
from helpers.model import Detector, load_detector, loss_parts, parameter_groups, train_mode
from helpers.train import checkpoints, runfolder
from helpers.train.fast_path import take_fast_path
from helpers.train.faults import StopRequests, explained, not_finite

FLUSH_EVERY = 20  # steps between reads of the losses from the device


@dataclass
class Run:
    """What the loop works with, and how far it has come."""

    cfg: Config
    accelerator: Accelerator
    detector: Detector
    model: torch.nn.Module  # the detector's model, as accelerate wraps it
    averaged: MovingAverage | None
    optimizer: torch.optim.Optimizer
    train: CocoIndex
    val: CocoIndex
    epoch: int = 0  # epochs finished
    paste: Callable | None = None  # copy-paste in the loader
    batch: int = 0  # batches of the current epoch that are done with
    step: int = 0  # optimizer steps finished
    seconds: float = 0.0  # that the current epoch's steps took
    best: float = -1.0
    losses: list[dict] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences for the reader

    @property
    def groups_per_epoch(self) -> int:
        batches = math.ceil(len(self.train) / self.cfg.batch_size) // self.accelerator.num_processes
        return math.ceil(max(1, batches) / self.cfg.grad_accumulation)

    @property
    def total_steps(self) -> int:
        return self.cfg.epochs * self.groups_per_epoch

    @property
    def most_objects(self) -> int | None:
        """So many objects of a photo are learnt from: Q queries can be taught no more, and D-FINE's memory grows with
        their square.
        """
        return getattr(self.detector.model.config, "num_queries", None)

    @property
    def eval_model(self) -> torch.nn.Module:
        """The model that is validated and saved: the averaged weights where there are any."""
        return self.averaged.module if self.averaged is not None else self.detector.model

    def progress(self) -> dict:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "averaged": self.averaged.count if self.averaged is not None else 0,
        }


def build(cfg: Config, paste: Callable | None = None) -> Run:
    """Data, model, optimizer and accelerator of a config, seeded, at step 0; ``paste`` as for :func:`train`."""
    if (paste is None) != (cfg.copy_paste == "none"):
        raise UserError("copy_paste needs train(cfg, paste=paste_step(cfg)), with paste_step of synthetic_data.")
    set_seed(cfg.seed)
    train, val = open_split(cfg, "train2017"), open_split(cfg, "val2017")
    for name, split in (("training", train), ("validation", val)):
        if not len(split):
            raise UserError(
                f"The {name} split of {cfg.data_dir.name} holds no usable photo: see notebook 02_sanity, or give "
                f"more data."
            )
    precision, note = resolve_precision(cfg.precision)
    AcceleratorState._reset_state()  # else a second run in one kernel could not have another precision
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision), cpu=not torch.cuda.is_available()
    )
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
    model, optimizer = accelerator.prepare(detector.model, optimizer)
    run = Run(
        cfg, accelerator, detector, model, averaged, optimizer, train, val, paste=paste, notes=[note] if note else []
    )
    crowded = int((np.diff(train.starts) > run.most_objects).sum()) if run.most_objects else 0
    if crowded:
        run.notes.append(
            f"{crowded} photos have more than {run.most_objects} objects: the {run.most_objects} largest of each "
            f"are learnt from."
        )
    return run


def train_loader(run: Run, epoch: int, start: int = 0) -> DataLoader:
    """An epoch's batches from number ``start`` on; this process's share where several train together."""
    cfg, rank, world = run.cfg, run.accelerator.process_index, run.accelerator.num_processes
    dataset = CocoDetection(
        run.train, run.detector.preprocess.resize, augmentation(cfg.augment), cfg.seed, run.most_objects, run.paste
    )
    dataset.epoch = epoch
    batches = epoch_batches(run.train, cfg.batch_size, cfg.seed, epoch)
    batches = batches[: max(1, len(batches) // world) * world][rank::world][start:]
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=cfg.num_workers,
        collate_fn=run.detector.preprocess.collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_the_loop,
        generator=torch.Generator(),
    )  # its own: making a loader draws a number


def set_learning_rate(run: Run) -> float:
    factor = lr_factor(run.step, run.total_steps, run.cfg.scheduler, run.cfg.warmup_ratio)
    for group in run.optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return factor


def train_step(run: Run, batches: list[dict]) -> dict[str, torch.Tensor]:
    """One optimizer step on ``grad_accumulation`` batches; the loss parts (on the device, averaged) and the gradient
    norm.
    """
    totals: dict[str, torch.Tensor] = {}
    losses = []
    set_learning_rate(run)
    for batch in batches:
        with named_range("data"):
            inputs = run.detector.preprocess.to_device(batch, run.accelerator.device)
        with named_range("forward"):
            output = _forward(run, inputs, batch)
        with named_range("backward"):
            run.accelerator.backward(output.loss / len(batches))
        losses.append(output.loss.detach())
        for name, value in loss_parts(output, run.detector.model.config).items():
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    with named_range("optimizer"):
        totals["grad_norm"] = run.accelerator.clip_grad_norm_(run.detector.model.parameters(), run.cfg.clip_norm)
        *finite, gradient_is_finite = (
            torch.stack([*losses, totals["grad_norm"]]).isfinite().tolist()
        )  # the step's one wait for the device
        if not all(finite):
            raise not_finite(run.cfg, "loss", run.step, [batch for batch, good in zip(batches, finite) if not good])
        if run.accelerator.scaler is None and not gradient_is_finite:  # a scaler leaves such a step out
            raise not_finite(run.cfg, "gradient", run.step, batches)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        if run.averaged is not None:
            run.averaged.update()
    return totals


def _forward(run: Run, inputs: dict, batch: dict):
    """The model's output; boxes that are no numbers end in one sentence, with the batch kept."""
    try:
        return run.model(**inputs)
    except ValueError as error:  # the matcher refuses costs that are no numbers
        if "invalid numeric" not in str(error) and "boxes" not in str(error):
            raise
        raise not_finite(run.cfg, "loss", run.step, [batch]) from None


def train(cfg: Config, on_flush: Callable[[Run], None] | None = None, paste: Callable | None = None) -> Run:
    """Train as the config says and leave the run's folder; ``on_flush`` is called whenever new losses are known.

    ``paste`` is the step that ``cfg.copy_paste`` asks for, of ``synthetic_data.on_the_fly``.

    Raises UserError when the run exists already (unless ``resume`` or ``overwrite``) or is being trained by another
    process, when the data or the checkpoint is missing, for the faults that ``faults.explained`` knows, and when it is
    asked to stop (Ctrl-C, SIGTERM) after the checkpoint is written.
    """
    with runfolder.only_process(cfg), explained(cfg):
        resume, sentences = runfolder.start_from(cfg)
        run = build(cfg, paste)
        run.notes += sentences
        if resume:
            _restore(run, resume)
        else:
            runfolder.empty(cfg)  # only now: a misspelt model must not cost the run before
        write_json(cfg.run_dir / "config.json", cfg.as_json())
        write_json(cfg.run_dir / "environment.json", {**environment(), "process": runfolder.process()})
        with StopRequests() as stop, _tensorboard(run) as board:
            while run.epoch < cfg.epochs and not stop.asked:
                _train_epoch(run, stop, board, on_flush)
                _finish_epoch(run, stop, board)
            if run.epoch < cfg.epochs:
                save_checkpoint(run, board, cfg.run_dir / "checkpoint_last")
                raise UserError(
                    f"Stopped as asked after step {run.step} of {run.total_steps}; the checkpoint is written, "
                    "go on with resume=auto."
                )
    return run


def _train_epoch(run: Run, stop: StopRequests, board, on_flush) -> None:
    """The steps that are left of an epoch."""
    cfg, waiting, pending, began, first = run.cfg, [], [], time.perf_counter(), run.batch
    train_mode(run.detector.model)  # the validation may have changed it
    loader = train_loader(run, run.epoch, first)

    def flush() -> None:
        _flush(run, pending, bar, board)
        if on_flush:
            on_flush(run)

    with tqdm(
        total=run.groups_per_epoch,
        initial=first // cfg.grad_accumulation,
        desc=f"epoch {run.epoch + 1}/{cfg.epochs}",
        unit="step",
        mininterval=1.0,
        ncols=100,
    ) as bar:
        for number, batch in enumerate(loader, start=1):
            if batch["unreadable"]:
                run.notes.append(
                    f"epoch {run.epoch + 1}: photos {batch['unreadable']} could not be read and were left out"
                )
            if batch["pixel_values"] is not None:
                waiting.append(batch)
            if waiting and (len(waiting) == cfg.grad_accumulation or number == len(loader)):
                rates = {group["name"]: group["base_lr"] for group in run.optimizer.param_groups}
                parts = train_step(run, waiting)
                factor = lr_factor(run.step, run.total_steps, cfg.scheduler, cfg.warmup_ratio)
                pending.append(
                    {
                        "step": run.step + 1,
                        "epoch": run.epoch + 1,
                        "lr": rates.get("rest", 0.0) * factor,
                        "lr_backbone": rates.get("backbone", 0.0) * factor,
                        **parts,
                    }
                )
                run.step, run.batch, waiting = run.step + 1, first + number, []
                bar.update()
                if len(pending) == FLUSH_EVERY:
                    flush()
                if stop.asked:
                    break
        if pending:
            flush()
    run.seconds += time.perf_counter() - began


def _flush(run: Run, pending: list[dict], bar, board) -> None:
    """Read the waiting losses from the device, all at once, into the log and TensorBoard."""
    names = [name for name in pending[0] if torch.is_tensor(pending[0][name])]
    values = torch.stack([torch.stack([row[name].float() for name in names]) for row in pending]).cpu().tolist()
    for row, numbers in zip(pending, values):
        run.losses.append({**row, **dict(zip(names, numbers))})
        for name, value in run.losses[-1].items():
            if name not in ("step", "epoch"):
                board.add_scalar(f"train/{name}", value, row["step"])
    bar.set_postfix(loss=f"{values[-1][names.index('loss')]:.3f}")
    pending.clear()


def _finish_epoch(run: Run, stop: StopRequests, board) -> None:
    """Validate, log and save, unless asked to stop. The log is written with the checkpoint, so the two always agree."""
    cfg, epoch = run.cfg, run.epoch + 1
    loader = eval_loader(run.val, run.detector.preprocess, cfg.batch_size, cfg.num_workers)
    loader = tqdm(
        stop.until(loader), total=len(loader), desc="validation", unit="batch", mininterval=1.0, ncols=100, leave=False
    )
    detections, parts = predict(
        run.eval_model,
        run.detector.processor,
        run.detector.preprocess,
        loader,
        run.val.category_ids,
        run.accelerator.device,
        autocast(cfg.precision),
        with_loss=True,
    )
    if stop.asked:
        return
    row = {"epoch": epoch, "step": run.step}
    row |= (
        pd.DataFrame([r for r in run.losses if r["epoch"] == epoch])
        .filter(like="loss")
        .mean()
        .add_prefix("train_")
        .to_dict()
    )
    stats = coco_metrics(ground_truth(run.val), detections)["stats"]
    row |= {f"val_{name}": value for name, value in parts.items()} | {"mAP": stats["mAP"], "mAP50": stats["mAP50"]}
    row |= {"seconds": run.seconds, "photos_per_s": len(run.train) / run.seconds}
    run.epochs.append(row)
    for name, value in row.items():
        if name not in ("epoch", "step"):
            board.add_scalar(f"epoch/{name}", value, run.step)
    run.epoch, run.batch, run.seconds, run.best = epoch, 0, 0.0, max(run.best, stats["mAP"])
    _publish(run, save_checkpoint(run, board, cfg.run_dir / f"checkpoint_epoch_{epoch}"))
    checkpoints.drop_old(cfg.run_dir, epoch)


def save_checkpoint(run: Run, board, folder: Path) -> Path:
    """A Hugging Face folder with the trainer's state in it, and the logs up to here."""

    def fill(target: Path) -> None:
        Detector(run.eval_model, run.detector.processor, run.detector.preprocess).save(target)
        checkpoints.save_state(target, run.detector.model, run.optimizer, run.accelerator.scaler, run.progress())

    write_atomic(run.cfg.run_dir / "losses.csv", pd.DataFrame(run.losses).to_csv(index=False))
    write_atomic(run.cfg.run_dir / "epochs.csv", pd.DataFrame(run.epochs).to_csv(index=False))
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
    run.epoch, run.batch, run.step, run.seconds, run.best = (
        state[name] for name in ("epoch", "batch", "step", "seconds", "best")
    )
    for name in ("losses", "epochs"):  # written just before the checkpoint, perhaps again after it
        table = folder.parent / f"{name}.csv"
        rows = pd.read_csv(table).to_dict("records") if table.exists() and table.stat().st_size > 1 else []
        setattr(run, name, [row for row in rows if row["step"] <= run.step])
    if not run.batch:  # a kill may have come before these
        _publish(run, folder)
        checkpoints.drop_old(run.cfg.run_dir, run.epoch, later=False)
    run.notes.append(f"Going on from {folder.name} (step {run.step} of {run.total_steps}).")


def _tensorboard(run: Run):
    """TensorBoard's writer; events after the resumed step are hidden there."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(run.cfg.output_dir / "runs" / run.cfg.run_name, purge_step=run.step + 1 if run.step else None)
