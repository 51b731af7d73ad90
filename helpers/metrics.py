"""From a model to COCO detections, and from detections to COCO's numbers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from helpers.files import UserError, write_atomic
from helpers.index import CocoIndex

STATS = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large")
STATS += ("AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")  # COCO's twelve, in COCO's order


def save_detections(path: Path, detections: Sequence[dict]) -> Path:
    return write_atomic(path, orjson.dumps(list(detections)))


def load_detections(path: Path) -> list[dict]:
    """Read a COCO results file. Raises UserError when it is none."""
    try:
        detections = orjson.loads(Path(path).read_bytes())
    except orjson.JSONDecodeError:
        detections = None
    if not isinstance(detections, list):
        raise UserError(f"{Path(path).name} is not a COCO results file (a JSON list): run notebook 04_evaluate again.")
    return detections


def ground_truth(index: CocoIndex) -> dict:
    """An index as a COCO document, ids, crowds and areas as published: what metrics and error analysis compare with."""
    images = {"id": index.image_ids, "file_name": index.file_names, "height": index.heights, "width": index.widths}
    records = {"images": images, "categories": {"id": index.category_ids, "name": index.classes}}
    ids = (np.repeat(index.image_ids, np.diff(index.starts)), np.array(index.category_ids, np.int64)[index.labels])
    numbers = (index.bbox.astype(float), index.areas.astype(float), index.iscrowd.astype(int))
    document = {name: pd.DataFrame(columns).to_dict("records") for name, columns in records.items()}
    return {**document, "annotations": Annotations(index.annotation_ids, *ids, *numbers)}


def numbered(gt: dict, detections: Sequence[dict]) -> tuple[dict, Detections]:
    """Both with numbers from 1, in the order of the ids, instead of ids, which play no part in COCO's numbers.

    The engines do not take them for names only: pycocotools reads an annotation's id 0 as "no match", a table of
    float64 holds no id above 2^53, and hotcoco takes none below 0. What belongs to no photo or category of ``gt`` gets
    a number that is none of theirs.
    """
    owners = {"image_id": "images", "category_id": "categories"}
    ids = {name: column(gt[kind], "id") for name, kind in owners.items()}

    def number(name: str, values: np.ndarray) -> np.ndarray:
        at = pd.Index(np.unique(ids[name])).get_indexer(values)  # -1: none of them
        return np.where(at < 0, len(ids[name]), at) + 1

    truth, found = (
        replace(table, **{name: number(name, getattr(table, name)) for name in owners})
        for table in (Annotations.of(gt["annotations"]), Detections.of(detections))
    )
    numbers = {kind: number(name, ids[name]).tolist() for name, kind in owners.items()}
    records = {kind: [{**r, "id": n} for r, n in zip(gt[kind], numbers[kind])] for kind in numbers}
    return {**records, "annotations": replace(truth, id=np.arange(1, len(truth) + 1))}, found


def evaluator(gt: dict, detections: Sequence[dict], engine: str = "hotcoco", run: bool = True):
    """COCO's box evaluation of :func:`numbered` records, run by ``hotcoco`` (fast) or ``pycocotools`` (the reference).

    There must be detections where it is to ``run``.
    """
    gt, detections = numbered(gt, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # both report their progress there
        if engine == "hotcoco":
            from hotcoco import COCO, COCOeval

            _, *columns, area, crowd = vars(gt["annotations"]).values()
            coco = COCO.from_arrays(gt["images"], gt["categories"], *columns, area=area, iscrowd=crowd)
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            coco = COCO()
            coco.dataset = {**gt, "annotations": list(gt["annotations"])}
            coco.createIndex()
        made = COCOeval(coco, coco.loadRes(detections.table()), "bbox")
        for step in (made.evaluate, made.accumulate, made.summarize) if run else ():
            step()
    return made


def coco_metrics(gt: dict, detections: Sequence[dict], engine: str = "hotcoco") -> dict:
    """``{"stats": COCO's twelve numbers as fractions, "per_class": a table with AP, AP50, AR100 and the counts}``.

    -1 where there is no ground truth of a kind, as in COCO. Without detections everything else is zero.
    """
    names, truth = [c["name"] for c in gt["categories"]], Annotations.of(gt["annotations"])
    counts = pd.Series(truth.category_id[truth.iscrowd == 0]).value_counts()
    table = pd.DataFrame({"class": names, "instances": [int(counts.get(c["id"], 0)) for c in gt["categories"]]})
    if not detections or not truth:
        empty = 0.0 if truth else -1.0
        return {"stats": dict.fromkeys(STATS, empty), "per_class": table.assign(AP=empty, AP50=empty, AR100=empty)}
    run = evaluator({**gt, "annotations": truth}, detections, engine)
    order = np.argsort([c["id"] for c in gt["categories"]]).argsort()  # both engines sort categories by id
    precision = np.asarray(run.eval["precision"])[..., order, 0, 2]  # [T, R, K]
    recall = np.asarray(run.eval["recall"])[:, order, 0, 2]  # [T, K]
    table["AP"] = [_mean(precision[:, :, k]) for k in range(len(names))]
    table["AP50"] = [_mean(precision[0, :, k]) for k in range(len(names))]
    table["AR100"] = [_mean(recall[:, k]) for k in range(len(names))]
    return {"stats": dict(zip(STATS, map(float, run.stats))), "per_class": table}


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


class Records(Sequence):
    """Columns of n numbers (``bbox`` [n, 4], in pixels) that can be read like the list of dicts they stand for."""

    @classmethod
    def of(cls, records: Sequence[dict]):
        """From COCO's list of dicts; an annotation without ``area`` has none, one without ``iscrowd`` is an object.

        Raises KeyError, TypeError or ValueError where a record lacks another number.
        """
        return records if isinstance(records, cls) else cls(*(column(records, each.name) for each in fields(cls)))

    def __len__(self) -> int:
        return len(self.image_id)

    def __getitem__(self, k: int) -> dict:
        return {name: column[k].tolist() for name, column in vars(self).items()}

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, len(self), 10_000):
            part = (column[start : start + 10_000].tolist() for column in vars(self).values())
            yield from (dict(zip(vars(self), row)) for row in zip(*part))


@dataclass(frozen=True, eq=False)
class Annotations(Records):
    """COCO's annotations, crowd regions too."""

    id: np.ndarray
    image_id: np.ndarray
    category_id: np.ndarray
    bbox: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray  # 0 or 1


@dataclass(frozen=True, eq=False)
class Detections(Records):
    """D detections: ``image_id`` [D], ``category_id`` [D], ``bbox`` [D, 4] in pixels, ``score`` [D]."""

    image_id: np.ndarray
    category_id: np.ndarray
    bbox: np.ndarray
    score: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """One after the other."""
        columns = zip(*(vars(part).values() for part in parts))
        return cls(*map(np.concatenate, columns)) if parts else cls.of([])

    def rows(self, rows: np.ndarray) -> Detections:
        """Some of them."""
        return Detections(*(column[rows] for column in vars(self).values()))

    def table(self) -> np.ndarray:
        """[D, 7], as pycocotools and hotcoco read it: image id, x, y, w, h, score, category id."""
        return np.column_stack([self.image_id, self.bbox, self.score, self.category_id])


def column(records: Sequence[dict], name: str) -> np.ndarray:
    """``name`` of each record, [n], or [n, 4] of ``bbox``: ids int64, else float; ``iscrowd`` 0 or 1.

    Raises KeyError, TypeError or ValueError where one but ``area`` or ``iscrowd`` is missing, or no number.
    """
    if name == "area":
        return np.array([record.get("area", 0) for record in records], float)
    if name == "iscrowd":
        return np.array([bool(record.get("iscrowd", 0)) for record in records], int)
    values = map(itemgetter(name), records)
    if name == "bbox":
        return np.fromiter(chain.from_iterable(values), float, 4 * len(records)).reshape(-1, 4)
    try:
        return np.fromiter(values, float if name == "score" else np.int64, len(records))
    except OverflowError:
        raise ValueError(f"{name} is no whole number of 64 bits") from None
