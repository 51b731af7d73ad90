"""Records of COCO annotation files: what makes one usable, and what is read though it is not written as COCO writes it.

Whatever is wrong is said in words. Only what can mean one thing is mended: "12" for 12, false for 0, a flat polygon.
Nothing else of a record is changed: what is chosen leaves here as the text that was published. Only where a home-made
file leaves out ``iscrowd`` or ``area``, which evaluation needs, they are added (0, and the area of the box).
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from helpers.files import UserError
from helpers.index import CocoIndex

# An annotation as a row: positions of its photo and of its category, and COCO's values.
ROW = np.dtype(
    [("image", "i8"), ("label", "i8"), ("id", "i8"), ("bbox", "f8", 4), ("area", "f8"), ("iscrowd", "?")], align=True
)


@dataclass
class Records:
    """One split, or a file of it: N usable photos and where they lie, M annotations of these in the file's order."""

    categories: list[dict]
    images: list[dict]  # N
    folders: list[Path]  # N, where each photo lies
    rows: np.ndarray  # [M] of ROW
    texts: list  # M annotations, JSON
    dropped: list[dict] = field(default_factory=list)  # {"file", "why"}
    notes: list[str] = field(default_factory=list)  # what a person should know before training
    total: int = 0  # records of photos and annotations in the files
    header: dict = field(default_factory=dict)  # "info" and "licenses", JSON
    eligible: int = 0  # photos that could have been chosen

    def photo(self, i: int) -> Path:
        return self.folders[i] / self.images[i]["file_name"]

    def take(self, photos: np.ndarray, annotations: np.ndarray | bool = True, **changes) -> Records:
        """The photos that ``photos`` [N] marks, with their annotations, of those that ``annotations`` [M] marks."""
        kept = photos[self.rows["image"]] & annotations
        rows, texts = self.rows[kept], [self.texts[i] for i in np.flatnonzero(kept)]
        rows["image"] = (np.cumsum(photos) - 1)[rows["image"]]
        images, folders = ([items[i] for i in np.flatnonzero(photos)] for items in (self.images, self.folders))
        return replace(self, images=images, folders=folders, rows=rows, texts=texts, **changes)

    def without(self, broken: dict[int, str]) -> Records:
        """The same split without the photos ``broken`` (position -> reason), which are listed as dropped."""
        boxes = np.bincount(self.rows["image"], minlength=len(self.images))
        words = {i: f"{why} (its {boxes[i]} annotations go with it)" for i, why in broken.items()}
        lost = [{"file": self.images[i]["file_name"], "why": why} for i, why in words.items()]
        return self.take(~np.isin(np.arange(len(self.images)), [*broken]), dropped=self.dropped + lost)

    def none_because(self) -> str:
        """The end of a sentence that nothing can be used: how many records were dropped, and the first one's reason."""
        lost = [row for row in self.dropped if row["why"].startswith("annotation")] or self.dropped
        if not lost:
            return "choose other classes, or a source that has some"
        first = f"{lost[0]['file']}, {lost[0]['why']}"
        return f"{len(self.dropped)} of the {self.total} records cannot be used, the first: {first}"

    def index(self, image_dir: Path) -> CocoIndex:
        """The same as arrays, of photos in ``image_dir``."""
        rows = self.rows[np.argsort(self.rows["image"], kind="stable")]  # COCO's order within a photo
        column = lambda name, kind: np.array([image[name] for image in self.images], kind)
        names = {"bbox": "bbox", "labels": "label", "iscrowd": "iscrowd", "areas": "area", "annotation_ids": "id"}
        return CocoIndex(
            image_dir=Path(image_dir),
            classes=tuple(category["name"] for category in self.categories),
            category_ids=tuple(category["id"] for category in self.categories),
            image_ids=column("id", np.int64),
            file_names=column("file_name", str),
            heights=column("height", np.int32),
            widths=column("width", np.int32),
            starts=np.searchsorted(rows["image"], np.arange(len(self.images) + 1)),
            **{name: np.ascontiguousarray(rows[field]) for name, field in names.items()},
            dropped=self.dropped,
        )

    def document(self) -> Iterator[bytes]:
        """The split as a COCO annotation file, piece by piece."""
        head = {**self.header, "categories": as_text(self.categories), "images": as_text(self.images)}
        yield b"{" + b"".join(b'"%s": %s, ' % (name.encode(), text) for name, text in head.items())
        yield b'"annotations": ['
        for start in range(0, len(self.texts), 5000):
            yield b", " * (start > 0) + b", ".join(self.texts[start : start + 5000])
        yield b"]}"


def as_text(value) -> bytes:
    """JSON that holds the value as it was read, NaN and whole numbers of any length too."""
    return json.dumps(value).encode()


def check_file_name(name, annotation_file: Path) -> None:
    """Raise UserError for a photo name that is no text, or absolute, or that climbs out of its folder."""
    if not isinstance(name, str) or not name or "\0" in name or not _is_unicode(name):
        raise UserError(f"{annotation_file} has a photo whose file_name is {name!r}: it must be a name such as 1.jpg.")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    windows = PureWindowsPath(name)
    if not parts or ".." in parts or name.startswith("/") or windows.root or (os.name == "nt" and windows.drive):
        raise UserError(
            f"{annotation_file} names the photo {name!r}, which leads out of its folder; this data set is refused."
        )


def check_categories(categories: list[dict], where, once: bool = False) -> None:
    """Raise UserError unless ids and names belong together one to one; ``once``: no category is there twice."""
    name_of, id_of = {}, {}
    for category in categories:
        key, name = category.get("id"), category.get("name")
        if not is_id(key) or not isinstance(name, str) or not name.strip() or not _is_unicode(name):
            raise UserError(f"{where}: category {category!r} needs a whole number as id and a name.")
        for table, left, right in ((name_of, key, name), (id_of, name, key)):
            if table.setdefault(left, right) != right:
                both = f"{table[left]!r} and {right!r}"
                raise UserError(f"{where}: category {left!r} is both {both}; ids and names of classes must agree.")
    if once and len(name_of) != len(categories):
        raise UserError(f"{where} lists a category twice.")


def mended_annotation(record: dict) -> tuple[dict, dict[str, tuple]]:
    """The record with what can mean one thing only read so, and field -> (as written, as read)."""
    new = {**record, **{name: _whole(record[name]) for name in ("id", "image_id", "category_id") if name in record}}
    if "iscrowd" in record:
        crowd = record["iscrowd"]
        new["iscrowd"] = int(crowd or 0) if isinstance(crowd, bool | None) else _whole(crowd)
    if "area" in record:
        new["area"] = _number(record["area"])
    bbox = _list(record.get("bbox"))
    if isinstance(bbox, list):
        numbers = [_number(value) for value in bbox]
        new["bbox"] = bbox if all(map(operator.is_, bbox, numbers)) else numbers
    polygon = record.get("segmentation")
    if isinstance(polygon, list) and len(polygon) >= 6 and all(map(_is_finite, polygon)):
        new["segmentation"] = [polygon]
    changes = {name: (record[name], new[name]) for name in record if new[name] is not record[name]}
    if "area" in new and new["area"] is None:
        del new["area"]  # as where it is left out
        changes["area"] = (None, "the box's")
    return new, changes


def mended_image(record: dict, folder: Path) -> tuple[dict, dict[str, tuple]]:
    """The same for a photo; where the record does not tell its size, the file in ``folder`` does."""
    new = {**record, **{name: _whole(record[name]) for name in ("id", "width", "height") if name in record}}
    stored = None if _has_size(new) else stored_frame(folder / record["file_name"])
    if stored and stored[2] < 5:  # a quarter turn leaves open which of two frames the boxes were drawn in
        new["width"], new["height"] = stored[:2]
    return new, {name: (record.get(name), new[name]) for name in new if new[name] is not record.get(name)}


def stored_frame(photo: Path) -> tuple[int, int, int] | None:
    """Width, height and a camera's rotation mark (EXIF, 1 for none) of a photo; None where its header is broken."""
    try:
        with Image.open(photo) as file:
            return *file.size, file.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def image_problem(image: dict) -> str | None:
    """Why the record of a photo cannot be used, or None."""
    if not is_id(image.get("id")):
        return f"image id {image.get('id')!r} is not a whole number of 64 bits"
    if not _has_size(image):
        return f"no valid width and height ({image.get('width')!r} x {image.get('height')!r})"
    return None


def _has_size(image: dict) -> bool:
    return all(is_id(image.get(side)) and 0 < image[side] < 10**6 for side in ("width", "height"))


def annotation_problem(record: dict, image: dict, category_ids) -> str | None:
    """Why an annotation of ``image`` cannot be used, or None.

    A box may stick out of its photo, as COCO's own do by a fraction of a pixel. A file may leave out area, iscrowd and
    segmentation; where they are, they must be usable.
    """
    bbox, area, polygons = record.get("bbox"), record.get("area", 0), record.get("segmentation")
    if not is_id(record.get("id")):
        return f"its id {record.get('id')!r} is not a whole number of 64 bits"
    if not is_id(record.get("category_id")) or record["category_id"] not in category_ids:
        return f"unknown category {record.get('category_id')!r}"
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_finite(value) for value in bbox)):
        return f"bbox {bbox!r} is not four finite numbers"
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        return f"bbox {bbox} has no area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return f"bbox {bbox} is outside the photo"
    if width > 2 * image["width"] or height > 2 * image["height"]:
        return f"bbox {bbox} is more than twice as large as the photo"
    if not _is_finite(area) or area < 0:
        return f"area {area!r} is {'negative' if _is_finite(area) else 'no number'}"
    if not is_id(record.get("iscrowd", 0)) or record.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd {record['iscrowd']!r} is not 0 or 1"
    if isinstance(polygons, list) and not all(isinstance(p, list) and all(map(_is_finite, p)) for p in polygons):
        return "segmentation holds something that is not a number, or one too large"
    return None


def is_id(value) -> bool:
    """A whole number that 64 bits hold; True and 1.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _whole(value):
    """12 for "12", "12.0" and 12.0; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,19}(\.0*)?\s*", value, re.ASCII):
        return int(value.split(".")[0])
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _number(value):
    """The number that a text spells; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if isinstance(_whole(value), str) else _whole(value)
    except ValueError:
        return value


def _list(value):
    """The list that a text spells; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    except (ValueError, RecursionError):
        return value


def _is_unicode(text: str) -> bool:
    return text.encode(errors="ignore").decode() == text


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100  # false for NaN too
