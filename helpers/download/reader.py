"""One COCO annotation file, COCO's own half gigabyte or a home-made one, read and checked.

The file is cut into the texts of its records. A few thousand of these at a time are checked by the column; where any of
them is unusual, they are judged record by record (``helpers.download.records``).
"""

import json
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import msgspec
import numpy as np
import pandas as pd

from helpers.download.records import (
    ROW,
    Records,
    annotation_problem,
    as_text,
    check_categories,
    check_file_name,
    image_problem,
    is_id,
    mended_annotation,
    mended_image,
)
from helpers.files import UserError

PIECE = 5000  # records that are parsed and checked at once
PLAIN_NAME = re.compile(r"[\w-]+\.\w+", re.ASCII).fullmatch  # of a photo: in no subfolder, so certainly not outside

_Id = Annotated[int, msgspec.Meta(gt=-(2**63), le=2**63 - 1)]
_Number = Annotated[float, msgspec.Meta(gt=-1e100, lt=1e100)]
_Side = Annotated[float, msgspec.Meta(gt=0, lt=1e100)]


class _Annotation(msgspec.Struct, gc=False):
    id: _Id
    image_id: _Id
    category_id: _Id
    bbox: tuple[_Number, _Number, _Side, _Side]
    area: Annotated[float, msgspec.Meta(ge=0, lt=1e100)]
    iscrowd: Literal[0, 1]
    segmentation: msgspec.Raw = msgspec.Raw()  # its text


class _Document(msgspec.Struct):
    images: list[dict]
    annotations: list[msgspec.Raw]
    categories: list[dict]
    info: msgspec.Raw = msgspec.Raw()
    licenses: msgspec.Raw = msgspec.Raw()


def read_file(annotation_file: Path, folder: Path) -> Records:
    """What a file and the ``folder`` of its photos hold; ``notes`` say what was read otherwise than it is written.

    Raises UserError for a file that is no COCO annotation file, and for a photo whose name leads out of its folder.
    """
    document = _read_document(annotation_file)
    check_categories(document.categories, annotation_file, once=True)
    judge = _Judge(annotation_file, folder, document.images, document.categories)
    rows, texts = np.zeros(len(document.annotations), ROW), []
    for start in range(0, len(rows), PIECE):
        piece = document.annotations[start : start + PIECE]
        found, kept = judge.plain(piece) or judge.one_by_one(piece)
        rows[len(texts) : len(texts) + len(kept)] = found
        texts += kept
    rows = rows[: len(texts)]
    twin = pd.Index(rows["id"]).duplicated()
    for row in rows[twin]:
        judge.drop(judge.images[row["image"]]["file_name"], f"annotation {row['id']}: its id is there twice")
    rows, texts = rows[~twin], [texts[i] for i in np.flatnonzero(~twin)]
    for key, boxes in judge.of_lost.items():
        judge.lost[key]["why"] += f" (its {boxes} annotations go with it)"
    notes = [
        f"{annotation_file.name}: {name} is not written as COCO writes it, and was read for what it must mean: "
        f"{count} times, the first {written!r} as {read!r}."
        for name, (count, written, read) in judge.mended.items()
    ]
    header = {name: bytes(getattr(document, name)) for name in ("info", "licenses") if getattr(document, name)}
    total, folders = len(document.images) + len(document.annotations), [folder] * len(judge.images)
    return Records(document.categories, judge.images, folders, rows, texts, judge.dropped, notes, total, header)


def _read_document(annotation_file: Path) -> _Document:
    """The file, cut into the texts of its records. Raises UserError when it is damaged or no COCO annotation file."""
    data = annotation_file.read_bytes()
    try:
        if not data.isascii():
            data.decode()
        return msgspec.json.decode(data, type=_Document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        coco = _from_text(data, annotation_file)  # takes NaN and a byte order mark, and says what is wrong
    lists = [coco.get(name) if isinstance(coco, dict) else None for name in ("images", "annotations", "categories")]
    if not all(isinstance(records, list) and all(isinstance(item, dict) for item in records) for records in lists):
        raise _no_coco_file(annotation_file)
    header = {name: as_text(coco[name]) for name in ("info", "licenses") if name in coco}
    images, annotations, categories = lists
    return _Document(images, [as_text(record) for record in annotations], categories, **header)


def _from_text(text: bytes, annotation_file: Path):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"is not valid JSON ({error}): it is damaged or cut short, get it again."
        raise UserError(f"{annotation_file} {why}") from None


def _no_coco_file(annotation_file: Path) -> UserError:
    return UserError(
        f"{annotation_file} is not a COCO annotation file: it must hold the lists images, annotations and categories."
    )


class _Judge:
    """Tells which records of a file can be used: ``images``, then the annotations of these piece by piece.

    ``dropped`` lists the others; annotations of photos that are not used are counted in ``of_lost``, by the photo's id.
    ``mended`` counts what was read otherwise than it is written: field -> [count, as written first, as read].
    """

    def __init__(self, annotation_file: Path, folder: Path, images: list[dict], categories: list[dict]):
        self.file, self.folder, self.images, self.dropped = annotation_file, folder, [], []
        self.lost, self.of_lost, self.mended = {}, Counter(), {}
        self._photos(images)
        self.by_id = pd.Index(np.array([image["id"] for image in self.images], np.int64))
        self.by_category = pd.Index(np.array([category["id"] for category in categories], np.int64))
        self.sizes = np.array([(image["width"], image["height"]) for image in self.images] or [(0, 0)], float)
        self.decoder = msgspec.json.Decoder(list[_Annotation])

    def drop(self, file: str, why: str) -> dict:
        self.dropped.append({"file": file, "why": why})
        return self.dropped[-1]

    def _photos(self, records: list[dict]) -> None:
        """Sort out the photos: an id or a name that does not say which photo is meant says nothing of its boxes."""
        names, seen = [], set()
        for i, image in enumerate(records):
            name = image.get("file_name")
            if not (isinstance(name, str) and PLAIN_NAME(name)):
                check_file_name(name, self.file)
                name = PurePosixPath(name).as_posix()
            if image_problem(image):
                records[i], changes = mended_image(image, self.folder)
                self._count(changes if image_problem(records[i]) is None else {})
            names.append(name)
        ids = [image["id"] if is_id(image.get("id")) else repr(image.get("id")) for image in records]
        named = [(key, name) for key, name in zip(ids, names) if is_id(key)]
        of_id, of_name = _together(named), _together([(name, key) for key, name in named])
        for key, name, image in zip(ids, names, records):
            why = image_problem(image)
            if len(of_id.get(key, ())) > 1:
                why = f"image id {key} stands for {' and '.join(sorted(of_id[key]))}, so its boxes for none of them"
            elif is_id(key) and len(of_name.get(name, ())) > 1:
                why = f"it stands under the image ids {' and '.join(map(str, of_name[name]))}, so the boxes of none fit"
            elif why is None and key in seen:
                self.drop(image["file_name"], f"image id {key} is there twice")
                continue
            if why is None:
                seen.add(key)
                self.images.append(image)
            else:
                self.lost[key] = self.drop(image["file_name"], why)

    def _count(self, changes: dict[str, tuple]) -> None:
        for name, (written, read) in changes.items():
            self.mended.setdefault(name, [0, written, read])[0] += 1

    def plain(self, texts: list) -> tuple[np.ndarray, list] | None:
        """Rows and texts of the annotations of usable photos; None when one is unusual in any way, allowed or not."""
        try:
            records = self.decoder.decode(b"[" + b",".join(texts) + b"]")
        except msgspec.DecodeError:
            return None
        values = ((r.image_id, r.category_id, r.id, r.bbox, r.area, r.iscrowd) for r in records)
        rows = np.fromiter(values, ROW, len(records))  # with ids where positions belong
        image_ids = rows["image"].copy()
        rows["image"], rows["label"] = self.by_id.get_indexer(image_ids), self.by_category.get_indexer(rows["label"])
        known, (x, y, w, h), (width, height) = rows["image"] >= 0, rows["bbox"].T, self.sizes[rows["image"]].T
        usable = known & (rows["label"] >= 0) & (w <= 2 * width) & (h <= 2 * height)
        usable &= (x < width) & (y < height) & (x + w > 0) & (y + h > 0)
        usable |= ~known & np.isin(image_ids, np.array([key for key in self.lost if is_id(key)], np.int64))
        if not usable.all() or not plain_polygons([bytes(record.segmentation) for record in records]):
            return None
        self.of_lost.update(image_ids[~known].tolist())
        return rows[known], [texts[i] for i in np.flatnonzero(known)]

    def one_by_one(self, texts: list) -> tuple[np.ndarray, list]:
        """The same for any annotations, judged one after the other."""
        rows, kept = [], []
        for text in texts:
            record = _from_text(bytes(text), self.file)
            if not isinstance(record, dict):
                raise _no_coco_file(self.file)
            record, changes = mended_annotation(record)
            key, owner = record.get("id"), record.get("image_id")
            i = self.by_id.get_loc(owner) if is_id(owner) and owner in self.by_id else None
            lost = owner if is_id(owner) else repr(owner) if isinstance(owner, str | float | int) else None
            why = annotation_problem(record, self.images[i], self.by_category) if i is not None else None
            if why:
                self.drop(self.images[i]["file_name"], f"annotation {key}: {why}")
            elif i is None and lost in self.lost:
                self.of_lost[lost] += 1
            elif i is None:
                what = "no image_id" if owner is None else f"no photo {owner!r}"
                self.drop(self.file.name, f"annotation {key}: {what}")
            else:
                x, y, w, h = record["bbox"]
                whole = {"iscrowd": 0, "area": w * h, **record}
                label = self.by_category.get_loc(record["category_id"])
                rows.append((i, label, key, (x, y, w, h), whole["area"], whole["iscrowd"]))
                kept.append(text if len(whole) == len(record) and not changes else as_text(whole))
                self._count(changes)
        return np.array(rows, ROW), kept


def _together(pairs: list[tuple]) -> dict:
    """key -> its different values, for keys that are there more than once."""
    table = pd.DataFrame(pairs, columns=["key", "value"], dtype=object)
    return table[table.duplicated("key", keep=False)].groupby("key")["value"].unique().to_dict()


def plain_polygons(texts: list[bytes]) -> bool:
    """Whether every segmentation, valid JSON, is a list of lists of ordinary numbers, or no list at all."""
    joined = b"\0".join(text for text in texts if text[:1] == b"[")  # no JSON holds a zero
    if b"0" * 100 in joined.translate(bytes.maketrans(b"123456789", b"0" * 9)):
        return False  # a number that may be too large
    marks = joined.translate(None, b"0123456789.- \n\r\t")  # brackets and commas are left, of ordinary numbers
    return all(re.fullmatch(rb"(\[(\[,*\](,\[,*\])*)?\])?", line) for line in set(marks.split(b"\0")))
