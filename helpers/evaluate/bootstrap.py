"""How sure is an average precision? Confidence intervals from a bootstrap over photos.

A few hundred photos are a sample: other photos would have given another number. The bootstrap draws N of the N photos
with replacement, evaluates that made-up validation set, and does so many times (Efron and Tibshirani, An Introduction
to the Bootstrap, 1993). Nothing is matched again: a photo drawn twice counts twice.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import csr_array

from helpers.evaluate.matching import IOU_THRESHOLDS, Matches

RECALLS = np.linspace(0.0, 1.0, 101)  # COCO's: precision is averaged at these recalls
METRICS = {"mAP": slice(None), "mAP50": slice(0, 1), "mAP75": slice(5, 6)}  # which IoU thresholds each is a mean over
THREADS = 2
NUMBERS_AT_ONCE = 1_000_000  # a class needs one per right detection and replicate: bounds the memory


def replicates_for(photos: int) -> int:
    """1,000 made-up validation sets up to 500 photos, then fewer; 100 still give a standard error to within 7 %."""
    return int(np.clip(500_000 // max(photos, 1), 100, 1000))


def draw_weights(photos: int, replicates: int, seed: int) -> np.ndarray:
    """How often each photo was drawn, [replicates, photos]; a seed draws the same photos for every checkpoint."""
    random = np.random.default_rng(seed)
    weights = np.zeros((replicates, photos), dtype=np.int32)
    for row in weights if photos else ():
        row[:] = np.bincount(random.integers(0, photos, photos), minlength=photos)
    return weights


def class_ap(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """COCO's AP of each class and IoU threshold with photos counted ``weights`` [R, N] times: [R, K, T].

    NaN where a class has no object. Weights of one give COCO's own numbers (all sizes, 100 detections).
    """
    ap = np.empty((len(weights), len(matches.classes), len(IOU_THRESHOLDS)))
    times = np.ascontiguousarray(weights.T)

    def fill(k: int) -> None:
        hits = int(matches.right[0, matches.of_class(k)].sum())
        for rows in np.array_split(np.arange(len(weights)), max(1, len(weights) * hits // NUMBERS_AT_ONCE)):
            ap[rows, k] = _one_class(matches, k, times if len(rows) == len(weights) else times[:, rows])

    with ThreadPoolExecutor(THREADS) as pool:  # NumPy computes outside of Python's lock
        list(pool.map(fill, range(len(matches.classes))))
    return ap


def mean_of_classes(ap: np.ndarray) -> np.ndarray:
    """[R] of AP [R, K]: classes without objects (NaN) are left out, as in COCO; NaN where no class has any."""
    there = (~np.isnan(ap)).sum(axis=1)
    return np.nansum(ap, axis=1) / np.where(there, there, np.nan)


def _one_class(matches: Matches, k: int, times: np.ndarray) -> np.ndarray:
    """[R, T], photos counted ``times`` [N, R].

    Precision is needed where a detection is right: there recall grows. Of right ones with no wrong one between them it
    is best at the last, whatever the photos are counted, so one number for such a run is enough.
    """
    part = matches.of_class(k)
    right, ignored, image = matches.right[:, part], matches.ignored[:, part], matches.image[part]
    objects = matches.truth[:, k].astype(times.dtype) @ times  # [R]
    reached = _recalls_reached(objects)
    step, hit = np.nonzero(right)  # thresholds, and places in the class's ranking
    places = np.flatnonzero(right.any(axis=0))
    out = np.flatnonzero(ignored)  # these count neither as right nor as wrong
    passed = np.searchsorted(out, step * len(image) + hit)
    wrong = step * (len(image) + 1) + hit - np.arange(len(hit)) - passed  # one more from threshold to threshold
    last = np.flatnonzero(np.diff(wrong, append=-1))  # of each run
    gained = _sums(last + 1, image[hit], times)
    counted = np.cumsum(_sums(places + 1, image, times), axis=1, dtype=times.dtype)
    ap = np.zeros((times.shape[1], len(IOU_THRESHOLDS)))
    ends = np.searchsorted(step[last], np.arange(len(IOU_THRESHOLDS) + 1))
    for t, runs in enumerate(map(slice, ends[:-1], ends[1:])):
        seen = counted.take(np.searchsorted(places, hit[last[runs]]), axis=1)
        if ignored[t].any():
            lost = np.zeros((len(seen), int(ignored[t].sum()) + 1), times.dtype)
            np.cumsum(times[image[ignored[t]]].T, axis=1, out=lost[:, 1:])
            seen -= lost.take(passed[last[runs]] - np.searchsorted(out, t * len(image)), axis=1)
        ap[:, t] = _interpolated(np.cumsum(gained[:, runs], axis=1, dtype=times.dtype), seen, reached)
    ap[objects == 0] = np.nan
    return ap


def _interpolated(hits: np.ndarray, seen: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """AP [R] from the right and the counted detections so far, ``hits`` and ``seen`` [R, runs], best first.

    COCO's rule: at each of the 101 recalls, the best precision at that recall or beyond.
    """
    precision = hits / (seen + np.spacing(1))
    bits = precision.view(np.int64)[:, ::-1]  # of numbers from 0 up, in their order: maxima of whole numbers are faster
    best = np.maximum.accumulate(bits, axis=1)[:, ::-1].view(float)
    hits += np.arange(len(hits), dtype=hits.dtype)[:, None] * reached.shape[1]  # places in the flat table
    recalls = reached.ravel().take(hits)
    recalls[:, 1:] -= recalls[:, :-1].copy()  # how many each run adds
    return np.einsum("rp,rp->r", best, recalls) / len(RECALLS)


def _sums(ends: np.ndarray, image: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[R, E]: ``times`` of the photos ``image`` up to each of ``ends`` (rising), added from the one before it on."""
    ends = np.append(0, ends)
    table = csr_array((np.ones(ends[-1], times.dtype), image[: ends[-1]], ends), shape=(len(ends) - 1, len(times)))
    return np.ascontiguousarray((table @ times).T)


def _recalls_reached(objects: np.ndarray) -> np.ndarray:
    """[R, M + 1]: how many of COCO's 101 recalls are reached with 0, 1 to M hits of ``objects`` [R], M the maximum."""
    needed = np.floor(RECALLS * objects[:, None]).astype(np.int64)  # [R, 101] the fewest hits, at most one too low
    needed += needed / np.maximum(objects, 1)[:, None] < RECALLS
    most, n = int(objects.max(initial=0)), len(objects)
    flat = (needed + (most + 2) * np.arange(n)[:, None]).ravel()  # a column more: no object, nothing to reach
    steps = np.bincount(flat, minlength=(most + 2) * n).reshape(n, most + 2)
    return np.cumsum(steps[:, :-1], axis=1, dtype=np.float32)
