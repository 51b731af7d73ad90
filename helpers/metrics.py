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

STATS = (
    "mAP",
    "mAP50",
    "mAP75",
    "mAP_small",
    "mAP_medium",
    "mAP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)  # COCO's twelve, in COCO's order


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
    """An index back as a COCO document: ids, crowds and areas as published; what metrics and error analysis compare
    with.
    """
    owner = np.repeat(np.arange(len(index)), np.diff(index.starts))
    return {
        "images": [
            {"id": int(i), "file_name": str(name), "height": int(h), "width": int(w)}
            for i, name, h, w in zip(index.image_ids, index.file_names, index.heights, index.widths)
        ],
        "categories": [{"id": c, "name": name} for c, name in zip(index.category_ids, index.classes)],
        "annotations": [
            {
                "id": int(k),
                "image_id": int(index.image_ids[i]),
                "category_id": index.category_ids[label],
                "bbox": box,
                "area": float(area),
                "iscrowd": int(crowd),
            }
            for k, i, label, box, area, crowd in zip(
                index.annotation_ids, owner, index.labels, index.bbox.tolist(), index.areas, index.iscrowd
            )
        ],
    }


def numbered(gt: dict, detections: Sequence[dict]) -> tuple[dict, Detections]:
    """Both with numbers from 1, in the order of the ids, instead of ids, which play no part in COCO's numbers.

    The engines do not take them for names only: pycocotools reads an annotation's id 0 as "no match", a table of
    float64 holds no id above 2^53, and hotcoco takes none below 0. What belongs to no photo or category of ``gt`` gets
    a number that is none of theirs.
    """

    def numbers(known: np.ndarray, ids) -> np.ndarray:
        at = np.searchsorted(known, ids)
        return np.where(known[at.clip(max=len(known) - 1)] == ids, at, len(known)) + 1

    def renumbered(records: list[dict], names: dict[str, np.ndarray]) -> list[dict]:
        columns = [numbers(known, [record[name] for record in records]).tolist() for name, known in names.items()]
        return [{**record, **dict(zip(names, row))} for record, row in zip(records, zip(*columns))]

    images, categories, annotations = (
        np.unique(np.array([record["id"] for record in gt[name]], np.int64))
        for name in ("images", "categories", "annotations")
    )
    names = {"id": annotations, "image_id": images, "category_id": categories}
    given = Detections.of(detections)
    found = replace(given, image_id=numbers(images, given.image_id), category_id=numbers(categories, given.category_id))
    return {
        **gt,
        "images": renumbered(gt["images"], {"id": images}),
        "categories": renumbered(gt["categories"], {"id": categories}),
        "annotations": renumbered(gt["annotations"], names),
    }, found


def evaluator(gt: dict, detections: Sequence[dict], engine: str = "hotcoco"):
    """COCO's box evaluation, run: ``hotcoco`` (fast) or ``pycocotools`` (the reference), on :func:`numbered` records.
    Detections must not be empty.
    """
    gt, detections = numbered(gt, detections)
    if engine == "hotcoco":
        from hotcoco import COCO, COCOeval

        coco = COCO(gt)
        run = COCOeval(coco, coco.load_res(detections.table()), "bbox")
        run.evaluate()
        run.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):
            run.summarize()
        return run
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        coco = COCO()
        coco.dataset = gt
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(list(detections)), "bbox")
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

        return cls(
            column("image_id", np.int64), column("category_id", np.int64), bboxes(records), column("score", float)
        )

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """One after the other."""
        if not parts:
            return cls.of([])
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("image_id", "category_id", "bbox", "score")
            )
        )

    def table(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[D, 7], as pycocotools and hotcoco read it: image id, x, y, w, h, score, category id."""
        return np.column_stack([self.image_id[rows], self.bbox[rows], self.score[rows], self.category_id[rows]])

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, k: int) -> dict:
        return {
            "image_id": int(self.image_id[k]),
            "category_id": int(self.category_id[k]),
            "bbox": self.bbox[k].tolist(),
            "score": float(self.score[k]),
        }

    def __iter__(self) -> Iterator[dict]:
        names = ("image_id", "category_id", "bbox", "score")
        for start in range(0, len(self), 10_000):
            part = (getattr(self, name)[start : start + 10_000].tolist() for name in names)
            yield from (dict(zip(names, row)) for row in zip(*part))


def bboxes(records: Sequence[dict]) -> np.ndarray:
    """``bbox`` of records with four numbers each, [n, 4]."""
    numbers = chain.from_iterable(map(itemgetter("bbox"), records))
    return np.fromiter(numbers, float, 4 * len(records)).reshape(-1, 4)
