"""Figures of synthetic data and of the experiment; each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from helpers.boxes import xywh_to_xyxy
from helpers.pictures.colours import BLUE, ORANGE, PURPLE, SKY
from helpers.pictures.grids import before_after
from helpers.scenes.compositor import Layer
from helpers.synthetic_data.copy_paste import CopyPaste
from helpers.synthetic_data.offline import Synthetic

COLOURS = (BLUE, ORANGE, SKY, PURPLE)


def things(copy_paste: CopyPaste, made: Synthetic) -> list[tuple[Layer, str]]:
    """What is annotated in a synthetic photo with its visible mask and class, what was pasted last."""
    segmentations, (height, width) = copy_paste.segmentations, made.pasted.image.shape[:2]
    index, there = segmentations.index, []
    for row in index.rows(made.background, crowd=False).tolist():
        layer = made.pasted.changed.get(row) or segmentations.layer(row, made.background, height, width)
        if made.pasted.changed.get(row, layer) is not None:
            there.append((layer, index.classes[index.labels[row]]))
    return there + [(layer, layer.label.name) for layer in made.pasted.layers]


def with_masks(image: np.ndarray, layers: Sequence[Layer], strength: float = 0.45) -> np.ndarray:
    """A copy of a photo, uint8 [H, W, 3], with the masks laid over it in four colours, one after the other."""
    shown = image.astype(np.float32)
    for k, layer in enumerate(layers):
        part = np.s_[layer.top : layer.top + layer.mask.shape[0], layer.left : layer.left + layer.mask.shape[1]]
        colour = 255 * np.array(to_rgb(COLOURS[k % len(COLOURS)]), np.float32)
        shown[part] = np.where(layer.mask[..., None], (1 - strength) * shown[part] + strength * colour, shown[part])
    return shown.astype(np.uint8)


def page(copy_paste: CopyPaste, photos: Sequence[Synthetic], titles: Sequence[str] = ()) -> Figure:
    """Synthetic photos with boxes of what is annotated, and masks of what was pasted."""
    pictures = []
    for made in photos:
        parts = things(copy_paste, made)
        boxes = xywh_to_xyxy(np.array([layer.bbox for layer, _ in parts], float).reshape(-1, 4))
        pictures.append((with_masks(made.pasted.image, made.pasted.layers), boxes, [name for _, name in parts]))
    return before_after(pictures, titles or [f"number {made.number}" for made in photos])
