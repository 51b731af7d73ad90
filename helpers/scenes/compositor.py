"""Puts sprites onto a picture, one over the other, and keeps account of what of every thing in it stays visible.

The built-in scenes and copy-paste are both made with this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True, eq=False)
class Sprite:
    """A picture to paste: `rgba` uint8 [H, W, 4], cropped to what is visible, of class `name`, made from `base`."""

    name: str
    base: object
    rgba: np.ndarray


@dataclass(frozen=True, eq=False)
class Layer:
    """A thing in the picture: `mask` bool [h, w], its corner at (`left`, `top`), is what is seen of it.

    `label` is the caller's (None: a thing without a label), `area` the pixels of the whole thing, hidden and outside
    ones too. Nothing is pasted onto a `protected` one.
    """

    label: object
    area: float
    mask: np.ndarray
    left: int
    top: int
    protected: bool = False

    @property
    def visible(self) -> int:
        """Pixels that are seen."""
        return cv2.countNonZero(self.mask.view(np.uint8))

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """COCO's x, y, width, height of what is seen, in pixels; width and height are 0 where nothing is."""
        x, y, width, height = cv2.boundingRect(self.mask.view(np.uint8))
        return self.left + x, self.top + y, width, height

    def whole_mask(self, height: int, width: int) -> np.ndarray:
        """What is seen of it, bool [height, width], the size of the picture."""
        whole = np.zeros((height, width), bool)
        whole[self.top : self.top + self.mask.shape[0], self.left : self.left + self.mask.shape[1]] = self.mask
        return whole

    def under(self, other: Layer) -> Layer:
        """This one with `other` painted over it: itself when nothing of it is hidden."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.mask.shape[0], other.top + other.mask.shape[0])
        right = min(self.left + self.mask.shape[1], other.left + other.mask.shape[1])
        if bottom <= top or right <= left:
            return self
        mine, its = (np.s_[top - i.top : bottom - i.top, left - i.left : right - i.left] for i in (self, other))
        hidden = self.mask[mine] & other.mask[its]
        if not hidden.any():
            return self
        mask = self.mask.copy()
        mask[mine] &= ~hidden
        return replace(self, mask=mask)


class Canvas:
    """A picture that is painted on: `image` uint8 RGB [H, W, 3] and its `layers`, lowest first.

    A labelled thing is recognisable while `min_visible` of its area is seen and its visible box has sides of at least
    `min_side` pixels. What is pasted must be. A thing below that no longer is keeps the sprite out, or, with
    `dropping`, leaves `layers`.
    """

    def __init__(self, image: np.ndarray, min_visible: float, min_side: float, dropping: bool = False):
        self.image, self.min_visible, self.min_side, self.dropping = image, min_visible, min_side, dropping
        self.layers: list[Layer] = []

    def paste(self, patch: np.ndarray, left: int, top: int, label: object) -> bool:
        """Paint a premultiplied RGBA patch [h, w, 4], whose corner (left, top) may be outside.

        False, and nothing painted, where it may not be.
        """
        height, width = self.image.shape[:2]
        box = np.s_[max(top, 0) : min(top + patch.shape[0], height), max(left, 0) : min(left + patch.shape[1], width)]
        inside = patch[max(-top, 0) :, max(-left, 0) :][: box[0].stop - box[0].start, : box[1].stop - box[1].start]
        area, solid = int((patch[..., 3] > 127).sum()), inside[..., 3] > 127
        new = Layer(label, area, solid, max(left, 0), max(top, 0))
        after = [layer.under(new) for layer in self.layers]
        hidden = [a for a, b in zip(after, self.layers) if a is not b]
        lost = {id(layer) for layer in hidden if not self._recognisable(layer)}
        refused = any(layer.protected for layer in hidden) or lost and not self.dropping
        if refused or not self._recognisable(new):
            return False
        self.layers = [layer for layer in after if id(layer) not in lost] + [new]
        keep = cv2.merge([255 - inside[..., 3]] * 3)
        self.image[box] = cv2.add(cv2.multiply(self.image[box], keep, scale=1 / 255), inside[..., :3])
        return True

    def _recognisable(self, layer: Layer) -> bool:
        if layer.label is None:
            return True
        return layer.visible >= self.min_visible * layer.area and min(layer.bbox[2:]) >= self.min_side


def premultiplied(rgba: np.ndarray) -> np.ndarray:
    """Colours times alpha, uint8 [H, W, 4]: the edge of what is then resized stays free of what is behind it."""
    return np.dstack([cv2.multiply(rgba[..., :3], cv2.merge([rgba[..., 3]] * 3), scale=1 / 255), rgba[..., 3]])


def cropped(rgba: np.ndarray) -> np.ndarray:
    """The part of RGBA [H, W, 4] that is more than half opaque; empty where nothing is."""
    x, y, width, height = cv2.boundingRect((rgba[..., 3] > 127).view(np.uint8))
    return rgba[y : y + height, x : x + width]
