"""How the learning rate goes over a run, and how the weights are averaged along it."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from helpers.collator import Preprocess
from helpers.dataset import CocoDetection, leave_signals_to_the_loop
from helpers.index import CocoIndex
from helpers.metrics import Detections
from helpers.model import loss_parts


def lr_factor(step: int, total: int, scheduler: str, warmup_ratio: float) -> float:
    """What the base learning rates are multiplied by at an optimizer step (0-based) of ``total``.

    All rise linearly over the first ``warmup_ratio``; then ``constant`` stays, ``cosine`` falls to 0, and
    ``flat_cosine`` stays until half of the steps are done and falls then.
    """
    warmup = round(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if scheduler == "constant":
        return 1.0
    start = max(warmup, total // 2) if scheduler == "flat_cosine" else warmup
    done = (step - start) / max(1, total - start)
    return 1.0 if done < 0 else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class MovingAverage:
    """An exponential moving average of a model's weights and buffers (``module``), whose decay grows with the count of
    updates.

    With the full decay from the start, the first weights, and above all the first variances of the batch norms, would
    still weigh a fifth after 1,500 steps at 0.999: the averaged detector would find nothing while the trained one
    learns. What is frozen is its own average, and left alone.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay, self.count = copy.deepcopy(model), decay, 0
        pairs = [
            (old, new)
            for old, new in zip(self.module.parameters(), model.parameters(), strict=True)
            if new.requires_grad
        ]
        pairs += zip(self.module.buffers(), model.buffers(), strict=True)
        self.averaged = [old for old, _ in pairs if old.is_floating_point()]
        self.current = [new for _, new in pairs if new.is_floating_point()]
        self.counters = [(old, new) for old, new in pairs if not old.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        torch._foreach_lerp_(self.averaged, self.current, 1 - decay)
        for old, new in self.counters:
            old.copy_(new)
        self.count += 1


def eval_loader(index: CocoIndex, preprocess: Preprocess, batch_size: int, num_workers: int) -> DataLoader:
    """Batches of a split without augmentation; photos of like shape together, so that little is padding."""
    order = np.argsort(index.widths / index.heights, kind="stable")
    return DataLoader(
        CocoDetection(index, preprocess.resize),
        batch_sampler=[order[k : k + batch_size] for k in range(0, len(order), batch_size)],
        num_workers=num_workers,
        collate_fn=preprocess.collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
        worker_init_fn=leave_signals_to_the_loop,
    )


@torch.inference_mode()
def predict(
    model,
    processor,
    preprocess: Preprocess,
    loader: Iterable[dict],
    category_ids: tuple[int, ...],
    device="cpu",
    autocast: Callable = contextlib.nullcontext,
    with_loss: bool = False,
) -> tuple[Detections, dict[str, float]]:
    """Detections of every photo in COCO's results format, and the mean loss parts (empty unless ``with_loss``).

    Every query is kept (threshold 0: average precision needs the low scores too); boxes are in the original photo's
    pixels, category and image ids are COCO's. Photos that cannot be read have no detections.
    """
    was_training = model.training
    model.eval()
    found, sums, photos = [], {}, 0
    for batch in loader:
        if batch["pixel_values"] is None:
            continue
        inputs = preprocess.to_device(batch, device)
        labels = inputs.pop("labels")
        with autocast():
            output = model(**inputs, labels=labels if with_loss else None)
        if with_loss:
            for name, value in loss_parts(output, model.config).items():
                sums[name] = sums.get(name, 0.0) + value * len(labels)
            photos += len(labels)
        found.append(to_coco(output, processor, batch["image_ids"], batch["orig_sizes"], category_ids))
    model.train(was_training)
    return Detections.joined(found), {name: float(value) / photos for name, value in sums.items()}


def to_coco(
    output, processor, image_ids: list[int], orig_sizes: torch.Tensor, category_ids: tuple[int, ...]
) -> Detections:
    """A model's output for a batch as COCO results, highest score first within a photo; ``orig_sizes`` [B, 2]
    (height, width).
    """
    output.logits, output.pred_boxes = (
        output.logits.float().cpu(),
        output.pred_boxes.float().cpu(),
    )  # once a batch, not for each photo
    results = processor.post_process_object_detection(output, threshold=0.0, target_sizes=orig_sizes)
    orders = [result["scores"].argsort(descending=True, stable=True) for result in results]
    score, label, boxes_xyxy = (
        torch.cat([result[name][order] for result, order in zip(results, orders)]).double().numpy()
        for name in ("scores", "labels", "boxes")
    )
    bbox = np.hstack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]])
    return Detections(
        np.repeat(np.array(image_ids, np.int64), [len(order) for order in orders]),
        np.array(category_ids, np.int64)[label.astype(np.int64)],
        bbox,
        score,
    )
