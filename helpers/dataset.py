"""COCO annotations as flat arrays, and the photos that belong to them.

The map between COCO's category ids and the model's class indices 0..K-1 exists once, in :class:`CocoIndex`.
"""
from __future__ import annotations

import hashlib
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from helpers.boxes import xywh_to_xyxy
from helpers.coco_records import annotation_problem, check_categories, check_file_name, image_problem, is_id, read_coco
from helpers.config import Config, require


@dataclass(frozen=True)
class CocoIndex:
    """One split's annotations: N images, M annotations, K classes.

    The annotations of image i are rows ``starts[i]:starts[i + 1]``; arrays are shared between data-loader workers.
    """

    image_dir: Path
    classes: tuple[str, ...]       # K names, class index 0..K-1
    category_ids: tuple[int, ...]  # K COCO category ids
    image_ids: np.ndarray          # [N] COCO image ids
    file_names: np.ndarray         # [N] relative to image_dir
    heights: np.ndarray            # [N] pixels
    widths: np.ndarray             # [N] pixels
    starts: np.ndarray             # [N + 1]
    bbox: np.ndarray               # [M, 4] COCO's x, y, width, height, the published values
    labels: np.ndarray             # [M] class indices
    iscrowd: np.ndarray            # [M] bool
    areas: np.ndarray              # [M] square pixels, COCO's (of the mask)
    annotation_ids: np.ndarray     # [M]
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

    def take(self, keep: np.ndarray, dropped: list[dict] = ()) -> "CocoIndex":
        """The index of the images ``keep`` (positions), in that order."""
        rows = np.concatenate([self.rows(i) for i in keep]) if len(keep) else np.zeros(0, int)
        counts = (self.starts[1:] - self.starts[:-1])[keep]
        return CocoIndex(
            self.image_dir, self.classes, self.category_ids, self.image_ids[keep], self.file_names[keep], self.heights[keep],
            self.widths[keep], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), self.bbox[rows], self.labels[rows],
            self.iscrowd[rows], self.areas[rows], self.annotation_ids[rows], [*self.dropped, *dropped])

    @classmethod
    def open(cls, annotation_file: Path, image_dir: Path) -> "CocoIndex":
        """Read a COCO annotation file; a record that cannot be used is dropped and listed in ``dropped``.

        Raises UserError when the file is no COCO annotation file, or when a photo's name leads out of ``image_dir``.
        """
        coco = read_coco(annotation_file)
        categories = coco["categories"]
        check_categories(categories, annotation_file, once=True)
        category_ids = tuple(int(c["id"]) for c in categories)
        index_of = {category: k for k, category in enumerate(category_ids)}
        images, dropped = _usable_images(coco["images"], Path(image_dir), annotation_file)
        position = {image["id"]: i for i, image in enumerate(images)}
        listed = {image["id"] for image in coco["images"] if is_id(image.get("id"))}

        rows, seen = [], set()
        for record in coco["annotations"]:
            owner = record.get("image_id")
            i = position.get(owner) if is_id(owner) else None
            if i is None:
                if not is_id(owner) or owner not in listed:  # else its photo was dropped, and is in the list
                    dropped.append({"file": Path(annotation_file).name, "why": f"annotation {record.get('id')}: no photo {owner!r}"})
                continue
            why = annotation_problem(record, images[i], index_of, seen)
            if why:
                dropped.append({"file": str(images[i]["file_name"]), "why": f"annotation {record.get('id')}: {why}"})
            else:
                seen.add(record["id"])
                rows.append((i, index_of[record["category_id"]], record))
        rows.sort(key=lambda row: row[0])  # stable: COCO's order within a photo
        owner = np.array([row[0] for row in rows], dtype=np.int64)
        return cls(
            image_dir=Path(image_dir),
            classes=tuple(str(c["name"]) for c in categories),
            category_ids=category_ids,
            image_ids=np.array([image["id"] for image in images], dtype=np.int64),
            file_names=np.array([image["file_name"] for image in images], dtype=str),
            heights=np.array([image["height"] for image in images], dtype=np.int32),
            widths=np.array([image["width"] for image in images], dtype=np.int32),
            starts=np.searchsorted(owner, np.arange(len(images) + 1)),
            bbox=np.array([row[2]["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
            labels=np.array([row[1] for row in rows], dtype=np.int64),
            iscrowd=np.array([bool(row[2].get("iscrowd", 0)) for row in rows], dtype=bool),
            areas=np.array([row[2].get("area", row[2]["bbox"][2] * row[2]["bbox"][3]) for row in rows], dtype=np.float64),
            annotation_ids=np.array([row[2]["id"] for row in rows], dtype=np.int64),
            dropped=dropped,
        )


def open_split(cfg: Config, split: str) -> CocoIndex:
    """The index of ``train2017`` or ``val2017``; UserError when notebook 01 has not run."""
    return CocoIndex.open(require(cfg.annotation_file(split), "01_download"), cfg.image_dir(split))


def _usable_images(records: list[dict], image_dir: Path, annotation_file: Path) -> tuple[list[dict], list[dict]]:
    images, dropped, seen = [], [], set()
    present = {path.relative_to(image_dir).as_posix() for path in image_dir.rglob("*")} if image_dir.is_dir() else set()
    for record in records:
        check_file_name(record.get("file_name", ""), annotation_file)
        why = image_problem(record, seen)
        if why is None and PurePosixPath(record["file_name"]).as_posix() not in present:
            why = "the photo is missing"
        if why:
            dropped.append({"file": str(record["file_name"]), "why": why})
        else:
            seen.add(record["id"])
            images.append(record)
    return images, dropped


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """Decode a photo to RGB, uint8 [H, W, 3]; greyscale, CMYK, palette, 16-bit and animated files (first frame) too.

    Raises OSError when the file is broken or its size is not the annotated ``height`` x ``width``. A camera's rotation
    mark (EXIF) is followed only if that gives the annotated size: COCO's boxes belong to the stored pixels.
    """
    try:
        with Image.open(path) as file:  # reads the header only, and refuses a size that would fill the memory
            if file.format == "JPEG" and file.mode == "RGB" and (file.height, file.width) == (height, width):
                image = _decode_plain_jpeg(path)
                if image is not None and image.shape == (height, width, 3):
                    return image
            file.load()
            image = file
            if (image.height, image.width) != (height, width):
                from PIL import ImageOps

                image = ImageOps.exif_transpose(image)
            if (image.height, image.width) != (height, width):
                raise OSError(f"{path.name} is {image.width} x {image.height} pixels, its record says {width} x {height}")
            if image.mode.startswith("I"):  # 16 bits a pixel; convert("RGB") would clip instead of scale
                image = Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8))
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(f"{path.name} cannot be decoded: {error}") from error


def _decode_plain_jpeg(path: Path) -> np.ndarray | None:
    """A colour JPEG to RGB, uint8 [H, W, 3]: Pillow's pixels, a bit sooner. None when it is damaged: Pillow says in what way."""
    import cv2

    data = np.fromfile(path, dtype=np.uint8)
    if data[-2:].tobytes() != b"\xff\xd9":
        return None  # no end-of-image mark: OpenCV would fill what is missing with grey, without a word
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def drop_broken_images(index: CocoIndex, workers: int = 2) -> CocoIndex:
    """Decode every photo once; the index without those that fail, each listed in ``dropped`` with the reason."""

    def problem(i: int) -> str | None:
        try:
            read_image(index.path(i), int(index.heights[i]), int(index.widths[i]))
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(workers) as pool:
        problems = list(pool.map(problem, range(len(index))))
    dropped = [{"file": str(index.file_names[i]), "why": why} for i, why in enumerate(problems) if why]
    return index.take(np.array([i for i, why in enumerate(problems) if not why], dtype=int), dropped) if dropped else index


class CocoDetection(torch.utils.data.Dataset):
    """Photos with their boxes, resized and augmented, before collation.

    A sample is ``{"image": uint8 [H, W, 3], "boxes_xyxy": float32 [n, 4] (pixels of ``image``), "class_labels": int64 [n],
    "image_id": int, "orig_size": (height, width)}``. Crowd regions are left out: they are no single object to learn from.
    A photo that cannot be decoded gives ``{"image": None, ...}``, which the collator drops and counts. Of a photo with more
    than ``most_objects`` the largest are taken.
    """

    def __init__(self, index: CocoIndex, resize, augment=None, seed: int = 0, most_objects: int | None = None):
        self.index, self.resize, self.augment, self.seed, self.epoch, self.most_objects = index, resize, augment, seed, 0, most_objects

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> dict:
        index = self.index
        rows = index.rows(i, crowd=False)
        if self.most_objects and len(rows) > self.most_objects:
            rows = np.sort(rows[np.argsort(-index.areas[rows], kind="stable")[: self.most_objects]])
        height, width = int(index.heights[i]), int(index.widths[i])
        sample = {"image_id": int(index.image_ids[i]), "orig_size": (height, width), "class_labels": index.labels[rows]}
        try:
            image = read_image(index.path(i), height, width)
        except OSError:
            return {**sample, "image": None}
        image, boxes_xyxy = self.resize(image, index.boxes_xyxy[rows])
        labels = index.labels[rows]
        if self.augment is not None:
            image, boxes_xyxy, labels = self.augment(image, boxes_xyxy, labels, sample_seed(self.seed, self.epoch, sample["image_id"]))
        return {**sample, "image": image, "boxes_xyxy": boxes_xyxy, "class_labels": labels}


def leave_signals_to_the_loop(_worker: int) -> None:
    """For data-loader workers: a Ctrl-C or SIGTERM that reaches every process must not kill them before the loop has stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def sample_seed(seed: int, epoch: int, image_id: int) -> int:
    """A photo's own random seed: the same whatever the worker, the batch size or the point where a run was resumed."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{epoch}/{image_id}".encode(), digest_size=4).digest(), "big")


def epoch_batches(index: CocoIndex, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The shuffled batches (positions) of an epoch, photos of like shape together so that little is padding.

    A function of its arguments alone, so a resumed run sees the same batches. Every photo comes once an epoch.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(index))
    aspect = (index.widths / index.heights)[order]
    window = np.arange(len(order)) // (batch_size * 32)  # sort by shape within a window only: batches stay random
    order = order[np.lexsort((aspect, window))]
    batches = [order[k : k + batch_size] for k in range(0, len(order), batch_size)]
    return [batches[k] for k in random.permutation(len(batches))]
