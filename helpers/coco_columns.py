"""COCO's annotation files, half a gigabyte of JSON, as columns: read piece by piece, checked by the column.

Only what is plain is read here. A piece of the file with anything unusual in it is read and checked record by record,
by
``helpers.coco_records``, whose verdicts and sentences hold; so is the whole file where it cannot be cut into pieces.
"""

from __future__ import annotations

import mmap
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

PIECE = 8 * 2**20  # bytes of the file that are parsed at once
PLAIN_NAME = re.compile(r"[\w-]+\.\w+", re.ASCII).fullmatch  # of a photo: in no subfolder, so certainly not outside


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int
    segmentation: msgspec.Raw = msgspec.Raw()  # its text


class _Image(msgspec.Struct, gc=False):
    id: int
    width: int
    height: int
    file_name: str


class _Document(msgspec.Struct):
    images: list[_Image]
    annotations: str  # the mark that stands for them
    categories: list[dict]


@dataclass
class Photos:
    """The photos of a file that can be used: N ids, names, heights and widths; ``listed`` holds the ids of all of
    them.
    """

    ids: np.ndarray
    names: list[str]
    heights: np.ndarray
    widths: np.ndarray
    listed: set[int]


@dataclass
class Columns:
    """M annotations: positions of their photos and of their categories, and COCO's values."""

    owner: np.ndarray  # [M]
    labels: np.ndarray  # [M]
    ids: np.ndarray  # [M]
    bbox: np.ndarray  # [M, 4]
    areas: np.ndarray  # [M]
    iscrowd: np.ndarray  # [M] bool

    @classmethod
    def of(cls, rows: list[tuple]) -> Columns:
        """From tuples (owner, label, id, bbox, area, iscrowd)."""
        owner, labels, ids, bbox, areas, iscrowd = zip(*rows) if rows else [()] * 6
        return cls(
            np.array(owner, np.int64),
            np.array(labels, np.int64),
            np.array(ids, np.int64),
            np.array(bbox, np.float64).reshape(-1, 4),
            np.array(areas, np.float64),
            np.array(iscrowd, bool),
        )

    @classmethod
    def join(cls, parts: list[Columns]) -> Columns:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def take(self, rows: np.ndarray) -> Columns:
        return Columns(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def pieces(annotation_file: Path) -> Iterator[bytes | _Document]:
    """The file without its annotations, as a ``_Document``; then the annotations, as texts of JSON lists.

    Raises ValueError where the file cannot be cut so. A piece is cut between ``}`` and ``{``, wherever that may be:
    only if each piece is JSON in itself, which the caller finds out, were these the ends of records.
    """
    with open(annotation_file, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = re.compile(rb'"annotations"\s*:\s*\[').search(text)
        if start is None:
            raise ValueError("no annotations")
        at, texts = start.end(), []
        end = re.compile(rb"\s*\]").match(text, at)
        while end is None:
            last = re.compile(rb"\}\s*\]").search(text, at, at + PIECE)
            cut = last.start() if last else text.rfind(b"},{", at, at + PIECE)
            if cut < 0:
                cut = text.rfind(b"}, {", at, at + PIECE)
            if cut < at:
                raise ValueError("no end of a record")
            texts.append((at, cut + 1))
            at, end = text.find(b"{", cut) if not last else cut, last
            _forget(text, cut)
        mark = uuid.uuid4().hex
        with memoryview(text) as view:
            rest = b"".join((view[: start.end() - 1], f'"{mark}"'.encode(), view[end.end() :]))
        document = msgspec.json.decode(rest, type=_Document)
        if document.annotations != mark:
            raise ValueError("another list of annotations counts")
        del rest
        yield document
        for first, after in texts:
            yield b"[" + text[first:after] + b"]"
            _forget(text, after)


def _forget(text: mmap.mmap, until: int) -> None:
    """What was read no longer has to be resident; it is read again from the file when it is needed."""
    text.madvise(mmap.MADV_DONTNEED, 0, until // mmap.PAGESIZE * mmap.PAGESIZE)


def plain_photos(images: list[_Image], present: set[str]) -> tuple[Photos, list[dict]] | None:
    """The photos that are ``present``, and the others as dropped records. None when a record needs a closer look."""
    try:
        ids, heights, widths = (
            np.array([getattr(image, name) for image in images], np.int64) for name in ("id", "height", "width")
        )
    except OverflowError:
        return None
    names = [image.file_name for image in images]
    listed = set(ids.tolist())
    sides = np.stack([heights, widths])
    if (
        len(listed) < len(ids)
        or (ids == -(2**63)).any()
        or not ((sides > 0) & (sides < 10**6)).all()
        or not all(map(PLAIN_NAME, names))
    ):
        return None
    here = np.array([name in present for name in names], bool)
    dropped = [{"file": names[i], "why": "the photo is missing"} for i in np.flatnonzero(~here)]
    return Photos(ids[here], [names[i] for i in np.flatnonzero(here)], heights[here], widths[here], listed), dropped


class PlainReader:
    """Turns pieces of the file into columns, for ``photos`` and ``category_ids``."""

    def __init__(self, photos: Photos, category_ids: tuple[int, ...]):
        self.photos, self.category_ids = photos, np.array(category_ids, np.int64)
        self.by_id, self.by_category = np.argsort(photos.ids), np.argsort(self.category_ids)
        self.all_listed = np.array(sorted(photos.listed), np.int64)
        self.decoder = msgspec.json.Decoder(list[_Annotation])

    def columns(self, piece: bytes) -> Columns | None:
        """The piece's annotations of usable photos; None when a record is unusual in any way, be it allowed or not."""
        try:
            records = self.decoder.decode(piece)
            ids, image_ids, categories, iscrowd = (
                np.array([getattr(record, name) for record in records], np.int64)
                for name in ("id", "image_id", "category_id", "iscrowd")
            )
        except (msgspec.ValidationError, OverflowError):
            return None
        bbox = np.array([record.bbox for record in records], np.float64).reshape(-1, 4)
        areas = np.array([record.area for record in records], np.float64)
        owner, known = _positions(self.photos.ids, self.by_id, image_ids)
        labels, right = _positions(self.category_ids, self.by_category, categories)
        x, y, w, h = bbox.T
        width, height = (
            np.where(known, side[owner] if len(side) else 0, 1e100)
            for side in (self.photos.widths, self.photos.heights)
        )
        usable = (
            right
            & (ids > -(2**63))
            & (iscrowd >= 0)
            & (iscrowd <= 1)
            & (np.abs(areas) < 1e100)
            & (np.abs(bbox) < 1e100).all(axis=1)
            & (w > 0)
            & (h > 0)
            & (x < width)
            & (y < height)
            & (x + w > 0)
            & (y + h > 0)
            & (w <= 2 * width)
            & (h <= 2 * height)
        )
        listed = known | np.isin(image_ids, self.all_listed)
        if not (usable & listed).all() or not plain_polygons([bytes(record.segmentation) for record in records]):
            return None
        return Columns(owner, labels, ids, bbox, areas, iscrowd.astype(bool)).take(np.flatnonzero(known))


def _positions(values: np.ndarray, order: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where ``wanted`` stand in ``values``, sorted by ``order``, and which of them are there at all."""
    if not len(values):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    found = order[np.searchsorted(values, wanted, sorter=order).clip(max=len(values) - 1)]
    return found, values[found] == wanted


def plain_polygons(texts: list[bytes]) -> bool:
    """Whether every segmentation is a list of lists of ordinary numbers, or no list at all; all texts are valid
    JSON.
    """
    polygons = [text for text in texts if text[:1] == b"[" and text != b"[]"]
    joined = b"\n" + b"\n".join(polygons) + b"\n"
    if not polygons:
        return True
    if joined.count(b"\n") != len(polygons) + 1 or b"0" * 300 in joined.translate(
        bytes.maketrans(b"123456789", b"0" * 9)
    ):
        return False  # a line break within, or a number that may be too large
    marks = joined.translate(None, b"0123456789.- ")  # brackets and commas are left, of ordinary numbers
    brackets = marks.translate(None, b",")
    # [[..],[..]] and nothing else: each begins with [[ and ends with ]], and between two lists stands one comma
    return (
        all(re.fullmatch(rb"\[(\[\])+\]", line) for line in set(brackets.split(b"\n")[1:-1]))
        and marks.count(b"\n[[") == marks.count(b"]]\n") == len(polygons)
        and marks.count(b"],[") == brackets.count(b"[]") - len(polygons)
    )
