"""Copy-paste as a step of the training loader: other pictures in every epoch, nothing on the disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from helpers.boxes import xywh_to_xyxy
from helpers.config import Config
from helpers.index import CocoIndex, open_split
from helpers.synthetic_data.copy_paste import CopyPaste
from helpers.synthetic_data.objects import Segmentations, cut_pool


@dataclass(frozen=True, eq=False)
class PasteStep:
    """What ``CocoDetection`` calls between resizing and augmentation.

    Pool and segmentations are made once, before the workers are, which then share them.
    """

    copy_paste: CopyPaste

    def __call__(
        self, image: np.ndarray, boxes_xyxy: np.ndarray, i: int, rows: np.ndarray, seed: int, most_objects=None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Photo ``i`` uint8 [H, W, 3], its ``boxes_xyxy`` [n, 4] in pixels and their ``rows`` [n] in the index, to the
        picture, boxes and labels after pasting, ``most_objects`` at most. A function of its arguments alone.
        """
        most = None if most_objects is None else max(most_objects - len(rows), 0)
        index, pasted = self.copy_paste.segmentations.index, self.copy_paste(image, i, (seed, 1), most)
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


def paste_step(cfg: Config) -> PasteStep | None:
    """The step that ``cfg.copy_paste`` asks for; None for ``none``."""
    return None if cfg.copy_paste == "none" else PasteStep(recipe(cfg, open_split(cfg, "train2017"), cfg.copy_paste))


def recipe(cfg: Config, index: CocoIndex, places: str) -> CopyPaste:
    """Copy-paste with the objects of ``index``, the whole training split of ``cfg`` or a part of it."""
    segmentations = Segmentations.read(index, cfg.annotation_file("train2017"))
    return CopyPaste(segmentations, cut_pool(segmentations, cfg.seed), cfg.paste_objects, places)
