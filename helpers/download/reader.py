"""One COCO annotation file, COCO's own half gigabyte or a home-made one, read and checked.

The file is cut into the texts of its records. A few thousand of these at a time are checked by the column; where any of
them is unusual, they are judged record by record (``helpers.download.records``).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pandas as pd

from helpers.download.records import annotation_problem, check_categories, check_file_name, image_problem, is_id
from helpers.files import UserError

PIECE = 5000  # records that are parsed and checked at once
PLAIN_NAME = re.compile(r"[\w-]+\.\w+", re.ASCII).fullmatch  # of a photo: in no subfolder, so certainly not outside

# An annotation as a row: positions of its photo and of its category, and COCO's values.
ROW = np.dtype(
    [("image", "i8"), ("label", "i8"), ("id", "i8"), ("bbox", "f8", 4), ("area", "f8"), ("iscrowd", "?")], align=True
)


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int
    segmentation: msgspec.Raw = msgspec.Raw()  # its text


class _Document(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[dict]
    info: msgspec.Raw = msgspec.Raw()
    licenses: msgspec.Raw = msgspec.Raw()


def read_file(annotation_file: Path) -> dict:
    """``categories``, usable ``images``, annotations of these as ``rows`` [M] of ROW and as ``texts``, in the file's
    order, ``dropped`` ({"file", "why"} of what cannot be used) and ``header`` ("info", "licenses").

    Raises UserError for a file that is no COCO annotation file, and for a photo whose name leads out of its folder.
    """
    document = _read_document(annotation_file)
    check_categories(document.categories, annotation_file, once=True)
    images, lost, dropped = _photos(document.images, annotation_file)
    judge = _Judge(annotation_file, images, document.categories, lost)
    rows, texts = np.zeros(len(document.annotations), ROW), []
    for start in range(0, len(rows), PIECE):
        piece = document.annotations[start : start + PIECE]
        found, kept = judge.plain(piece) or judge.one_by_one(piece)
        rows[len(texts) : len(texts) + len(kept)] = found
        texts += kept
    rows = rows[: len(texts)]
    twin = pd.Index(rows["id"]).duplicated()
    for row in rows[twin]:
        why = f"annotation {row['id']}: its id is there twice"
        judge.dropped.append({"file": images[row["image"]]["file_name"], "why": why})
    if twin.any():
        rows, texts = rows[~twin], [texts[i] for i in np.flatnonzero(~twin)]
    for key, boxes in judge.of_lost.items():
        lost[key]["why"] += f" (its {boxes} annotations go with it)"
    header = {name: bytes(getattr(document, name)) for name in ("info", "licenses")}
    whole = {"categories": document.categories, "images": images, "rows": rows, "texts": texts}
    return whole | {"dropped": dropped + judge.dropped, "header": {name: text for name, text in header.items() if text}}


def _read_document(annotation_file: Path) -> _Document:
    """The file, cut into the texts of its records. Raises UserError when it is damaged or no COCO annotation file."""
    try:
        data = annotation_file.read_bytes()
        try:
            if not data.isascii():
                data.decode()
            return msgspec.json.decode(data, type=_Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            coco = json.loads(data)  # takes NaN and a byte order mark, and says what is wrong
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{annotation_file} is not valid JSON ({error}): it is damaged or cut short, get it again."
        ) from None
    lists = [coco.get(name) if isinstance(coco, dict) else None for name in ("images", "annotations", "categories")]
    if not all(isinstance(records, list) and all(isinstance(item, dict) for item in records) for records in lists):
        raise _no_coco_file(annotation_file)
    header = {name: as_text(coco[name]) for name in ("info", "licenses") if name in coco}
    images, annotations = ([as_text(record) for record in records] for records in lists[:2])
    return _Document(images, annotations, lists[2], **header)


def _no_coco_file(annotation_file: Path) -> UserError:
    return UserError(
        f"{annotation_file} is not a COCO annotation file: it must hold the lists images, annotations and categories."
    )


def as_text(value) -> bytes:
    """JSON that holds the value as it was read, NaN and whole numbers of any length too."""
    return json.dumps(value).encode()


def _photos(texts: list, annotation_file: Path) -> tuple[list[dict], dict[int, dict], list[dict]]:
    """The records of usable photos; the others as rows of ``dropped``, by their id where they have one, and all."""
    images, lost, dropped, seen = [], {}, [], set()
    for text in texts:
        image = _record(text, annotation_file)
        name = image.get("file_name")
        if not (isinstance(name, str) and PLAIN_NAME(name)):
            check_file_name(name, annotation_file)
        why, key = image_problem(image), image.get("id")
        if why is None and key in seen:
            dropped.append({"file": name, "why": f"image id {key} is there twice"})
        elif why is None:
            seen.add(key)
            images.append(image)
        else:
            dropped.append({"file": name, "why": why})
            if is_id(key):
                lost[key] = dropped[-1]
    return images, {key: entry for key, entry in lost.items() if key not in seen}, dropped


def _record(text, annotation_file: Path) -> dict:
    try:
        record = orjson.loads(bytes(text))
    except orjson.JSONDecodeError:
        record = json.loads(bytes(text))
    if not isinstance(record, dict):
        raise _no_coco_file(annotation_file)
    return record


class _Judge:
    """Tells which annotations of a file can be used. ``dropped`` lists the others; those of photos that are not used
    are counted in ``of_lost``, by the photo's id.
    """

    def __init__(self, annotation_file: Path, images: list[dict], categories: list[dict], lost: dict[int, dict]):
        self.file, self.images, self.lost = annotation_file, images, np.array([*lost], np.int64)
        self.by_id = pd.Index(np.array([image["id"] for image in images], np.int64))
        self.by_category = pd.Index(np.array([category["id"] for category in categories], np.int64))
        self.sizes = np.array([(image["width"], image["height"]) for image in images] or [(0, 0)], float)
        self.decoder = msgspec.json.Decoder(list[_Annotation])
        self.dropped, self.of_lost = [], Counter()

    def plain(self, texts: list) -> tuple[np.ndarray, list] | None:
        """Rows and texts of the annotations of usable photos; None when one is unusual in any way, allowed or not."""
        try:
            records = self.decoder.decode(b"[" + b",".join(texts) + b"]")
            ids, image_ids, category_ids, iscrowd = (
                np.fromiter(map(attrgetter(name), records), np.int64, len(records))
                for name in ("id", "image_id", "category_id", "iscrowd")
            )
        except (msgspec.DecodeError, OverflowError):
            return None
        rows = np.zeros(len(records), ROW)
        rows["image"], rows["label"] = self.by_id.get_indexer(image_ids), self.by_category.get_indexer(category_ids)
        rows["id"], rows["iscrowd"], rows["area"] = ids, iscrowd, [*map(attrgetter("area"), records)]
        numbers = chain.from_iterable(map(attrgetter("bbox"), records))
        rows["bbox"] = np.fromiter(numbers, float, 4 * len(records)).reshape(-1, 4)
        known, (x, y, w, h), (width, height) = rows["image"] >= 0, rows["bbox"].T, self.sizes[rows["image"]].T
        usable = (rows["label"] >= 0) & (ids > -(2**63)) & (iscrowd >= 0) & (iscrowd <= 1)
        usable &= (np.abs(rows["area"]) < 1e100) & (np.abs(rows["bbox"]) < 1e100).all(axis=1) & (w > 0) & (h > 0)
        usable &= (x < width) & (y < height) & (x + w > 0) & (y + h > 0) & (w <= 2 * width) & (h <= 2 * height)
        usable &= known
        usable |= ~known & np.isin(image_ids, self.lost)
        if not usable.all() or not plain_polygons([bytes(record.segmentation) for record in records]):
            return None
        self.of_lost.update(image_ids[~known].tolist())
        return rows[known], texts if known.all() else [texts[i] for i in np.flatnonzero(known)]

    def one_by_one(self, texts: list) -> tuple[np.ndarray, list]:
        """The same for any annotations, judged one after the other."""
        rows, kept = [], []
        for text in texts:
            record = _record(text, self.file)
            key, owner = record.get("id"), record.get("image_id")
            i = self.by_id.get_loc(owner) if is_id(owner) and owner in self.by_id else None
            if i is None and is_id(owner) and owner in self.lost:
                self.of_lost[owner] += 1
                continue
            if i is None:
                self.dropped.append({"file": self.file.name, "why": f"annotation {key}: no photo {owner!r}"})
                continue
            why = annotation_problem(record, self.images[i], self.by_category)
            if why:
                self.dropped.append({"file": self.images[i]["file_name"], "why": f"annotation {key}: {why}"})
                continue
            x, y, w, h = record["bbox"]
            whole = {"iscrowd": 0, "area": w * h, **record}
            label = self.by_category.get_loc(record["category_id"])
            rows.append((i, label, key, (x, y, w, h), whole["area"], whole["iscrowd"]))
            kept.append(text if len(whole) == len(record) else as_text(whole))
        return np.array(rows, ROW), kept


def plain_polygons(texts: list[bytes]) -> bool:
    """Whether every segmentation, valid JSON, is a list of lists of ordinary numbers, or no list at all."""
    joined = b"\0".join(text for text in texts if text[:1] == b"[")  # no JSON holds a zero
    if b"0" * 300 in joined.translate(bytes.maketrans(b"123456789", b"0" * 9)):
        return False  # a number that may be too large
    marks = joined.translate(None, b"0123456789.- \n\r\t")  # brackets and commas are left, of ordinary numbers
    return all(re.fullmatch(rb"(\[(\[,*\](,\[,*\])*)?\])?", line) for line in set(marks.split(b"\0")))
