"""What a single number hides: precision against recall, the score threshold, calibration, confusion between classes.

Everything here is at IoU 0.5 unless said otherwise, and works from :class:`helpers.evaluate.matching.Matches`.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.evaluate.bootstrap import RECALLS
from helpers.evaluate.matching import Matches
from helpers.metrics import Detections, evaluator

THRESHOLDS = np.round(np.linspace(0, 1, 101), 2)
BACKGROUND = "background"
BINS = 10  # of scores


def precision_recall(matches: Matches, k: int) -> np.ndarray:
    """COCO's precision of class ``k`` at each of its 101 recalls, [101]: the best at that recall or beyond.

    The mean is the class's AP50; NaN where a class has no object.
    """
    objects = matches.truth[:, k].sum()
    if not objects:
        return np.full(len(RECALLS), np.nan)
    part = matches.of_class(k)
    right, counts = matches.right[0, part], ~matches.ignored[0, part]
    hits, seen = np.cumsum(right), np.cumsum(counts)
    best = np.maximum.accumulate((hits / (seen + np.spacing(1)))[::-1])[::-1]
    place = np.searchsorted(hits / objects, RECALLS)
    return np.append(best, 0.0)[np.minimum(place, len(best))]


class Operating(NamedTuple):
    """What a detector does when only detections with ``score >= threshold`` are shown (micro average of classes)."""

    threshold: float
    precision: float
    recall: float
    f1: float


def score_curves(matches: Matches, k: int | None = None) -> pd.DataFrame:
    """A row per score threshold, 0 to 1: precision (NaN where nothing is shown), recall, F1; of class ``k`` or all."""
    part = slice(None) if k is None else matches.of_class(k)
    score, right, ignored = matches.score[part], matches.right[0, part], matches.ignored[0, part]
    objects = int(matches.truth.sum() if k is None else matches.truth[:, k].sum())
    shown = _at_least(score[~ignored])
    hits = _at_least(score[right])
    precision = np.divide(hits, shown, out=np.full(len(THRESHOLDS), np.nan), where=shown > 0)
    f1 = 2 * hits / np.maximum(shown + objects, 1)  # the harmonic mean of hits / shown and hits / objects
    return pd.DataFrame({"threshold": THRESHOLDS, "precision": precision, "recall": hits / max(objects, 1), "F1": f1})


def _at_least(scores: np.ndarray) -> np.ndarray:
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left")


def best_operating_point(curves: pd.DataFrame) -> Operating:
    """The threshold with the largest F1 (the highest of several); 0.5 where nothing is ever right."""
    f1 = curves["F1"].to_numpy()
    at = len(f1) - 1 - int(f1[::-1].argmax()) if f1.max() > 0 else int(np.searchsorted(THRESHOLDS, 0.5))
    return Operating(*np.nan_to_num(curves[["threshold", "precision", "recall", "F1"]].iloc[at]).tolist())


def reliability(matches: Matches) -> tuple[pd.DataFrame, float]:
    """Does a score of 0.8 mean right four times out of five? A row per score bin, and the expected calibration error.

    ``confidence``: mean score; ``accuracy``: part that is right; ``count``. The error is the mean distance of the two,
    weighted by count (Guo et al., On Calibration of Modern Neural Networks, 2017). Detections on crowd regions are left
    out.
    """
    from hotcoco import metrics

    counted = ~matches.ignored[0]
    score, right = np.ascontiguousarray(matches.score[counted]), np.ascontiguousarray(matches.right[0, counted])
    table = pd.DataFrame(metrics.calibration_curve(score, right, BINS))
    table.columns = ["low", "high", "confidence", "accuracy", "count"]
    return table, float(metrics.calibration_error(score, right, BINS)[0])


def confusion(gt: dict, detections: list[dict], matches: Matches, threshold: float) -> pd.DataFrame:
    """Confusion matrix [K + 1, K + 1] of counts with ``score >= threshold``: rows are the truth, columns predicted.

    The last row is background (a prediction on nothing), the last column what was missed; so a class's row adds up to
    its number of objects. An object belongs to the most confident prediction with IoU of 0.5 at least, whatever its
    class. Detections on crowd regions of their class are left out.
    """
    rows = np.sort(matches.row[(matches.score >= threshold) & ~matches.ignored[0]])
    found = evaluator(gt, Detections.of(detections).rows(rows), run=False).confusion_matrix(iou_thr=0.5)
    order = [*np.argsort([c["id"] for c in gt["categories"]]).argsort(), len(gt["categories"])]  # hotcoco sorts by id
    names = [*matches.classes, BACKGROUND]
    return pd.DataFrame(np.asarray(found["matrix"]).astype(int)[np.ix_(order, order)], index=names, columns=names)


def photo_table(matches: Matches, threshold: float) -> pd.DataFrame:
    """A row per photo with ``score >= threshold``, the best first: image_id, objects, correct, false, missed,
    uncounted (in a crowd region), f1.

    The one ranking of photos: F1, 2 correct / (shown + objects), and 1 where nothing is there nor shown; among perfect
    photos the one with more objects is better, among others the one with more errors is worse; then by image_id.
    """
    shown = matches.score >= threshold
    n = len(matches.image_ids)
    correct = np.bincount(matches.image[shown & matches.right[0]], minlength=n)
    false = np.bincount(matches.image[shown & ~matches.right[0] & ~matches.ignored[0]], minlength=n)
    objects = matches.truth.sum(axis=1)
    table = pd.DataFrame({"image_id": matches.image_ids, "objects": objects, "correct": correct, "false": false})
    table["missed"] = table["objects"] - table["correct"]
    table["uncounted"] = np.bincount(matches.image[shown & matches.ignored[0]], minlength=n)
    total = 2 * correct + false + table["missed"]
    table["f1"] = np.divide(2 * correct, total, out=np.ones(n), where=total > 0)
    worth = np.where(table["f1"] == 1, objects, -(table["false"] + table["missed"]))
    return table.iloc[np.lexsort((table["image_id"], worth, table["f1"]))[::-1]].reset_index(drop=True)


def with_something(photos: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`photo_table` that have objects or predictions: the F1 of the others says nothing."""
    return photos[photos["objects"] + photos["false"] > 0].reset_index(drop=True)
