"""From a model to COCO detections, and from detections to COCO's numbers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
COLUMNS = ("image_id", "category_id", "bbox", "score")


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
    annotations = {
        "id": index.annotation_ids,
        "image_id": np.repeat(index.image_ids, np.diff(index.starts)),
        "category_id": np.array(index.category_ids, np.int64)[index.labels],
        "bbox": index.bbox.tolist(),
        "area": index.areas.astype(float),
        "iscrowd": index.iscrowd.astype(int),
    }
    records = {"images": images, "categories": {"id": index.category_ids, "name": index.classes}}
    records["annotations"] = annotations
    return {name: pd.DataFrame(columns).to_dict("records") for name, columns in records.items()}


def numbered(gt: dict, detections: Sequence[dict]) -> tuple[dict, Detections]:
    """Both with numbers from 1, in the order of the ids, instead of ids, which play no part in COCO's numbers.

    The engines do not take them for names only: pycocotools reads an annotation's id 0 as "no match", a table of
    float64 holds no id above 2^53, and hotcoco takes none below 0. What belongs to no photo or category of ``gt`` gets
    a number that is none of theirs.
    """
    whole = lambda values: np.array(list(values), np.int64)
    kinds = ("images", "categories", "annotations")
    known = {kind: np.unique(whole(record["id"] for record in gt[kind])) for kind in kinds}

    def numbers(kind: str, ids: np.ndarray) -> np.ndarray:
        at = np.searchsorted(known[kind], ids)
        return np.where(known[kind][at.clip(max=len(known[kind]) - 1)] == ids, at, len(known[kind])) + 1

    def renumbered(kind: str, **owners: str) -> list[dict]:
        owners = {"id": kind, **owners}
        columns = [numbers(owner, whole(r[name] for r in gt[kind])).tolist() for name, owner in owners.items()]
        return [{**record, **dict(zip(owners, row))} for record, row in zip(gt[kind], zip(*columns))]

    given, belongs = Detections.of(detections), {"image_id": "images", "category_id": "categories"}
    found = replace(given, **{name: numbers(kind, getattr(given, name)) for name, kind in belongs.items()})
    records = {kind: renumbered(kind) for kind in kinds[:2]}
    return {**gt, **records, "annotations": renumbered("annotations", **belongs)}, found


def evaluator(gt: dict, detections: Sequence[dict], engine: str = "hotcoco"):
    """COCO's box evaluation of :func:`numbered` records, run by ``hotcoco`` (fast) or ``pycocotools`` (the reference).

    There must be detections.
    """
    gt, detections = numbered(gt, detections)
    with contextlib.redirect_stdout(io.StringIO()):  # both report their progress there
        if engine == "hotcoco":
            from hotcoco import COCO, COCOeval

            coco = COCO(gt)
        else:
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            coco = COCO()
            coco.dataset = gt
            coco.createIndex()
        run = COCOeval(coco, coco.loadRes(detections.table()), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def coco_metrics(gt: dict, detections: Sequence[dict], engine: str = "hotcoco") -> dict:
    """``{"stats": COCO's twelve numbers as fractions, "per_class": a table with AP, AP50, AR100 and the counts}``.

    -1 where there is no ground truth of a kind, as in COCO. Without detections everything else is zero.
    """
    names = [c["name"] for c in gt["categories"]]
    counts = pd.Series([a["category_id"] for a in gt["annotations"] if not a.get("iscrowd")], dtype=int).value_counts()
    table = pd.DataFrame({"class": names, "instances": [int(counts.get(c["id"], 0)) for c in gt["categories"]]})
    if not detections or not gt["annotations"]:
        empty = 0.0 if gt["annotations"] else -1.0
        return {"stats": dict.fromkeys(STATS, empty), "per_class": table.assign(AP=empty, AP50=empty, AR100=empty)}
    run = evaluator(gt, detections, engine)
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


@dataclass(frozen=True, eq=False)
class Detections(Sequence):
    """D detections: ``image_id`` [D], ``category_id`` [D], ``bbox`` [D, 4] in pixels, ``score`` [D].

    It can be read like the COCO results list that it was made of: each item is a dict.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    bbox: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, records: Sequence[dict]) -> Detections:
        """From a COCO results list. Raises KeyError, TypeError or ValueError where a record lacks a number."""
        if isinstance(records, cls):
            return records

        def column(name: str, kind) -> np.ndarray:
            return np.fromiter(map(itemgetter(name), records), kind, len(records))

        ids = (column(name, np.int64) for name in ("image_id", "category_id"))
        return cls(*ids, bboxes(records), column("score", float))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """One after the other."""
        columns = ([getattr(part, name) for part in parts] for name in COLUMNS)
        return cls(*map(np.concatenate, columns)) if parts else cls.of([])

    def table(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[D, 7], as pycocotools and hotcoco read it: image id, x, y, w, h, score, category id."""
        return np.column_stack([self.image_id[rows], self.bbox[rows], self.score[rows], self.category_id[rows]])

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, k: int) -> dict:
        return {name: getattr(self, name)[k].tolist() for name in COLUMNS}

    def __iter__(self) -> Iterator[dict]:
        for start in range(0, len(self), 10_000):
            part = (getattr(self, name)[start : start + 10_000].tolist() for name in COLUMNS)
            yield from (dict(zip(COLUMNS, row)) for row in zip(*part))


def bboxes(records: Sequence[dict]) -> np.ndarray:
    """``bbox`` of records with four numbers each, [n, 4]."""
    numbers = chain.from_iterable(map(itemgetter("bbox"), records))
    return np.fromiter(numbers, float, 4 * len(records)).reshape(-1, 4)
