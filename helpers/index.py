"""COCO annotations as flat arrays. Importing this does not import torch: a process that only reads annotations stays
small.

The map between COCO's category ids and the model's class indices 0..K-1 exists once, in :class:`CocoIndex`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath

import msgspec
import numpy as np
import orjson

from helpers.boxes import xywh_to_xyxy
from helpers.coco_columns import Columns, Photos, PlainReader, pieces, plain_photos
from helpers.coco_records import annotation_problem, check_categories, check_file_name, image_problem, is_id, read_coco
from helpers.config import Config
from helpers.files import require


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
        counts = (self.starts[1:] - self.starts[:-1])[keep]
        return CocoIndex(
            self.image_dir,
            self.classes,
            self.category_ids,
            self.image_ids[keep],
            self.file_names[keep],
            self.heights[keep],
            self.widths[keep],
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            self.bbox[rows],
            self.labels[rows],
            self.iscrowd[rows],
            self.areas[rows],
            self.annotation_ids[rows],
            [*self.dropped, *dropped],
        )

    @classmethod
    def open(cls, annotation_file: Path, image_dir: Path) -> CocoIndex:
        """Read a COCO annotation file; a record that cannot be used is dropped and listed in ``dropped``.

        Raises UserError when the file is no COCO annotation file, or when a photo's name leads out of ``image_dir``.
        """
        annotation_file, image_dir = Path(annotation_file), Path(image_dir)
        categories, photos, columns, dropped = read_plain(annotation_file, image_dir) or read_whole(
            annotation_file, image_dir
        )
        columns = columns.take(np.argsort(columns.owner, kind="stable"))  # COCO's order within a photo
        return cls(
            image_dir=image_dir,
            classes=tuple(str(c["name"]) for c in categories),
            category_ids=tuple(int(c["id"]) for c in categories),
            image_ids=photos.ids,
            file_names=np.array(photos.names, dtype=str),
            heights=photos.heights.astype(np.int32),
            widths=photos.widths.astype(np.int32),
            starts=np.searchsorted(columns.owner, np.arange(len(photos.ids) + 1)),
            bbox=columns.bbox,
            labels=columns.labels,
            iscrowd=columns.iscrowd,
            areas=columns.areas,
            annotation_ids=columns.ids,
            dropped=dropped,
        )


def open_split(cfg: Config, split: str) -> CocoIndex:
    """The index of ``train2017`` or ``val2017``; UserError when notebook 01 has not run."""
    return CocoIndex.open(require(cfg.annotation_file(split), "01_download"), cfg.image_dir(split))


def read_plain(annotation_file: Path, image_dir: Path) -> tuple[list[dict], Photos, Columns, list[dict]] | None:
    """Categories, usable photos, usable annotations and dropped records, without the whole document in memory.

    None where the file is not laid out as COCO's is, or an id is there twice: then ``read_whole`` has to look at all of
    it.
    """
    try:
        parts = pieces(annotation_file)
        document = next(parts)
        check_categories(document.categories, annotation_file, once=True)
        category_ids = tuple(category["id"] for category in document.categories)
        found = plain_photos(document.images, _present(image_dir))
        if found is None:
            return None
        photos, dropped = found
        categories = document.categories
        del document
        reader, position, columns = PlainReader(photos, category_ids), None, []
        for piece in parts:
            part = reader.columns(piece)
            if part is None:
                position = position or {key: i for i, key in enumerate(photos.ids.tolist())}
                part = _checked(orjson.loads(piece), photos, position, category_ids, annotation_file, dropped)
            columns.append(part)
    except (OSError, ValueError, msgspec.DecodeError):
        return None
    columns = Columns.join([Columns.of([]), *columns])
    if len(np.unique(columns.ids)) < len(columns.ids):
        return None
    return categories, photos, columns, dropped


def read_whole(annotation_file: Path, image_dir: Path) -> tuple[list[dict], Photos, Columns, list[dict]]:
    """What ``read_plain`` gives, of any file, record by record. Raises UserError as ``CocoIndex.open``."""
    coco = read_coco(annotation_file)
    categories = coco["categories"]
    check_categories(categories, annotation_file, once=True)
    images, dropped = _usable_images(coco["images"], image_dir, annotation_file)
    ids, heights, widths = (
        np.array([image[name] for image in images], dtype=np.int64) for name in ("id", "height", "width")
    )
    photos = Photos(
        ids,
        [image["file_name"] for image in images],
        heights,
        widths,
        {image["id"] for image in coco["images"] if is_id(image.get("id"))},
    )
    position = {key: i for i, key in enumerate(ids.tolist())}
    category_ids = tuple(category["id"] for category in categories)
    return (
        categories,
        photos,
        _checked(coco["annotations"], photos, position, category_ids, annotation_file, dropped),
        dropped,
    )


def _checked(
    records: list[dict],
    photos: Photos,
    position: dict[int, int],
    category_ids: tuple[int, ...],
    annotation_file: Path,
    dropped: list[dict],
) -> Columns:
    """The usable ones of ``records``, checked one by one; the others go to the end of ``dropped``, with the reason."""
    index_of = {category: k for k, category in enumerate(category_ids)}
    rows, seen = [], set()
    for record in records:
        owner = record.get("image_id")
        i = position.get(owner) if is_id(owner) else None
        if i is None:
            if not is_id(owner) or owner not in photos.listed:  # else its photo was dropped, and is in the list
                dropped.append(
                    {"file": annotation_file.name, "why": f"annotation {record.get('id')}: no photo {owner!r}"}
                )
            continue
        image = {"width": int(photos.widths[i]), "height": int(photos.heights[i])}
        why = annotation_problem(record, image, index_of, seen)
        if why:
            dropped.append({"file": photos.names[i], "why": f"annotation {record.get('id')}: {why}"})
            continue
        seen.add(record["id"])
        bbox = record["bbox"]
        rows.append(
            (
                i,
                index_of[record["category_id"]],
                record["id"],
                bbox,
                record.get("area", bbox[2] * bbox[3]),
                bool(record.get("iscrowd", 0)),
            )
        )
    return Columns.of(rows)


def _present(image_dir: Path) -> set[str]:
    """What is in the folder, with "/" between folder and name.

    (A Path for each of 118,000 photos would take seconds.)
    """
    found = set()
    for folder, folders, files in os.walk(image_dir):
        inside = PurePath(folder).relative_to(image_dir).as_posix()
        found.update(name if inside == "." else f"{inside}/{name}" for name in (*folders, *files))
    return found


def _usable_images(records: list[dict], image_dir: Path, annotation_file: Path) -> tuple[list[dict], list[dict]]:
    images, dropped, seen = [], [], set()
    present = _present(image_dir)
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
