"""Train one epoch, predict a split: the two loops around a detector, after DETR's own ``engine.py``.

An epoch: shuffled batches -> forward -> loss -> backward -> clip -> AdamW -> average. Everything random in a batch
(order, augmentation) depends on the seed, the epoch and the photo alone. Stop requests, logs and checkpoints stand
around it, in ``helpers/train``.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from helpers.augment import augmentation
from helpers.collator import Preprocess
from helpers.config import Config
from helpers.dataset import CocoDetection, PhotoLoader, begin_worker, epoch_batches
from helpers.devices import named_range, share_cores
from helpers.index import CocoIndex
from helpers.metrics import Detections
from helpers.model import Detector, loss_parts, train_mode
from helpers.schedule import MovingAverage, lr_factor

SKIPPED_IN_A_ROW = 20  # steps that the fp16 scaler may leave out before the gradient counts as lost


class NotFinite(ArithmeticError):
    """A ``what`` (loss or gradient) that is no number, on these collated ``batches``: training on would destroy the
    weights. ``lasting``: the fp16 scaler has left out ``SKIPPED_IN_A_ROW`` steps for it.
    """

    def __init__(self, what: str, batches: list[dict], step: int, lasting: bool = False):
        super().__init__(f"the {what} is not a finite number at step {step + 1}")
        self.what, self.batches, self.step, self.lasting = what, batches, step, lasting


@dataclass
class Run:
    """What the loop works with, and how far it has come."""

    cfg: Config
    accelerator: Accelerator
    detector: Detector
    model: nn.Module  # the detector's model, as accelerate wraps it
    averaged: MovingAverage | None
    optimizer: torch.optim.Optimizer
    train: CocoIndex
    val: CocoIndex
    paste: Callable | None = None  # copy-paste in the loader, where ``cfg.copy_paste`` asks for it
    stand_in: dict | None = None  # of several processes, the batch of one without a photo: all take part in each step
    epoch: int = 0  # epochs finished
    batch: int = 0  # batches of the current epoch that are done with
    step: int = 0  # optimizer steps finished, those that the scaler left out too
    skipped: int = 0  # of the last steps in a row, those that the scaler left out
    seconds: float = 0.0  # that the current epoch's steps took
    losses: list[dict] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # sentences for the reader

    @property
    def steps_per_epoch(self) -> int:
        batches = math.ceil(len(self.train) / (self.cfg.batch_size * self.accelerator.num_processes))
        return math.ceil(batches / self.cfg.grad_accumulation)

    @property
    def total_steps(self) -> int:
        return self.cfg.epochs * self.steps_per_epoch

    @property
    def most_objects(self) -> int | None:
        """Objects of a photo that are learnt from: Q queries are taught no more, and memory grows with their square."""
        return getattr(self.detector.model.config, "num_queries", None)

    @property
    def evaluated(self) -> Detector:
        """The detector that is validated and saved: with the averaged weights where there are any."""
        return self.detector if self.averaged is None else replace(self.detector, model=self.averaged.module)


def train_epoch(run: Run, stop: Callable[[], bool], log: Callable[[dict], None]) -> None:
    """The optimizer steps that are left of an epoch, or those up to a ``stop()``, which is asked after each.

    ``log`` gets a row per step: step, epoch, learning rates, and as tensors that are still on the device the loss parts
    and the norm of the gradient. Step and learning rate go on with the photos, whether or not the fp16 scaler leaves a
    step out: an epoch ends when its photos have been seen. Raises NotFinite.
    """
    cfg, group = run.cfg, []
    train_mode(run.detector.model)  # the validation may have changed it
    loader = train_loader(run, run.epoch, run.batch)
    batches = run.batch + len(loader)
    for batch in loader:
        run.batch += 1
        if batch["unreadable"]:
            run.notes.append(f"epoch {run.epoch + 1}: photos {batch['unreadable']} could not be read and were left out")
        batch = batch if batch["pixel_values"] is not None else run.stand_in
        if batch is not None:
            group.append(batch)
        if not group or (len(group) < cfg.grad_accumulation and run.batch < batches):
            continue
        factor = lr_factor(run.step, run.total_steps, cfg.scheduler, cfg.warmup_ratio)
        for part in run.optimizer.param_groups:
            part["lr"] = part["base_lr"] * factor
        rates = {part["name"]: part["lr"] for part in run.optimizer.param_groups}
        row = {"step": run.step + 1, "epoch": run.epoch + 1, "lr": rates.get("rest", 0.0)}
        log({**row, "lr_backbone": rates.get("backbone", 0.0), **train_step(run, group)})
        run.step, group = run.step + 1, []
        if stop():
            return


def train_step(run: Run, batches: list[dict]) -> dict[str, torch.Tensor]:
    """One optimizer step on ``grad_accumulation`` batches; the loss parts, averaged, and the norm of the gradient, all
    still on the device.

    With fp16, a gradient that is not finite is the scaler's to leave out (``skipped`` is 1 then, and the averaged
    weights stay): accelerate's ``step_was_skipped`` does not see it with a fused optimizer. Raises NotFinite.
    """
    totals: dict[str, torch.Tensor] = {}
    losses = []
    for k, batch in enumerate(batches, start=1):
        exchange = contextlib.nullcontext() if k == len(batches) else run.accelerator.no_sync(run.model)
        with named_range("data"):
            inputs = run.detector.preprocess.to_device(batch, run.accelerator.device)
        with exchange, named_range("forward"):  # several processes add up their gradients once a step
            output = _forward(run, inputs, batch)
        with named_range("backward"):
            run.accelerator.backward(output.loss / len(batches))
        losses.append(output.loss.detach())
        for name, value in loss_parts(output, run.detector.model.config).items():
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    with named_range("optimizer"):
        totals["grad_norm"] = run.accelerator.clip_grad_norm_(run.detector.model.parameters(), run.cfg.clip_norm)
        # the step's one wait for the device
        *finite, good_gradient = torch.stack([*losses, totals["grad_norm"]]).isfinite().tolist()
        if not all(finite):
            raise NotFinite("loss", [batch for batch, good in zip(batches, finite) if not good], run.step)
        run.skipped = 0 if good_gradient else run.skipped + 1
        if run.skipped and (run.accelerator.scaler is None or run.skipped == SKIPPED_IN_A_ROW):
            raise NotFinite("gradient", batches, run.step, lasting=run.skipped > 1)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        if run.averaged is not None and good_gradient:
            run.averaged.update()
    if run.accelerator.scaler is not None:
        totals["skipped"] = totals["grad_norm"].new_tensor(float(not good_gradient))
    return totals


def _forward(run: Run, inputs: dict, batch: dict):
    """The model's output; boxes that are no numbers are a loss that is none."""
    try:
        return run.model(**inputs)
    except ValueError as error:  # the matcher refuses costs that are no numbers
        if "invalid numeric" not in str(error) and "boxes" not in str(error):
            raise
        raise NotFinite("loss", [batch], run.step) from None


def photo_loader(
    index: CocoIndex, preprocess: Preprocess, batches: list[np.ndarray], num_workers: int, **options
) -> DataLoader:
    """The collated ``batches`` (positions of photos); ``options`` go to :class:`CocoDetection`."""
    return PhotoLoader(
        CocoDetection(index, preprocess.resize, **options),
        batch_sampler=batches,
        num_workers=share_cores(num_workers),
        collate_fn=preprocess.collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=begin_worker,
        generator=torch.Generator(),  # its own: making a loader draws a number
    )


def train_loader(run: Run, epoch: int, start: int = 0) -> DataLoader:
    """An epoch's batches from number ``start`` on; of each, this process's share where several train together: the
    last ones may get none.
    """
    cfg, rank, world = run.cfg, run.accelerator.process_index, run.accelerator.num_processes
    batches = epoch_batches(run.train, cfg.batch_size * world, cfg.seed, epoch)[start:]
    batches = [batch[rank::world] for batch in batches]
    options = {"augment": augmentation(cfg.augment), "seed": cfg.seed, "epoch": epoch, "most_objects": run.most_objects}
    return photo_loader(run.train, run.detector.preprocess, batches, cfg.num_workers, paste=run.paste, **options)


def eval_loader(
    index: CocoIndex, preprocess: Preprocess, batch_size: int, num_workers: int, share: slice = slice(None)
) -> DataLoader:
    """A ``share`` of a split's batches, not augmented; photos of like shape together, so that little is padding."""
    order = np.argsort(index.widths / index.heights, kind="stable")
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    return photo_loader(index, preprocess, batches[share], num_workers)


@torch.inference_mode()
def predict(
    detector: Detector,
    loader: Iterable[dict],
    category_ids: Sequence[int | None],
    device="cpu",
    autocast: Callable = contextlib.nullcontext,
    with_loss: bool = False,
) -> tuple[Detections, dict[str, float]]:
    """Detections of every photo in COCO's results format, and the mean loss parts (empty unless ``with_loss``).

    Every query is kept (threshold 0: average precision needs the low scores too); boxes are in the original photo's
    pixels, category and image ids are COCO's. ``category_ids`` holds the category of each of the model's classes, or
    None for a class that is not asked for, whose detections are left out. A photo that cannot be read has none.
    """
    model, was_training = detector.model, detector.model.training
    model.eval()
    found, sums, photos = [], {}, 0
    for batch in loader:
        if batch["pixel_values"] is None:
            continue
        inputs = detector.preprocess.to_device(batch, device)
        labels = inputs.pop("labels")
        with autocast():
            output = model(**inputs, labels=labels if with_loss else None)
        if with_loss:
            for name, value in loss_parts(output, model.config).items():
                sums[name] = sums.get(name, 0.0) + value * len(labels)
            photos += len(labels)
        found.append(to_coco(output, detector.processor, batch["image_ids"], batch["orig_sizes"], category_ids))
    model.train(was_training)
    return Detections.joined(found), {name: float(value) / photos for name, value in sums.items()}


def to_coco(
    output, processor, image_ids: list[int], orig_sizes: list[tuple[int, int]], category_ids: Sequence[int | None]
) -> Detections:
    """A batch's output as COCO results, highest score first within a photo; ``orig_sizes``: (height, width) of each."""
    # once a batch, not for each photo
    output.logits, output.pred_boxes = output.logits.float().cpu(), output.pred_boxes.float().cpu()
    results = processor.post_process_object_detection(output, threshold=0.0, target_sizes=orig_sizes)
    orders = [result["scores"].argsort(descending=True, stable=True) for result in results]
    score, label, boxes_xyxy = (
        torch.cat([result[name][order] for result, order in zip(results, orders)]).double().numpy()
        for name in ("scores", "labels", "boxes")
    )
    # D-FINE's edges are distances from a point and may cross: such a box covers nothing, and a side is never negative
    bbox = np.hstack([boxes_xyxy[:, :2], np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 0)])
    image_id = np.repeat(np.array(image_ids, np.int64), [len(order) for order in orders])
    label = label.astype(np.int64)
    asked = np.array([category is not None for category in category_ids])[label]
    category_id = np.array([category or 0 for category in category_ids], np.int64)[label]
    return Detections(image_id[asked], category_id[asked], bbox[asked], score[asked])
