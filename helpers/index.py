"""COCO annotations as flat arrays, opened from what notebook 01 wrote beside each annotation file.

The map between COCO's category ids and the model's class indices 0..K-1 exists once, in :class:`CocoIndex`. The
annotation file itself is read in one place, ``helpers.download.coco``. Importing this does not import torch: a process
that only reads annotations stays small.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath

import numpy as np
import safetensors
import safetensors.numpy

from helpers.boxes import xywh_to_xyxy
from helpers.config import Config
from helpers.files import UserError, portable, require, sha256, write_atomic

ARRAYS = ("image_ids", "heights", "widths", "starts", "bbox", "labels", "iscrowd", "areas", "annotation_ids")
NAMES = ("classes", "category_ids", "file_names", "dropped")


@dataclass(frozen=True)
class CocoIndex:
    """One split's annotations: N images, M annotations, K classes.

    The annotations of image i are rows ``starts[i]:starts[i + 1]``; arrays are shared between data-loader workers.
    """

    image_dir: Path
    classes: tuple[str, ...]  # K names, class index 0..K-1
    category_ids: tuple[int, ...]  # K COCO category ids
    image_ids: np.ndarray  # [N] COCO image ids
    file_names: np.ndarray  # [N] relative to image_dir
    heights: np.ndarray  # [N] pixels
    widths: np.ndarray  # [N] pixels
    starts: np.ndarray  # [N + 1]
    bbox: np.ndarray  # [M, 4] COCO's x, y, width, height, the published values
    labels: np.ndarray  # [M] class indices
    iscrowd: np.ndarray  # [M] bool
    areas: np.ndarray  # [M] square pixels, COCO's (of the mask)
    annotation_ids: np.ndarray  # [M]
    dropped: list[dict] = field(default_factory=list)  # {"file", "why"} of records that cannot be used

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def boxes_xyxy(self) -> np.ndarray:
        """[M, 4] pixels, float32."""
        return xywh_to_xyxy(self.bbox).astype(np.float32)

    def path(self, i: int) -> Path:
        return self.image_dir / str(self.file_names[i])

    def rows(self, i: int, crowd: bool = True) -> np.ndarray:
        """Row numbers of image i's annotations, without the crowd regions if ``crowd`` is false."""
        rows = np.arange(self.starts[i], self.starts[i + 1])
        return rows if crowd else rows[~self.iscrowd[rows]]

    def take(self, keep: np.ndarray, dropped: list[dict] = ()) -> CocoIndex:
        """The index of the images ``keep`` (positions), in that order."""
        rows = np.concatenate([self.rows(i) for i in keep]) if len(keep) else np.zeros(0, int)
        starts = np.concatenate([[0], np.cumsum(np.diff(self.starts)[keep])]).astype(np.int64)
        images = {name: getattr(self, name)[keep] for name in ("image_ids", "file_names", "heights", "widths")}
        records = {name: getattr(self, name)[rows] for name in ARRAYS[4:]}
        return replace(self, **images, starts=starts, **records, dropped=[*self.dropped, *dropped])

    def without_missing(self) -> CocoIndex:
        """The index of the photos that are in ``image_dir``; the others are listed in ``dropped``."""
        here = present(self.image_dir)
        names = enumerate(self.file_names.tolist())
        missing = [i for i, name in names if name not in here and PurePosixPath(name).as_posix() not in here]
        if not missing:
            return self
        dropped = [{"file": str(self.file_names[i]), "why": "the photo is missing"} for i in missing]
        return self.take(np.setdiff1d(np.arange(len(self)), missing), dropped)

    def save(self, annotation_file: Path) -> Path:
        """Write the index beside the annotation file that it was read from, for :func:`open_split`."""
        head = {name: list(getattr(self, name)) for name in NAMES} | {"annotations": sha256(annotation_file)}
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in ARRAYS}
        return write_atomic(index_file(annotation_file), safetensors.numpy.save(arrays, {"index": json.dumps(head)}))


def index_file(annotation_file: Path) -> Path:
    return Path(annotation_file).with_suffix(".index.safetensors")


def open_split(cfg: Config, split: str) -> CocoIndex:
    """The index of ``train2017`` or ``val2017``, as notebook 01 left it.

    Photos that have gone since are listed in ``dropped``. Raises UserError when 01 has not run, or when the annotation
    file is another one now.
    """
    annotation_file = require(cfg.annotation_file(split), "01_download")
    try:
        with safetensors.safe_open(index_file(annotation_file), "np") as file:
            head = json.loads(file.metadata()["index"])
            if head["annotations"] == sha256(annotation_file):
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
                names = {"classes": tuple(head["classes"]), "category_ids": tuple(head["category_ids"])}
                files = np.array(head["file_names"], dtype=str)
                whole = CocoIndex(cfg.image_dir(split), **names, file_names=files, **arrays, dropped=head["dropped"])
                return whole.without_missing()
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError):
        pass
    raise UserError(
        f"{portable(annotation_file)} is not as notebook 01 left it, or its index is missing: run notebook "
        "01_download again (python -m helpers.run --only 01)."
    )


def present(image_dir: Path) -> set[str]:
    """What is in the folder, with "/" between folder and name; a Path for each of 118,000 photos would take seconds."""
    found = set()
    for folder, folders, files in os.walk(image_dir):
        inside = PurePath(folder).relative_to(image_dir).as_posix()
        found.update(name if inside == "." else f"{inside}/{name}" for name in (*folders, *files))
    return found
