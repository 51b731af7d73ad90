"""The photos of a COCO index: decoded, checked, and as samples in batches of like shape."""

import hashlib
import signal
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader

from helpers.index import CocoIndex


def read_image(path: Path, height: int, width: int) -> np.ndarray:
    """Decode a photo to RGB, uint8 [H, W, 3]; greyscale, CMYK, palette, 16-bit and animated files (first frame) too.

    Raises OSError when the file is broken or its size is not the annotated ``height`` x ``width``. A camera's rotation
    mark (EXIF) is followed only if that gives the annotated size: COCO's boxes belong to the stored pixels.
    """
    try:
        with Image.open(path) as file:  # reads the header only, and refuses a size that would fill the memory
            if file.format == "JPEG" and file.mode == "RGB" and file.size == (width, height):
                image = _decode_plain_jpeg(path)
                if image is not None and image.shape == (height, width, 3):
                    return image
            file.load()
            image = file if file.size == (width, height) else ImageOps.exif_transpose(file)
            if image.size != (width, height):
                size = f"{image.width} x {image.height}"
                raise OSError(f"{path.name} is {size} pixels, its record says {width} x {height}")
            if image.mode[0] in "IF":  # more than 8 bits a pixel; convert("RGB") would clip instead of scale
                grey = np.asarray(image).astype(np.float32)
                most = next((limit for limit in (1, 255, 4095, 65535) if grey.max() <= limit), grey.max())
                image = Image.fromarray((grey * (255 / most)).clip(0, 255).astype(np.uint8))
            return np.array(image.convert("RGB"))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise OSError(f"{path.name} cannot be decoded: {error}") from error


def _decode_plain_jpeg(path: Path) -> np.ndarray | None:
    """A colour JPEG to RGB, uint8 [H, W, 3]: Pillow's pixels, sooner. None when it is damaged: Pillow says how."""
    data = np.fromfile(path, dtype=np.uint8)
    if data[-2:].tobytes() != b"\xff\xd9":
        return None  # no end-of-image mark: OpenCV would fill what is missing with grey, without a word
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


class CocoDetection(torch.utils.data.Dataset):
    """Photos with their boxes, resized and augmented, before collation.

    A sample is ``{"image": uint8 [H, W, 3], "boxes_xyxy": float32 [n, 4] (pixels of ``image``), "class_labels": int64
    [n], "image_id": int, "orig_size": (height, width)}``. Crowd regions are left out: they are no single object to
    learn from. A photo that cannot be decoded gives ``{"image": None, ...}``, which the collator drops and counts. Of a
    photo with more than ``most_objects`` the largest are taken. ``paste`` (``paste_step`` of ``synthetic_data``) puts
    more of them onto the resized photo, before ``augment``.
    """

    def __init__(self, index: CocoIndex, resize, augment=None, seed=0, most_objects=None, epoch=0, paste=None):
        self.index, self.resize, self.augment, self.most_objects = index, resize, augment, most_objects
        self.seed, self.epoch, self.paste = seed, epoch, paste  # seed and epoch of paste and augment
        _ = index.boxes_xyxy  # computed here, not in each data-loader worker, which would have a copy of its own

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
        labels, seed = index.labels[rows], sample_seed(self.seed, self.epoch, sample["image_id"])
        if self.paste is not None:
            image, boxes_xyxy, labels = self.paste(image, boxes_xyxy, i, rows, seed, self.most_objects)
        if self.augment is not None:
            image, boxes_xyxy, labels = self.augment(image, boxes_xyxy, labels, seed)
        return {**sample, "image": image, "boxes_xyxy": boxes_xyxy, "class_labels": labels}


class PhotoLoader(DataLoader):
    """Its workers leave Ctrl-C and SIGTERM, which may reach every process, to the loop, from their first moment on."""

    def __iter__(self):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # the workers inherit it
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(_worker: int) -> None:
    """One thread: OpenCV else starts as many as there are cores in every worker, as PyTorch does not."""
    cv2.setNumThreads(0)


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
