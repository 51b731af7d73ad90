"""DETR's loss with matching and losses batched over decoder layers and photos.

Of a batch of eight photos, the library's criterion waits 159 times for the device and starts 1,500 operations
(benchmarks/loss.py). Here the costs of all layers and photos are computed in one go and read in one transfer, the
one wait for the device; the pairs go back in another, which nothing waits for.
"""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers.image_transforms import center_to_corners_format
from transformers.loss import loss_for_object_detection, loss_lw_detr, loss_rf_detr
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss, _set_aux_loss
from transformers.loss.loss_utils import LOSS_MAPPING


def batched_loss_for(model: torch.nn.Module) -> Callable | None:
    """What to set as ``model.loss_function``; None for a family whose loss is not DETR's (softmax, L1, GIoU)."""
    return batched_loss if LOSS_MAPPING.get(model.loss_type) is ForObjectDetectionLoss else None


def batched_loss(logits, labels, device, pred_boxes, config, outputs_class=None, outputs_coord=None, **_):
    """transformers' ``ForObjectDetectionLoss``: the same arguments, losses, names and gradients, but for rounding.

    ``logits`` [B, Q, K + 1] and ``pred_boxes`` [B, Q, 4] of the last decoder layer, ``outputs_class`` and
    ``outputs_coord`` [L, B, Q, ...] of all of them (read where ``config.auxiliary_loss`` is set); boxes are cxcywh as
    fractions. Returns the weighted sum, its parts by name (those of layer i < L - 1 end in ``_i``) and the auxiliary
    outputs, or None. Raises ValueError, as the library does, for boxes that are no numbers or have a negative side.
    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872, equations 1 and 2.
    """
    auxiliary = _set_aux_loss(outputs_class, outputs_coord) if config.auxiliary_loss else None
    layers = [*(auxiliary or []), {"logits": logits, "pred_boxes": pred_boxes}]
    logits, boxes = (torch.stack([layer[name] for layer in layers]) for name in ("logits", "pred_boxes"))
    none = config.num_labels  # the no-object class: the classifier's last column, and the filling of ``classes``
    sizes = [len(photo["boxes"]) for photo in labels]
    classes = pad_sequence([photo["class_labels"] for photo in labels], batch_first=True, padding_value=none)  # [B, T]
    targets = _both_formats(pad_sequence([photo["boxes"] for photo in labels], batch_first=True))  # [B, T, 8]
    boxes = _both_formats(boxes)  # [L, B, Q, 8]
    queries, slots = _match(logits, boxes, classes, targets, sizes, config)  # [L * M] each
    matched = boxes.flatten(0, 2).index_select(0, queries).view(len(layers), -1, 8)  # [L, M, 8]
    goals = targets.flatten(0, 1).index_select(0, slots).view(len(layers), -1, 8)

    wanted = torch.full(logits.shape[:3], none, device=logits.device)  # [L, B, Q]
    wanted.view(-1)[queries] = classes.flatten()[slots]
    weight = logits.new_ones(none + 1)  # of each class
    weight[none].fill_(config.eos_coefficient)
    if "absent" in labels[0]:  # this process has no photo for the step
        weight.zero_()
    entropy = cross_entropy(logits.flatten(0, 2), wanted.flatten(), weight, reduction="none")  # [L * B * Q]
    found = (logits.argmax(-1) != none).sum(-1)  # [L, B]
    weights, count = _of_whole_batch(weight[wanted].flatten(1).sum(1), sum(sizes))
    parts = {
        "loss_ce": entropy.view(len(layers), -1).sum(1) / weights,
        "loss_bbox": (matched - goals)[..., :4].abs().flatten(1).sum(1) / count,
        "loss_giou": (1 - _giou(matched[..., 4:], goals[..., 4:])).sum(1) / count,
        "cardinality_error": (found - (classes != none).sum(1)).abs().float().mean(1),
    }  # [L] each
    weighted = (
        parts["loss_ce"]
        + config.bbox_loss_coefficient * parts["loss_bbox"]
        + config.giou_loss_coefficient * parts["loss_giou"]
    )
    rows = [dict(zip(parts, values)) for values in zip(*(part.unbind() for part in parts.values()))]
    named = {f"{name}_{i}": value for i, row in enumerate(rows[:-1]) for name, value in row.items()}
    return weighted.sum(), {**rows[-1], **named}, auxiliary


def _both_formats(boxes_cxcywh: Tensor) -> Tensor:
    """[..., 4] to [..., 8]: the boxes, and behind them their corners."""
    return torch.cat([boxes_cxcywh, center_to_corners_format(boxes_cxcywh)], dim=-1)


@torch.no_grad()
def _match(logits: Tensor, boxes: Tensor, classes: Tensor, targets: Tensor, sizes: list[int], config) -> Tensor:
    """The matched queries and their objects, layer by layer and photo by photo: indices into the flattened queries
    [L * B * Q] and into the flattened, filled objects [B * T]; int64 [2, L * M] on the device.
    """
    chosen = classes[None, :, None].expand(*logits.shape[:3], -1)  # [L, B, Q, T]
    (boxes, corners), (targets, goals) = boxes.split(4, dim=-1), targets.split(4, dim=-1)
    cost = (
        config.bbox_cost * torch.cdist(boxes, targets.expand(len(boxes), -1, -1, -1), p=1)
        + config.class_cost * -logits.softmax(-1).gather(-1, chosen)
        + config.giou_cost * -_giou(corners[:, :, :, None], goals[:, None])
    )  # [L, B, Q, T]
    most = torch.finfo(cost.dtype).max  # what is no number is matched last, as the library does
    cost = torch.nan_to_num(cost, nan=most, posinf=most, neginf=most)
    proper = torch.stack([(each[..., 2:] >= each[..., :2]).all() for each in (corners, goals)])  # false for NaN
    numbers = torch.cat([cost.flatten(), proper.to(cost.dtype)]).cpu().numpy()  # the one wait for the device
    if not numbers[-2:].all():
        which = "target" if numbers[-2] else "predicted"
        raise ValueError(f"The {which} boxes are no numbers, or have a negative width or height.")
    pairs = torch.from_numpy(_assign(numbers[:-2].reshape(cost.shape), sizes))
    if cost.is_cuda:
        pairs = pairs.pin_memory()
    return pairs.to(cost.device, non_blocking=True)


def _assign(cost: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Hungarian matching of each layer's photos, ``cost`` [L, B, Q, T] of which photo b has ``sizes[b]`` objects: flat
    indices of queries and of objects, int64 [2, L * M].
    """
    layers, photos, queries, most = cost.shape
    pairs = []
    for row, (layer, photo) in enumerate(np.ndindex(layers, photos)):
        chosen, objects = linear_sum_assignment(cost[layer, photo, :, : sizes[photo]])
        pairs.append((chosen + row * queries, objects + photo * most))
    return np.concatenate(pairs, axis=1)


def _giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU of boxes [..., 4] that broadcast to each other, [...]. Source: https://giou.stanford.edu."""

    def area(size: Tensor) -> Tensor:
        width, height = size.unbind(-1)
        return width * height

    a, b = (boxes.split(2, dim=-1) for boxes in (a_xyxy, b_xyxy))  # left top, right bottom
    overlap = area((torch.min(a[1], b[1]) - torch.max(a[0], b[0])).clamp(min=0))
    union = area(a[1] - a[0]) + area(b[1] - b[0]) - overlap
    hull = area(torch.max(a[1], b[1]) - torch.min(a[0], b[0]))
    return overlap / union - (hull - union) / hull


def _of_whole_batch(weights: Tensor, count: int) -> tuple[Tensor, Tensor | float]:
    """What the sums over classes (``weights`` [L]) and boxes (``count`` objects) are divided by.

    Where several processes train together it is the mean of theirs: the mean of their losses and gradients is then
    that of the whole batch. In a validation each has batches of its own.
    """
    if not torch.is_grad_enabled() or not PartialState._shared_state or PartialState().num_processes == 1:
        return weights, max(1.0, count)
    both = reduce(torch.cat([weights, weights.new_full((1,), float(count))]))
    return both[:-1].clamp(min=1e-9), both[-1].clamp(min=1 / PartialState().num_processes)


def whole_batch_loss(loss_function: Callable) -> Callable:
    """A loss of the library that is divided by the number of objects, divided by that of all processes' batches.

    Left alone, some losses of transformers 5.23 divide by this process's own (RT-DETR, D-FINE, DEIMv2), one by all
    (LW-DETR), and one by it and then by the number of processes once more (Deformable and Conditional DETR): they are
    kept from it here. Not exactly the whole batch's is D-FINE's ``loss_ddf``, a mean of its own over each process's.
    """
    for module in (loss_for_object_detection, loss_lw_detr, loss_rf_detr):
        for name in ("is_accelerate_available", "_is_torch_distributed_initialized"):
            if hasattr(module, name):
                setattr(module, name, lambda: False)

    def computed(logits: Tensor, labels: list[dict], device, pred_boxes: Tensor, config, *args, **kwargs):
        loss, parts, auxiliary = loss_function(logits, labels, device, pred_boxes, config, *args, **kwargs)
        if torch.is_grad_enabled():
            count = sum(len(photo["boxes"]) for photo in labels) * getattr(config, "group_detr", 1)
            mine = 0.0 if "absent" in labels[0] else max(1.0, count)
            _, all_of_them = _of_whole_batch(logits.new_ones(1), count)
            loss = loss * (mine / all_of_them)
            parts = {name: value * (mine / all_of_them) for name, value in parts.items()}
        return loss, parts, auxiliary

    return computed
