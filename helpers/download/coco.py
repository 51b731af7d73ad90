"""The data of a split: its annotation files joined, classes and photos chosen."""

from __future__ import annotations

import difflib
import random
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np

from helpers.download.reader import read_file
from helpers.download.records import Records, check_categories
from helpers.files import UserError
from helpers.index import CocoIndex

SPLITS = ("train2017", "val2017")


def read_index(annotation_file: Path, image_dir: Path) -> CocoIndex:
    """All of one annotation file; what cannot be used is listed in ``dropped``. UserError as :func:`read_split`."""
    return read_split([(annotation_file, image_dir)]).index(image_dir).without_missing()


def read_split(files: list[tuple[Path, Path]]) -> Records:
    """Read and join the annotation files of one split; ``files`` holds (annotation file, photo folder) pairs.

    Raises UserError for a file that is no COCO annotation file, for a photo whose name leads out of its folder, and
    where two files use one id or one photo name: ids must survive, so neither can give way.
    """
    whole, owners = None, {}
    for annotation_file, folder in files:
        part = read_file(Path(annotation_file), Path(folder))
        if len(files) > 1:
            _check_new(part, annotation_file, owners)
        whole = _joined(whole, part, annotation_file) if whole else part
    return whole


def _joined(whole: Records, part: Records, annotation_file: Path) -> Records:
    check_categories(whole.categories + part.categories, annotation_file)
    known = [category["id"] for category in whole.categories]
    categories = whole.categories + [category for category in part.categories if category["id"] not in known]
    position = {category["id"]: k for k, category in enumerate(categories)}
    part.rows["image"] += len(whole.images)
    part.rows["label"] = np.array([position[c["id"]] for c in part.categories], np.int64)[part.rows["label"]]
    lists = ("images", "folders", "texts", "dropped", "notes", "total")
    both = {name: getattr(whole, name) + getattr(part, name) for name in lists}
    rows = np.concatenate([whole.rows, part.rows])
    return Records(categories, **both, rows=rows, header=whole.header or part.header)


def _check_new(part: Records, annotation_file: Path, owners: dict) -> None:
    """``owners``: (kind, key) -> the file that has it; within a file each is there once."""
    keys = [("image id", image["id"]) for image in part.images]
    keys += [("photo", PurePosixPath(image["file_name"]).as_posix()) for image in part.images]
    keys += [("annotation id", key) for key in part.rows["id"].tolist()]
    for kind, key in keys:
        if (kind, key) in owners:
            raise UserError(
                f"{kind} {key} is both in {owners[kind, key]} and in {annotation_file}: folders that are joined must "
                "not share ids or photo names; leave one of them out of coco_root."
            )
    owners.update(dict.fromkeys(keys, annotation_file))


def pick_classes(train: Records, classes: tuple[str, ...] | None, top_k: int | None) -> list[dict]:
    """The category records of ``classes``, in that order, or of the ``top_k`` most frequent, in order of their id.

    Frequency is the number of single instances (``iscrowd`` 0) in the train annotations; a tie goes to the lower id.
    Raises UserError for an unknown class and for more classes than there are.
    """
    by_name = {category["name"]: category for category in train.categories}
    if classes is not None:
        for name in classes:
            if name not in by_name:
                alike = {other.casefold(): other for other in by_name}
                close = difflib.get_close_matches(name.casefold(), alike, n=1, cutoff=0.0)
                nearest = repr(alike[close[0]]) if close else "none"
                raise UserError(f"There is no class {name!r} in the annotations; the nearest is {nearest}.")
        return [by_name[name] for name in classes]
    count = np.bincount(train.rows["label"][~train.rows["iscrowd"]], minlength=len(train.categories))
    there = [k for k, n in enumerate(count) if n]
    if top_k > len(there):
        why = f": {train.none_because()}" if train.dropped else ""
        raise UserError(f"top_k={top_k}, but the train annotations hold objects of {len(there)} classes only{why}.")
    most = sorted(there, key=lambda k: (-count[k], train.categories[k]["id"]))[:top_k]
    return sorted((train.categories[k] for k in most), key=lambda category: category["id"])


def pick_images(
    whole: Records, categories: list[dict], limit: int | None, seed: int, split: str, background: float = 0.0
) -> Records:
    """The photos with at least one single instance of ``categories``: all, or ``limit`` of them drawn with ``seed``;
    and ``background`` times as many that show nothing of these categories, as far as there are any.

    A larger limit gives a superset, so that a download can grow. Raises UserError when there is no such photo.
    """
    position = {category["id"]: k for k, category in enumerate(categories)}
    label = np.array([position.get(category["id"], -1) for category in whole.categories], np.int64)
    mine, ids = label[whole.rows["label"]] >= 0, np.array([image["id"] for image in whole.images], np.int64)
    crowd = whole.rows["iscrowd"]
    photos_with = lambda boxes: np.bincount(whole.rows["image"][boxes], minlength=len(ids)) > 0
    shown, crowded = photos_with(mine & ~crowd), photos_with(mine & crowd)
    eligible, notes = sorted(ids[shown].tolist()), list(whole.notes)
    if (crowded & ~shown).any():
        names = np.array([category["name"] for category in whole.categories])[whole.rows["label"][mine & crowd]]
        most = ", ".join(f"{name}: {n}" for name, n in Counter(names.tolist()).most_common(10))
        notes.append(
            f"Crowd regions (iscrowd 1) of {split}, which are not learnt from: {len(names)} of {mine.sum()} boxes "
            f"({most}). Photos that show nothing else and are not used: {(crowded & ~shown).sum()}."
        )
    if not eligible:
        names = ", ".join(category["name"] for category in categories)
        why = f"all {mine.sum()} of their boxes are crowd regions (iscrowd 1)" if mine.any() else whole.none_because()
        raise UserError(f"No photo of {split} shows any of {names}: {why}.")
    random.Random(f"{seed} {split}").shuffle(eligible)
    others = sorted(ids[~photos_with(mine)].tolist())
    random.Random(f"{seed} {split} background").shuffle(others)
    taken = eligible[:limit] + others[: round(background * len(eligible[:limit]))]
    chosen = whole.take(np.isin(ids, taken), mine, categories=categories, eligible=len(eligible), notes=notes)
    chosen.rows["label"] = label[chosen.rows["label"]]
    return chosen
