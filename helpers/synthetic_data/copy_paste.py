"""Copy-paste: objects cut out of photos, pasted onto other photos of the split (Ghiasi et al., "Simple Copy-Paste is a
Strong Data Augmentation Method for Instance Segmentation", arXiv 2012.07177).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from helpers.boxes import xywh_to_xyxy
from helpers.config import Config
from helpers.index import CocoIndex, open_split
from helpers.scenes.compositor import Canvas, Layer, Sprite, cropped
from helpers.synthetic_data.objects import Pool, Segmentations, cut_pool, originals

MIN_VISIBLE = 0.3  # share of a thing that occlusion and the border must leave, or it is no object to learn from
MIN_SIDE = 4  # pixels of the shorter side of what is visible
SCALES = (0.5, 1.5)  # a sprite's size beside the one that it had in its own photo
LARGEST = 0.6  # of the photo's longer side
TRIES = 8  # places that a sprite is tried at, until one does not cover a crowd region


@dataclass(frozen=True, eq=False)
class Context:
    """Where the classes of a split stand: ``heights`` per class, the centres' y as fractions of the photo; ``together``
    [K, K], the share of class k's photos that show class j as well.
    """

    heights: list[np.ndarray]
    together: np.ndarray

    @classmethod
    def of(cls, index: CocoIndex) -> Context:
        owner = np.repeat(np.arange(len(index)), np.diff(index.starts))
        y = (index.bbox[:, 1] + index.bbox[:, 3] / 2) / index.heights[owner]
        heights = [np.clip(y[(index.labels == k) & ~index.iscrowd], 0, 1) for k in range(len(index.classes))]
        shown = np.zeros((len(index), len(index.classes)))
        shown[owner, index.labels] = 1
        return cls(heights, shown.T @ shown / np.maximum(shown.sum(axis=0), 1)[:, None])


@dataclass(eq=False)
class Pasted:
    """What became of a photo.

    ``image`` uint8 [H, W, 3]; ``changed``: what is left of the annotations (by row) that something now covers, None
    where that is too little; ``layers``: what is seen of the pasted sprites (their labels), lowest first.
    """

    image: np.ndarray
    changed: dict[int, Layer | None]
    layers: list[Layer]
    refused: int  # sprites that found no place

    def seen(self, rows: np.ndarray) -> dict[int, Layer | None]:
        """Those of the annotations ``rows`` that are still labelled: what is left of each, None where it is whole."""
        left = {row: self.changed.get(row) for row in rows.tolist()}
        return {row: layer for row, layer in left.items() if layer or row not in self.changed}


@dataclass(eq=False)
class CopyPaste:
    """Pastes onto photos of ``segmentations.index``.

    ``objects`` a photo on average, 1 to 2 · ``objects`` - 1. Every class that there are sprites of is drawn alike, so
    rare ones come more often than in the photos. ``places``: ``random``, or ``context``: classes that the photo's own
    go with, at heights where the class stands, half of them beside an object.
    """

    segmentations: Segmentations
    pool: Pool
    objects: int
    places: str = "random"

    @cached_property
    def context(self) -> Context | None:
        return Context.of(self.segmentations.index) if self.places == "context" else None

    @cached_property
    def original(self) -> np.ndarray:
        return originals(self.segmentations.index)

    def __call__(self, image: np.ndarray, i: int, seed, most: int | None = None) -> Pasted:
        """Photo ``i``, uint8 [H, W, 3] at any size, with ``most`` sprites at most; a seed gives the same picture."""
        rng = np.random.default_rng(seed)
        count = int(rng.integers(1, 2 * self.objects))
        painter = _Painter(self, image, i)
        for _ in range(count if most is None else min(count, most)):
            label = self._draw_class(rng, i)
            sprite = self.pool.draw(rng, label, int(self.original[i]))
            if sprite is None or not painter.paste(rng, sprite, label):
                painter.refused += 1
        return painter.result()

    def in_loader(
        self, image: np.ndarray, boxes_xyxy: np.ndarray, i: int, rows: np.ndarray, seed: int, most_objects=None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What ``CocoDetection`` calls between resizing and augmentation: photo ``i`` uint8 [H, W, 3], its
        ``boxes_xyxy`` [n, 4] in pixels and their ``rows`` [n] in the index, to the picture, boxes and labels after
        pasting, ``most_objects`` at most. A function of its arguments alone.
        """
        index, most = self.segmentations.index, None if most_objects is None else max(most_objects - len(rows), 0)
        pasted = self(image, i, (seed, 1), most)
        seen = pasted.seen(rows)
        keep = np.isin(rows, [*seen])
        boxes_xyxy = boxes_xyxy[keep]
        for k, layer in enumerate(seen.values()):
            if layer:
                boxes_xyxy[k] = xywh_to_xyxy(np.array(layer.bbox))
        new = xywh_to_xyxy(np.array([layer.bbox for layer in pasted.layers], np.float32).reshape(-1, 4))
        names = [index.classes.index(layer.label.name) for layer in pasted.layers]
        labels = np.concatenate([index.labels[rows][keep], np.array(names, np.int64)])
        return pasted.image, np.concatenate([boxes_xyxy, new]), labels

    def _draw_class(self, rng: np.random.Generator, i: int) -> int:
        classes = self.pool.classes
        if self.context is None:
            return int(classes[rng.integers(len(classes))])
        index = self.segmentations.index
        there = np.unique(index.labels[index.rows(i)])
        weights = self.context.together[classes][:, there].mean(axis=1) + 0.02 if len(there) else np.ones(len(classes))
        return int(rng.choice(classes, p=weights / weights.sum()))


class _Painter:
    """One photo while things are pasted onto it; its own objects become layers only when something comes near them."""

    def __init__(self, recipe: CopyPaste, image: np.ndarray, i: int):
        self.recipe, self.i, self.refused = recipe, i, 0
        self.canvas = Canvas(image, MIN_VISIBLE, MIN_SIDE, dropping=True)
        index, (self.height, self.width) = recipe.segmentations.index, image.shape[:2]
        self.factor = np.array([self.width / index.widths[i], self.height / index.heights[i]])
        self.rows = index.rows(i)
        self.boxes_xyxy = index.boxes_xyxy[self.rows] * np.tile(self.factor, 2)
        self.before: dict[int, Layer] = {}

    def paste(self, rng: np.random.Generator, sprite: Sprite, label: int) -> bool:
        patch = self._scaled(rng, sprite)
        if not patch.size:
            return False
        height, width = patch.shape[:2]
        for _ in range(TRIES):
            x, y = self._place(rng, label)
            left, top = int(x - width / 2), int(y - height / 2)
            if -width < left < self.width and -height < top < self.height:
                self._touch(left, top, left + width, top + height)
                if self.canvas.paste(patch, left, top, sprite):
                    return True
        return False

    def _scaled(self, rng: np.random.Generator, sprite: Sprite) -> np.ndarray:
        """Flipped half of the time, at a random size: premultiplied RGBA."""
        height, width = sprite.rgba.shape[:2]
        scale = np.exp(rng.uniform(*np.log(SCALES))) * self.factor
        scale *= min(1.0, LARGEST * max(self.height, self.width) / max(width * scale[0], height * scale[1]))
        size = max(1, round(width * scale[0])), max(1, round(height * scale[1]))
        rgba = sprite.rgba[:, ::-1] if rng.random() < 0.5 else sprite.rgba
        return cropped(cv2.resize(rgba, size, interpolation=cv2.INTER_AREA if max(scale) < 1 else cv2.INTER_LINEAR))

    def _place(self, rng: np.random.Generator, label: int) -> tuple[float, float]:
        """Where the middle of a sprite of class ``label`` goes."""
        x, y = rng.uniform(0, self.width), rng.uniform(0, self.height)
        context = self.recipe.context
        if context is None:
            return x, y
        heights = context.heights[label]
        if len(heights):
            y = (heights[rng.integers(len(heights))] + rng.normal(0, 0.03)) * self.height
        if len(self.rows) and rng.random() < 0.5:
            x0, _, x1, _ = self.boxes_xyxy[rng.integers(len(self.rows))]
            x = (x0 + x1) / 2 + rng.normal(0, 1) * (x1 - x0)
        return x, y

    def _touch(self, left: int, top: int, right: int, bottom: int) -> None:
        """Make layers of the annotations whose boxes meet a rectangle."""
        x0, y0, x1, y1 = self.boxes_xyxy.T
        for row in self.rows[(x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)].tolist():
            if row not in self.before:
                layer = self.recipe.segmentations.layer(row, self.i, self.height, self.width)
                self.before[row] = layer
                self.canvas.layers.insert(0, layer)  # below all that is pasted, none of which meets it

    def result(self) -> Pasted:
        after = {layer.label: layer for layer in self.canvas.layers if not isinstance(layer.label, Sprite)}
        changed = {row: after.get(row) for row, before in self.before.items() if after.get(row) is not before}
        layers = [layer for layer in self.canvas.layers if isinstance(layer.label, Sprite)]
        return Pasted(self.canvas.image, changed, layers, self.refused)


def recipe(cfg: Config, index: CocoIndex, places: str) -> CopyPaste:
    """Copy-paste with the objects of ``index``, the whole training split of ``cfg`` or a part of it."""
    segmentations = Segmentations.read(index, cfg.annotation_file("train2017"))
    return CopyPaste(segmentations, cut_pool(segmentations, cfg.seed), cfg.paste_objects, places)


def paste_step(cfg: Config) -> Callable | None:
    """The step of the training loader that ``cfg.copy_paste`` asks for; None for ``none``.

    Pool and segmentations are made once, before the workers are, which then share them.
    """
    return None if cfg.copy_paste == "none" else recipe(cfg, open_split(cfg, "train2017"), cfg.copy_paste).in_loader
