"""Where a query looks: the decoder's cross-attention over a photo, of its first layer and of its last one.

DETR weighs every cell of the encoder's grid (https://arxiv.org/abs/2005.12872, figure 6). D-FINE, RT-DETR and
Deformable DETR read their feature maps at a few points around the query's box and weigh these
(https://arxiv.org/abs/2010.04159). Which of the two a model does shows in what it returns.
"""

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torchvision.ops import nms

from helpers.boxes import cxcywh_to_xyxy
from helpers.dataset import CocoDetection, read_image
from helpers.files import UserError
from helpers.index import CocoIndex
from helpers.model import Detector

STRIDES = (8, 16, 32, 64)  # of the feature map that a decoder attends to


@dataclass(frozen=True)
class QueryAttention:
    """One query of a photo: what it predicts, and where it looked. Positions are fractions of the photo."""

    box_xyxy: np.ndarray  # [4]
    label: int  # class index
    score: float
    points: np.ndarray  # [2, P, 2] (x, y): first and last layer
    weights: np.ndarray  # [2, P], mean over the heads; a layer's add up to 1
    grid: tuple[int, int] | None  # rows and columns where the points are the cells of a map, P = rows · columns


def telling_photo(index: CocoIndex) -> int:
    """Position of the photo whose third-largest object is the largest: something to see for three queries."""

    def third(i: int) -> float:
        shares = np.sort(index.areas[index.rows(i, crowd=False)])[::-1][:3] / (index.heights[i] * index.widths[i])
        return float(shares[-1]) if len(shares) == 3 else 0.0

    return max(range(len(index)), key=third)


@torch.inference_mode()
def query_attention(detector: Detector, index: CocoIndex, i: int, n=3) -> tuple[np.ndarray, list[QueryAttention]]:
    """Photo ``i`` (uint8 [H, W, 3]), and its ``n`` most confident queries that are about different places.

    Raises UserError when the photo cannot be read, or when the model attends in a way that is not known here.
    """
    sample = CocoDetection(index, detector.preprocess.resize)[i]
    batch = detector.preprocess.collate([sample])
    if batch["pixel_values"] is None:
        raise UserError(f"{index.file_names[i]} cannot be read: see notebook 02_sanity.")
    inputs = detector.preprocess.to_device(batch, detector.model.device)
    inputs.pop("labels")
    model = copy.deepcopy(detector.model)  # fused attention returns no weights, and the detector's own stays as it is
    model.set_attn_implementation("eager")
    sampled, decoder = _SampledPoints(), getattr(model.base_model, "decoder", nn.Identity())
    anew = decoder.register_forward_pre_hook(lambda *_: sampled.grids.clear())  # Deformable DETR's encoder samples too
    with sampled, anew:
        output = model(**inputs, output_attentions=True)
    given = getattr(output, "cross_attentions", None) or ()
    layers = [weights.float().cpu() for weights in given if weights is not None]
    if not layers:
        raise UserError(f"{type(model).__name__} does not return its attention; leave this cell out.")
    logits = output.logits[0].float().cpu()  # [Q, K], with DETR's no-object column [Q, K + 1]
    scores = logits.softmax(-1)[:, :-1] if logits.shape[1] > model.config.num_labels else logits.sigmoid()
    boxes_xyxy = cxcywh_to_xyxy(output.pred_boxes[0].float().cpu(), 1, 1)
    if sampled.grids:
        where, weights, grid = _deformable(layers, sampled.grids)
    else:
        where, weights, grid = _dense(layers, batch["pixel_values"].shape[2:])
    chosen = []
    for q in nms(boxes_xyxy, scores.amax(1), 0.5)[:n].tolist():
        looked = (np.stack([layer[q] for layer in layers]) for layers in (where, weights))
        found = boxes_xyxy[q].numpy(), int(scores[q].argmax()), float(scores[q].max())
        chosen.append(QueryAttention(*found, *looked, grid))
    return read_image(index.path(i), *map(int, sample["orig_size"])), chosen


def attention_table(queries: list[QueryAttention], classes: tuple[str, ...]) -> pd.DataFrame:
    """How much of the attention falls into the predicted box, and how much of the photo that box is, as fractions."""
    rows = []
    for query in queries:
        (left_top, right_bottom), points = query.box_xyxy.reshape(2, 2), query.points
        inside = ((left_top <= points) & (points <= right_bottom)).all(axis=-1)  # [2, P]
        width, height = right_bottom.clip(0, 1) - left_top.clip(0, 1)
        shares = np.where(inside, query.weights, 0).sum(axis=1)
        rows.append((classes[query.label], query.score, *shares, float(width * height)))
    columns = ["query", "score", "first layer, in the box", "last layer, in the box", "box, of the photo"]
    return pd.DataFrame(rows, columns=columns)


def _dense(layers: list[torch.Tensor], size: tuple[int, int]) -> tuple[list, list, tuple[int, int]]:
    """Weights [1, heads, Q, cells] of DETR, as points at the cells' centres."""
    cells = layers[0].shape[-1]
    grids = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]
    grid = next((rows_columns for rows_columns in grids if np.prod(rows_columns) == cells), None)
    if grid is None:
        raise UserError(
            f"The attention has {cells} cells, which is no grid over {size[1]} x {size[0]} pixels; leave this cell out."
        )
    rows, columns = grid
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    centres = np.broadcast_to(np.stack([x.ravel(), y.ravel()], axis=1), (layers[0].shape[2], cells, 2))
    weights = [layer[0].mean(0).numpy() for layer in (layers[0], layers[-1])]  # [Q, cells]
    return [centres, centres], weights, grid


def _deformable(layers: list[torch.Tensor], grids: list[torch.Tensor]) -> tuple[list, list, None]:
    """Weights [1, Q, heads, ...] of the sampled points; each layer sampled once per feature map, in this order."""
    maps = len(grids) // len(layers)
    where, weights = [], []
    for k in (0, len(layers) - 1):
        points = torch.cat(grids[k * maps : (k + 1) * maps], dim=2)  # [heads, Q, P, 2], from -1 to 1
        where.append(((points.permute(1, 0, 2, 3).flatten(1, 2) + 1) / 2).numpy())  # [Q, heads · P, 2]
        weights.append((layers[k][0].flatten(1) / layers[k].shape[2]).numpy())  # [Q, heads · P]
    return where, weights, None


class _SampledPoints(TorchFunctionMode):
    """Keeps the positions of every ``grid_sample``, with which deformable attention reads its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.grids: list[torch.Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.grid_sample:
            self.grids.append((args[1] if len(args) > 1 else kwargs["grid"]).float().cpu())
        return function(*args, **(kwargs or {}))
