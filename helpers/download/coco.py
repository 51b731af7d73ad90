"""COCO folders as a source: join their annotation files, choose classes and photos.

A record is never changed: ids, `iscrowd`, `area` and `segmentation` leave here as they were published. Only where a
home-made file leaves out `iscrowd` or `area`, which evaluation needs, they are added (0, and the area of the box).
"""

from __future__ import annotations

import difflib
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers.coco_records import annotation_problem, check_categories, check_file_name, image_problem, is_id, read_coco
from helpers.files import UserError

SPLITS = ("train2017", "val2017")


@dataclass
class Records:
    """One split: COCO's records, the folder that each photo lies in, and what had to be left out."""

    categories: list[dict] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    folders: dict[int, Path] = field(default_factory=dict)  # image id -> folder of the photo
    dropped: list[dict] = field(default_factory=list)  # {"file", "why"}
    header: dict = field(default_factory=dict)  # "info" and "licenses"
    eligible: int = 0  # photos that could have been chosen

    def as_coco(self) -> dict:
        lists = {"categories": self.categories, "images": self.images, "annotations": self.annotations}
        return {**self.header, **lists}

    def photo(self, image: dict) -> Path:
        return self.folders[image["id"]] / image["file_name"]

    def without(self, broken: dict[int, str]) -> Records:
        """The same split without the photos ``broken`` (image id -> reason), which are listed as dropped."""
        lost = [image for image in self.images if image["id"] in broken]
        return replace(
            self,
            images=[image for image in self.images if image["id"] not in broken],
            annotations=[record for record in self.annotations if record["image_id"] not in broken],
            dropped=self.dropped + [{"file": image["file_name"], "why": broken[image["id"]]} for image in lost],
        )


def read_split(files: list[tuple[Path, Path]]) -> Records:
    """Read and join the annotation files of one split; ``files`` holds (annotation file, photo folder) pairs.

    Raises UserError for a file that is no COCO annotation file, for a photo whose name leads out of its folder, and
    where two files use one id or one photo name: ids must survive, so neither can give way.
    """
    if len(files) == 1:
        return _read_one(*files[0])
    whole, owners = Records(), {}
    for annotation_file, folder in files:
        part = _read_one(annotation_file, folder)
        _check_new(part, annotation_file, owners)
        check_categories(whole.categories + part.categories, annotation_file)
        known = {category["id"] for category in whole.categories}
        whole.categories += [category for category in part.categories if category["id"] not in known]
        whole.images += part.images
        whole.annotations += part.annotations
        whole.folders |= part.folders
        whole.dropped += part.dropped
        whole.header = whole.header or part.header
    return whole


def _check_new(part: Records, annotation_file: Path, owners: dict) -> None:
    for kind, keys in (
        ("image id", [image["id"] for image in part.images]),
        ("photo", [image["file_name"] for image in part.images]),
        ("annotation id", [record["id"] for record in part.annotations]),
    ):
        for key in keys:
            other = owners.setdefault((kind, key), annotation_file)
            if other != annotation_file:
                raise UserError(
                    f"{kind} {key} is both in {other} and in {annotation_file}: folders that are joined "
                    "must not share ids or photo names; leave one of them out of coco_root."
                )


def _read_one(annotation_file: Path, folder: Path) -> Records:
    coco = read_coco(annotation_file)
    check_categories(coco["categories"], annotation_file, once=True)
    images, dropped = {}, []
    for image in coco["images"]:
        check_file_name(image.get("file_name"), annotation_file)
        why = image_problem(image, images)
        if why:
            dropped.append({"file": image["file_name"], "why": why})
        else:
            images[image["id"]] = image
    annotations, seen, known = [], set(), {category["id"] for category in coco["categories"]}
    for record in coco["annotations"]:
        image = images.get(record.get("image_id")) if is_id(record.get("image_id")) else None
        why = annotation_problem(record, image, known, seen) if image else f"no photo {record.get('image_id')!r}"
        if why:
            dropped.append(
                {
                    "file": image["file_name"] if image else annotation_file.name,
                    "why": f"annotation {record.get('id')}: {why}",
                }
            )
            continue
        seen.add(record["id"])
        if "iscrowd" not in record or "area" not in record:
            record = {"iscrowd": 0, "area": record["bbox"][2] * record["bbox"][3], **record}
        annotations.append(record)
    header = {name: coco[name] for name in ("info", "licenses") if name in coco}
    folders = dict.fromkeys(images, folder)
    return Records(coco["categories"], list(images.values()), annotations, folders, dropped, header)


def pick_classes(train: Records, classes: tuple[str, ...] | None, top_k: int | None) -> list[dict]:
    """The category records of ``classes``, in that order, or of the ``top_k`` most frequent, in order of their id.

    Frequency is the number of single instances (``iscrowd`` 0) in the train annotations; a tie goes to the lower id.
    Raises UserError for an unknown class and for more classes than there are.
    """
    by_name = {category["name"]: category for category in train.categories}
    if classes is not None:
        for name in classes:
            if name not in by_name:
                close = ", ".join(map(repr, difflib.get_close_matches(name, by_name, n=1, cutoff=0.0)))
                raise UserError(f"There is no class {name!r} in the annotations; the nearest is {close or 'none'}.")
        return [by_name[name] for name in classes]
    count = Counter(record["category_id"] for record in train.annotations if not record["iscrowd"])
    if top_k > len(count):
        raise UserError(f"top_k={top_k}, but the train annotations hold objects of {len(count)} classes only.")
    most = sorted(count, key=lambda key: (-count[key], key))[:top_k]
    by_id = {category["id"]: category for category in train.categories}
    return [by_id[key] for key in sorted(most)]


def pick_images(whole: Records, categories: list[dict], limit: int | None, seed: int, split: str) -> Records:
    """The photos with at least one single instance of ``categories``: all, or ``limit`` of them drawn with ``seed``.

    A larger limit gives a superset, so that a download can grow. Raises UserError when there is no such photo.
    """
    wanted = {category["id"] for category in categories}
    mine = [record for record in whole.annotations if record["category_id"] in wanted]
    eligible = sorted({record["image_id"] for record in mine if not record["iscrowd"]})
    if not eligible:
        names = ", ".join(category["name"] for category in categories)
        raise UserError(f"No photo of {split} shows any of {names}: choose other classes, or a source that has some.")
    random.Random(f"{seed} {split}").shuffle(eligible)
    chosen = set(eligible[:limit])
    return replace(
        whole,
        categories=categories,
        images=[image for image in whole.images if image["id"] in chosen],
        annotations=[record for record in mine if record["image_id"] in chosen],
        folders={key: whole.folders[key] for key in chosen},
        eligible=len(eligible),
    )
