"""The objects of a split as things that can be cut out, pasted and covered: COCO's segmentations as masks."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import msgspec
import numpy as np
from pycocotools import mask as coco_mask

from helpers.dataset import read_image
from helpers.files import UserError
from helpers.index import CocoIndex
from helpers.scenes.compositor import Layer, Sprite, cropped, premultiplied

EDGE = 0.7  # standard deviation in pixels of the blur that makes the edge of a cut-out soft
SHORT, LONG = 8, 20  # pixels that the sides of an object must have to be cut out
PER_CLASS = 100  # objects that are cut out
MOST_OF_PHOTO = 0.4  # share of the photo; what fills more of it is its background


class _Record(msgspec.Struct, gc=False):
    id: int
    segmentation: msgspec.Raw = msgspec.Raw()  # its text


class _File(msgspec.Struct):
    annotations: list[_Record]


@dataclass(frozen=True, eq=False)
class Segmentations:
    """The segmentation of each of an index's M annotations, as the text of COCO's file: row k is
    ``text[starts[k]:starts[k + 1]]``, empty where there is none. Two arrays, so that data-loader workers share them.
    """

    index: CocoIndex
    text: np.ndarray  # uint8
    starts: np.ndarray  # [M + 1]

    @classmethod
    def read(cls, index: CocoIndex, annotation_file: Path) -> Segmentations:
        """Of the annotations of ``index``, which was read from ``annotation_file``. UserError: a damaged file."""
        data = annotation_file.read_bytes()
        try:
            records = msgspec.json.decode(data, type=_File).annotations
        except msgspec.DecodeError:  # of NaN and the like, which 01 leaves in fields that nobody needs
            text_of = lambda record: msgspec.Raw(json.dumps(record.get("segmentation")).encode())
            try:
                records = [_Record(record["id"], text_of(record)) for record in json.loads(data)["annotations"]]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{annotation_file} cannot be read ({error}): run notebook 01_download again."
                ) from None
        wanted = dict.fromkeys(index.annotation_ids.tolist(), b"")
        for record in records:
            if record.id in wanted:
                text = bytes(record.segmentation)
                wanted[record.id] = b"" if text in (b"[]", b"null") else text
        texts = list(wanted.values())
        starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
        return cls(index, np.frombuffer(b"".join(texts), np.uint8), starts)

    @property
    def there(self) -> np.ndarray:
        """[M] bool: whether an annotation has a mask."""
        return np.diff(self.starts) > 0

    def of(self, row: int):
        """COCO's polygons or RLE of an annotation; None where it has none."""
        text = self.text[self.starts[row] : self.starts[row + 1]].tobytes()
        return msgspec.json.decode(text) if text else None

    def layer(self, row: int, i: int, height: int, width: int) -> Layer:
        """Annotation ``row`` of photo ``i`` as a thing of that photo at ``height`` x ``width`` pixels.

        An annotation without a mask is its whole box. A crowd region is protected. The label is ``row``.
        """
        index = self.index
        factor = np.array([width / index.widths[i], height / index.heights[i]])
        box = index.boxes_xyxy[row].reshape(2, 2) * factor
        left, top = np.clip(np.floor(box[0] + 1e-4).astype(int), 0, [width - 1, height - 1]).tolist()
        right, bottom = np.clip(np.ceil(box[1] - 1e-4).astype(int), [left + 1, top + 1], [width, height]).tolist()
        whole = _whole_mask(self.of(row), factor, height, width)
        mask = None if whole is None else whole[top:bottom, left:right]
        if mask is None or not mask.any():
            mask = np.ones((bottom - top, right - left), bool)
        return Layer(row, int(mask.sum()), np.ascontiguousarray(mask), left, top, bool(index.iscrowd[row]))


def _whole_mask(segmentation, factor: np.ndarray, height: int, width: int) -> np.ndarray | None:
    """bool [height, width]: COCO's RLE at this size, or polygons times ``factor`` (x, y); None: there is neither."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = coco_mask.frPyObjects(segmentation, *segmentation["size"])
        whole = cv2.resize(coco_mask.decode(segmentation), (width, height), interpolation=cv2.INTER_NEAREST)
        return whole.view(bool)
    points = [np.array(polygon, float) for polygon in segmentation or () if len(polygon) >= 6]
    scaled = [(xy[: len(xy) // 2 * 2].reshape(-1, 2) * factor).ravel().tolist() for xy in points]
    if not scaled:
        return None
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(scaled, height, width))).view(bool)


def encoded(mask: np.ndarray) -> dict:
    """COCO's RLE of a bool mask [H, W]; it decodes to these very pixels."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


@dataclass(frozen=True, eq=False)
class Pool:
    """Objects cut out of the photos of a split: S premultiplied sprites with (photo, row) in the index as ``base``."""

    sprites: list[Sprite]
    labels: np.ndarray  # [S] class indices
    left_out: dict[str, int] = field(default_factory=dict)  # objects that were not cut out, by reason

    @cached_property
    def classes(self) -> np.ndarray:
        """The class indices that there are sprites of."""
        return np.unique(self.labels)

    @cached_property
    def photos(self) -> np.ndarray:
        """[S] the photo that each was cut out of."""
        return np.array([sprite.base[0] for sprite in self.sprites])

    def draw(self, rng: np.random.Generator, label: int, i: int) -> Sprite | None:
        """A random sprite of a class that is from another photo than ``i`` (of ``originals``); None: there is none."""
        choices = np.flatnonzero((self.labels == label) & (self.photos != i))
        return self.sprites[choices[rng.integers(len(choices))]] if len(choices) else None


def originals(index: CocoIndex) -> np.ndarray:
    """[N] for each photo of an index the first one that it is a copy of, as ``arms`` names copies."""
    names = [re.sub(r"^again_\d+/", "", name) for name in index.file_names.tolist()]
    _, first, which = np.unique(names, return_index=True, return_inverse=True)
    return first[which]


def cut_pool(segmentations: Segmentations, seed: int) -> Pool:
    """Cut out ``PER_CLASS`` random objects of each class, or all where there are fewer.

    Only what has a mask, is no crowd region, stands whole in its photo and is neither tiny nor most of it. Raises
    UserError when no object is left.
    """
    index, rng, chosen = segmentations.index, np.random.default_rng((seed, 0)), []
    owner = np.repeat(np.arange(len(index)), np.diff(index.starts))
    reasons = _unusable(segmentations, owner)
    counts = Counter(reasons[reasons != ""].tolist())
    for label in range(len(index.classes)):
        rows = np.flatnonzero((index.labels == label) & (reasons == ""))
        chosen += rng.permutation(rows)[:PER_CLASS].tolist()
        counts["enough of this class"] += max(0, len(rows) - PER_CLASS)
    sprites, labels = [], []
    for i in np.unique(owner[chosen]) if chosen else ():
        mine = [row for row in chosen if owner[row] == i]
        try:
            image = read_image(index.path(i), int(index.heights[i]), int(index.widths[i]))
        except OSError:
            counts["photo cannot be read"] += len(mine)
            continue
        for row in mine:
            labels.append(index.labels[row])
            sprites.append(Sprite(index.classes[labels[-1]], (int(i), row), cut_out(image, segmentations, row, i)))
    if not sprites:
        raise UserError(
            "No object of the training split can be cut out: copy-paste needs annotations with masks "
            "(segmentation), on objects that stand whole in their photo."
        )
    return Pool(sprites, np.array(labels), {reason: n for reason, n in counts.items() if n})


def _unusable(segmentations: Segmentations, owner: np.ndarray) -> np.ndarray:
    """[M] why an annotation is no object to cut out; empty where it is one."""
    index = segmentations.index
    x, y, w, h = index.bbox.T
    width, height = index.widths[owner], index.heights[owner]
    reasons = {
        "photo that is there twice": originals(index)[owner] != owner,
        "crowd region": index.iscrowd,
        "no mask": ~segmentations.there,
        "cut by the border": (x < 1) | (y < 1) | (x + w > width - 1) | (y + h > height - 1),
        "tiny": (np.minimum(w, h) < SHORT) | (np.maximum(w, h) < LONG),
        "most of its photo": w * h > MOST_OF_PHOTO * width * height,
    }  # the first one that holds counts
    return np.select([*reasons.values()], [*reasons], "")


def cut_out(image: np.ndarray, segmentations: Segmentations, row: int, i: int) -> np.ndarray:
    """An object as premultiplied RGBA uint8 [h, w, 4] with soft edges, from its photo uint8 [H, W, 3]."""
    (height, width), margin = image.shape[:2], 3
    layer = segmentations.layer(row, i, height, width)
    bottom, right = layer.top + layer.mask.shape[0], layer.left + layer.mask.shape[1]
    part = np.s_[max(layer.top - margin, 0) : bottom + margin, max(layer.left - margin, 0) : right + margin]
    alpha = 255 * layer.whole_mask(height, width)[part].astype(np.float32)
    alpha = cv2.GaussianBlur(alpha, (0, 0), EDGE).round().astype(np.uint8)
    return np.ascontiguousarray(cropped(premultiplied(np.dstack([image[part], alpha]))))
