"""Match predictions to annotations, name the kind of every error, and price each kind in AP50.

The kinds and their prices are TIDE's (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors",
ECCV 2020). A prediction that is not correct is, in this order,

    localization     the right class, but 0.1 <= IoU < 0.5 with the annotation
    classification   IoU >= 0.5 with an annotation of another class
    duplicate        right in both, but a more confident prediction has that annotation already
    background       IoU < 0.1 with everything
    both             the rest: neither class nor place is right

and an annotation is ``missed`` when no prediction is correct for it and no classification or localization error is
about it. The price of a kind is what AP50 would gain if an oracle mended just that kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.boxes import box_area, box_iou, intersection, xywh_to_xyxy
from helpers.files import UserError
from helpers.metrics import Annotations

TYPES = {
    "classification": "Cls",
    "localization": "Loc",
    "both": "Both",
    "duplicate": "Dupe",
    "background": "Bkg",
    "missed": "Miss",
}
IOU_FG, IOU_BG, PER_PHOTO = 0.5, 0.1, 100  # TIDE's limits of "in place" and "on nothing"; COCO's of a photo's boxes
KINDS = (*TYPES, "correct", "ignored")  # what a prediction can be; "ignored": it lies in a crowd region of its class
COVERING = ("correct", "classification", "localization")  # kinds that keep an annotation from being missed
BOX = ["x", "y", "w", "h"]  # COCO's bbox, pixels


@dataclass(frozen=True)
class Verdicts:
    """What each prediction and each annotation of a split turned out to be: the one source of all tables of 05.

    ``predictions``: a row per prediction (at most 100 a photo), photo by photo, most confident first: detection (its
    number in the list of detections), photo (position), label, score, x, y, w, h, kind (one of KINDS), object (row of
    ``objects`` that it is about, -1 for none), iou (with that object).
    ``objects``: a row per annotation that is no crowd region: photo, label, area, x, y, w, h, annotation_id, found_by
    (row of ``predictions`` or -1), covered (highest score of a prediction that is about it), best_iou (of any).
    """

    classes: tuple[str, ...]
    photos: pd.DataFrame  # image_id, width, height
    objects: pd.DataFrame
    predictions: pd.DataFrame
    beyond_cap: int  # detections left out because their photo has a hundred more confident ones

    def shown(self, threshold: float) -> pd.DataFrame:
        """The predictions with ``score >= threshold`` that count: without those that a crowd region excuses."""
        return self.predictions[(self.predictions["score"] >= threshold) & (self.predictions["kind"] != "ignored")]


def judge(gt: dict, detections: list[dict]) -> Verdicts:
    """Match each photo's predictions, most confident first, to the annotations of their class, and name what each is.

    ``gt`` is a COCO document, ``detections`` a COCO results list. Raises UserError when they do not belong together.
    """
    photos = pd.DataFrame(gt["images"], columns=["id", "width", "height"]).rename(columns={"id": "image_id"})
    objects, crowds = _annotations(gt)
    predictions, beyond_cap = _predictions(gt, detections)
    n_photos = np.arange(len(photos) + 1)
    object_at, crowd_at, predicted_at = (np.searchsorted(t["photo"], n_photos) for t in (objects, crowds, predictions))
    boxes = [xywh_to_xyxy(t[BOX].to_numpy(float)) for t in (objects, crowds, predictions)]
    labels = [t["label"].to_numpy() for t in (objects, crowds, predictions)]

    kind = np.full(len(predictions), KINDS.index("background"), dtype=np.int8)
    about, iou, best_iou = np.full(len(predictions), -1), np.zeros(len(predictions)), np.zeros(len(objects))
    for i in range(len(photos)):
        p, o, c = (slice(at[i], at[i + 1]) for at in (predicted_at, object_at, crowd_at))
        if p.start == p.stop:
            continue
        if o.start < o.stop:
            overlap = box_iou(boxes[2][p], boxes[0][o])  # [predictions, objects]
            kind[p], nearest, iou[p] = _judge(overlap, labels[2][p], labels[0][o])
            about[p] = np.where(nearest >= 0, nearest + o.start, -1)
            best_iou[o] = overlap.max(axis=0)
        if c.start < c.stop:
            inside = intersection(boxes[2][p], boxes[1][c]) / np.maximum(box_area(boxes[2][p]), 1e-9)[:, None]
            inside *= labels[2][p, None] == labels[1][None, c]  # the part of a box in a region, as COCO measures crowds
            kind[p][(inside.max(axis=1) >= IOU_FG) & (kind[p] != KINDS.index("correct"))] = KINDS.index("ignored")

    predictions = predictions.assign(kind=pd.Categorical.from_codes(kind, KINDS), object=about, iou=iou)
    correct, covering = np.flatnonzero(predictions["kind"] == "correct"), predictions["kind"].isin(COVERING).to_numpy()
    found_by, covered = np.full(len(objects), -1), np.full(len(objects), -np.inf)
    found_by[about[correct]] = correct
    np.maximum.at(covered, about[covering], predictions["score"].to_numpy()[covering])
    objects = objects.assign(found_by=found_by, covered=covered, best_iou=best_iou)
    return Verdicts(tuple(c["name"] for c in gt["categories"]), photos, objects, predictions, beyond_cap)


def _judge(overlap, predicted, annotated) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind (number in KINDS), object and IoU of a photo's predictions; ``overlap`` [P, O], rows by falling score."""
    same = predicted[:, None] == annotated[None, :]  # [P, O]
    right_class, wrong_class = overlap * same, overlap * ~same
    own, free = np.full(len(overlap), -1), right_class.copy()
    for p in np.flatnonzero(right_class.max(axis=1) >= IOU_FG):
        o = free[p].argmax()
        if free[p, o] >= IOU_FG:
            own[p] = o
            free[:, o] = 0
    taken = np.zeros(overlap.shape[1], dtype=bool)
    taken[own[own >= 0]] = True

    views = (right_class, wrong_class, right_class * taken, overlap)
    near, other, used, any_ = (view.argmax(axis=1) for view in views)
    near_iou, other_iou, used_iou, any_iou = (view.max(axis=1) for view in views)
    misplaced = (near_iou >= IOU_BG) & (near_iou < IOU_FG)
    tests = [own >= 0, misplaced, other_iou >= IOU_FG, used_iou >= IOU_FG, any_iou < IOU_BG]
    names = ["correct", "localization", "classification", "duplicate", "background"]
    kind = np.select(tests, [KINDS.index(name) for name in names], KINDS.index("both"))
    about = np.select(tests, [own, near, other, used, np.where(any_iou > 0, any_, -1)], any_)
    iou = np.take_along_axis(overlap, np.maximum(about, 0)[:, None], axis=1)[:, 0]
    return kind, about, np.where(about >= 0, iou, 0.0)


def _positions(gt: dict, records: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Of each record's photo and category in ``gt``; -1 for one that is not there, whatever its ids are."""
    photo_of = {image["id"]: i for i, image in enumerate(gt["images"])}
    label_of = {category["id"]: k for k, category in enumerate(gt["categories"])}
    found = [(photo_of.get(r["image_id"], -1), label_of.get(r["category_id"], -1)) for r in records]
    return tuple(np.array(found, dtype=int).reshape(-1, 2).T)


def _annotations(gt: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Objects and crowd regions, each sorted by photo (stable: COCO's order within a photo)."""
    truth = Annotations.of(gt["annotations"])
    photo, label = _positions(gt, truth)
    columns = {"photo": photo, "label": label, "area": truth.area, "annotation_id": truth.id}
    table = pd.DataFrame({**columns, **dict(zip(BOX, truth.bbox.T))})
    parts = (table[(photo >= 0) & (label >= 0) & (truth.iscrowd == crowd)] for crowd in (0, 1))
    return tuple(part.sort_values("photo", kind="stable", ignore_index=True) for part in parts)


def _predictions(gt: dict, detections: list[dict]) -> tuple[pd.DataFrame, int]:
    """The ``PER_PHOTO`` most confident detections of each photo, and how many others there were."""
    photo, label = _positions(gt, detections)
    score, bbox = (np.array([d[name] for d in detections], dtype=float) for name in ("score", "bbox"))
    bbox = bbox.reshape(-1, 4)
    for wrong, what in (
        (photo < 0, "a photo that is not in the validation set"),
        (label < 0, "an unknown category"),
        (~np.isfinite(score) | ~np.isfinite(bbox).all(axis=1), "a score or a box that is no number"),
    ):
        if wrong.any():
            raise UserError(
                f"{wrong.sum()} of {len(wrong)} detections have {what} (the first: "
                f"{detections[int(wrong.argmax())]}); run notebook 04_evaluate again."
            )
    order = np.lexsort((-score, photo))  # stable: ties keep their order in the file
    rank = np.arange(len(order)) - np.searchsorted(photo[order], photo[order])
    order = order[rank < PER_PHOTO]
    columns = {"detection": order, "photo": photo[order], "label": label[order], "score": score[order]}
    return pd.DataFrame({**columns, **dict(zip(BOX, bbox[order].T))}), len(detections) - len(order)


def gains(ap: pd.DataFrame) -> dict[str, float]:
    """From :func:`oracle_ap` to TIDE's gains, none below 0; it averages over classes with predictions or objects."""
    mean = {column: 0.0 if ap[column].isna().all() else float(ap[column].mean()) for column in ap}
    return {short: max(mean[short] - mean["AP50"], 0.0) for short in TYPES.values()}


def oracle_ap(verdicts: Verdicts) -> pd.DataFrame:
    """AP50 of each class as it is (column AP50) and with one kind of error mended (Cls, Loc, Both, Dupe, Bkg, Miss).

    A classification error gets the right class and a localization error the right box, if the annotation is free and no
    more confident error of the two kinds claims it; other false predictions, and those that lose the claim, are
    removed; missed objects leave the ground truth. NaN where a class has neither predictions nor objects.
    """
    counted = verdicts.predictions[verdicts.predictions["kind"] != "ignored"]
    kind, about = counted["kind"].to_numpy().astype(str), counted["object"].to_numpy()
    label, score = counted["label"].to_numpy(), counted["score"].to_numpy()
    objects = verdicts.objects["label"].to_numpy()
    count = np.bincount(objects, minlength=len(verdicts.classes))
    missed = np.isneginf(verdicts.objects["covered"].to_numpy())
    claims = np.flatnonzero(np.isin(kind, ["classification", "localization"]))
    claims = claims[verdicts.objects["found_by"].to_numpy()[about[claims]] < 0]
    mends = np.zeros(len(kind), dtype=bool)
    first = np.unique(about[claims], return_index=True)[1]  # rows fall in score within a photo: the first is the best
    mends[claims[first]] = True

    correct = kind == "correct"
    columns = {"AP50": _class_ap(label, score, correct, count)}
    order = np.argsort(correct, kind="stable")  # TIDE's reference puts errors before correct ones among equal scores
    for name, short in TYPES.items():
        fixed = kind == name
        keep = order[(~fixed | mends)[order]]
        new_label = np.where(fixed & mends, objects[about] if len(objects) else label, label)
        left = count - np.bincount(objects[missed], minlength=len(count)) if name == "missed" else count
        columns[short] = _class_ap(new_label[keep], score[keep], (correct | (fixed & mends))[keep], left)
    return pd.DataFrame(columns, index=pd.Index(verdicts.classes, name="class"))


def _class_ap(label: np.ndarray, score: np.ndarray, correct: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Average precision of each class at COCO's 101 recall points: [P], [P], [P] bool and [K] objects to [K]."""
    order = np.lexsort((-score, label))  # class by class, the most confident first
    ends = np.searchsorted(label[order], np.arange(len(count) + 1))
    ap = np.zeros(len(count))
    for k, n in enumerate(count):
        hits = np.cumsum(correct[order[ends[k] : ends[k + 1]]])
        if n == 0:
            ap[k] = 0.0 if len(hits) else np.nan
        elif len(hits):
            precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            at = np.searchsorted(hits / n, np.arange(101) / 100)
            ap[k] = precision[at[at < len(hits)]].sum() / 101
    return ap
