"""Which detections are right: COCO's matching of detections and ground truth as flat arrays.

hotcoco computes the twelve numbers but hands its matches out as nested lists, seconds and gigabytes for a few thousand
photos. The curves and the bootstrap need them as arrays, so the same matching is done here for all photos at once.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.metrics import Annotations, Detections

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
MAX_DETECTIONS = 100  # COCO counts so many per photo and class, the most confident ones
PAIRS_AT_ONCE = 100_000  # stays in the cache, and bounds the memory where a photo has hundreds of boxes of a class


@dataclass(frozen=True)
class Matches:
    """D counted detections, by class, then most confident first.

    T = 10 IoU thresholds, N photos (ascending ids), K classes. ``right``: a true positive. ``ignored``: it fell on a
    crowd region, which is neither right nor wrong.
    """

    classes: tuple[str, ...]
    image_ids: np.ndarray  # [N]
    starts: np.ndarray  # [K + 1]: rows starts[k]:starts[k + 1] are of class k
    row: np.ndarray  # [D] row number in the list of detections
    image: np.ndarray  # [D] position of the photo in image_ids
    score: np.ndarray  # [D]
    right: np.ndarray  # [T, D] bool
    ignored: np.ndarray  # [T, D] bool
    truth: np.ndarray  # [N, K] number of objects, without crowd regions

    def of_class(self, k: int) -> slice:
        return slice(int(self.starts[k]), int(self.starts[k + 1]))


def match(gt: dict, detections: list[dict], areas: tuple[float, float] = (-np.inf, np.inf)) -> Matches:
    """COCO's greedy matching of ``detections`` (COCO results) with the COCO document ``gt``, at every IoU threshold.

    The most confident detection of a photo and class chooses first: the object with the largest IoU that is still free,
    and only if there is none a crowd region. Detections of other photos or categories are left out, as COCOeval does.
    ``areas`` (lowest, highest, square pixels): objects outside are ignored as crowd regions are, and so are detections
    outside that are on nothing. Source: ``evaluateImg`` of pycocotools.
    """
    image_ids = np.unique(np.array([image["id"] for image in gt["images"]], dtype=np.int64))
    category_ids = np.array([c["id"] for c in gt["categories"]], dtype=np.int64)
    annotations = Annotations.of(gt["annotations"])
    truth = _table(annotations.image_id, annotations.category_id, image_ids, category_ids)
    truth["crowd"] = annotations.iscrowd[truth["row"]] > 0
    truth["bbox"], area = annotations.bbox[truth["row"]], annotations.area[truth["row"]]
    truth["ignored"] = truth["crowd"] | (area < areas[0]) | (area > areas[1])
    truth = _rows(truth, np.lexsort((truth["ignored"], truth["group"])))  # objects first, then what is ignored, as COCO
    given = Detections.of(detections)
    found = _table(given.image_id, given.category_id, image_ids, category_ids)
    found["score"] = given.score[found["row"]]
    found = _most_confident_first(found)

    groups = len(image_ids) * len(category_ids)
    pairs = _pairs(found, truth, groups, given.bbox)
    right, ignored, hit = _assign(*pairs, truth["crowd"], truth["ignored"], len(found["row"]))
    size = given.bbox[found["row"], 2] * given.bbox[found["row"], 3]
    ignored |= ~hit & ((size < areas[0]) | (size > areas[1]))
    counts = np.bincount(truth["group"][~truth["ignored"]], minlength=groups)
    classes = tuple(str(c["name"]) for c in gt["categories"])
    starts = np.searchsorted(found["label"], np.arange(len(category_ids) + 1))
    found = {name: found[name] for name in ("row", "image", "score")} | {"right": right, "ignored": ignored}
    return Matches(classes, image_ids, starts, **found, truth=counts.reshape(len(category_ids), len(image_ids)).T)


def _table(image_id: np.ndarray, category_id: np.ndarray, image_ids: np.ndarray, category_ids: np.ndarray) -> dict:
    """Columns of the records with a known photo and category: ``row`` number, ``image`` and ``label`` (positions in the
    two lists of ids) and ``group``, one number for both."""
    image, label = pd.Index(image_ids).get_indexer(image_id), pd.Index(category_ids).get_indexer(category_id)
    table = {"row": np.arange(len(image)), "image": image, "label": label, "group": label * len(image_ids) + image}
    known = (image >= 0) & (label >= 0)
    return table if known.all() else _rows(table, known)


def _rows(table: dict[str, np.ndarray], keep: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[keep] for name, column in table.items()}


def _most_confident_first(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By class, then score downwards, equal scores by photo, as COCOeval has it; without what exceeds COCO's 100."""
    found = _rows(found, np.lexsort((found["image"], -found["score"], found["label"])))
    if np.bincount(found["group"], minlength=1).max() <= MAX_DETECTIONS:
        return found
    place = pd.Series(found["group"]).groupby(found["group"]).cumcount()  # within photo and class
    return _rows(found, place.to_numpy() < MAX_DETECTIONS)


def _pairs(found: dict, truth: dict, groups: int, bbox: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(detection, object, IoU) of one photo and class with IoU of 0.5 at least; a detection's favourite first."""
    size = np.bincount(truth["group"], minlength=groups)
    some = np.flatnonzero(size[found["group"]])  # detections that have anything to overlap with: often few
    bbox = bbox[found["row"][some]]
    first, count = (np.cumsum(size) - size)[found["group"][some]], size[found["group"][some]]
    parts, bounds = [], np.flatnonzero(np.diff(np.cumsum(count) // PAIRS_AT_ONCE)) + 1
    for part in np.split(np.arange(len(some)), bounds):
        d = np.repeat(part, count[part])
        g = np.arange(len(d)) - np.repeat(np.cumsum(count[part]) - count[part] - first[part], count[part])
        iou = _iou(bbox[d], truth["bbox"][g], truth["crowd"][g])
        near = iou >= IOU_THRESHOLDS[0]
        parts.append((some[d[near]], g[near], iou[near]))
    d, g, iou = (np.concatenate(column) for column in zip(*parts))
    order = np.lexsort((-g, -iou, truth["ignored"][g], d))  # of two objects with equal IoU, COCO takes the later one
    return d[order], g[order], iou[order]


def _iou(a: np.ndarray, b: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU of the pairs ``bbox`` [n, 4] and [n, 4]; with a crowd region, the part of ``a`` that is inside of it.

    The operations of pycocotools' ``bbIou`` in their order, so that the last bit agrees.
    """
    w = np.minimum(a[:, 0] + a[:, 2], b[:, 0] + b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    h = np.minimum(a[:, 1] + a[:, 3], b[:, 1] + b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    inside = np.where((w > 0) & (h > 0), w * h, 0.0)
    area = a[:, 2] * a[:, 3]
    union = np.where(crowd, area, area + b[:, 2] * b[:, 3] - inside)
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def _assign(
    d: np.ndarray, g: np.ndarray, iou: np.ndarray, crowd: np.ndarray, skipped: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``right``, ``ignored`` (on something of ``skipped``) and ``hit`` (either), [T, n] bool, from the pairs.

    Instead of one detection after the other, in rounds: a detection gets its favourite as soon as no more confident one
    still has that object on its list. Detections are numbered by confidence, so the outcome is that of the greedy loop.
    """
    right, hit = np.zeros((2, len(IOU_THRESHOLDS), n), dtype=bool)
    owner = np.zeros(len(crowd), dtype=np.int64)
    for t, threshold in enumerate(IOU_THRESHOLDS):
        near = iou >= min(threshold, 1 - 1e-10)
        di, gi = d[near], g[near]
        taken = np.zeros(len(crowd), dtype=bool)
        while len(di):
            owner[gi[::-1]] = di[::-1]  # the last write stays: the most confident detection that lists the object
            favourite = np.diff(di, prepend=-1) > 0  # the first pair of each detection
            settled = favourite & ((owner[gi] == di) | crowd[gi])
            hit[t, di[settled]], right[t, di[settled & ~skipped[gi]]] = True, True
            taken[gi[settled & ~crowd[gi]]] = True
            left = ~(hit[t, di] | taken[gi])
            di, gi = di[left], gi[left]
    return right, hit & ~right, hit
