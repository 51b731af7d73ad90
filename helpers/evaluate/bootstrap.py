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
NUMBERS_AT_ONCE = 200_000  # a class needs one per right detection and replicate: so many stay in the cache


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


def _one_class(matches: Matches, k: int, times: np.ndarray) -> np.ndarray:
    """[R, T], photos counted ``times`` [N, R]: precision is needed where a detection is right: there recall grows."""
    part = matches.of_class(k)
    right, ignored, image = matches.right[:, part], matches.ignored[:, part], matches.image[part]
    objects = matches.truth[:, k].astype(times.dtype) @ times  # [R]
    reached = _recalls_reached(objects)
    places = np.flatnonzero(right.any(axis=0))  # [P] in the class's ranking: right at some threshold
    counted = _counted(places, image, times)  # [P, R]
    ap = np.zeros((times.shape[1], len(IOU_THRESHOLDS)))
    for t in range(len(IOU_THRESHOLDS)):
        rows = np.flatnonzero(right[t, places])
        if not len(rows):
            continue
        seen = counted[rows]
        out = np.flatnonzero(ignored[t])
        if len(out):  # these count neither as right nor as wrong
            passed = np.cumsum(times[image[out]], axis=0, dtype=times.dtype)
            passed = np.concatenate([np.zeros_like(passed[:1]), passed])
            seen -= passed[np.searchsorted(out, places[rows])]
        ap[:, t] = _interpolated(times[image[places[rows]]], seen, reached)
    ap[objects == 0] = np.nan
    return ap


def _interpolated(times: np.ndarray, seen: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """AP [R] from the right detections, best first: each counts ``times`` [p, R], ``seen`` [p, R] detections so far.

    COCO's rule: at each of the 101 recalls, the best precision at that recall or beyond.
    """
    hits = np.cumsum(times, axis=0, dtype=times.dtype)
    best = np.maximum.accumulate((hits / (seen + np.spacing(1)))[::-1])[::-1]
    hits *= reached.shape[1]
    hits += np.arange(reached.shape[1], dtype=hits.dtype)  # places in the flat table
    recalls = reached.ravel().take(hits)
    recalls[1:] -= recalls[:-1].copy()  # how many each detection adds
    return np.einsum("pr,pr->r", best, recalls) / len(RECALLS)


def _counted(places: np.ndarray, image: np.ndarray, times: np.ndarray) -> np.ndarray:
    """[P, R]: detections at or before each of ``places`` [P] in a ranking of detections of photo ``image``."""
    ends = np.concatenate([[0], places + 1])  # what comes after the last place changes nothing
    table = csr_array((np.ones(ends[-1], times.dtype), image[: ends[-1]], ends), shape=(len(places), len(times)))
    return np.cumsum(table @ times, axis=0, dtype=times.dtype)


def _recalls_reached(objects: np.ndarray) -> np.ndarray:
    """[M + 1, R]: how many of COCO's 101 recalls are reached with 0, 1 to M hits of ``objects`` [R], M the maximum."""
    needed = np.floor(RECALLS[:, None] * objects).astype(np.int64)  # [101, R] the fewest hits, at most one too low
    needed += needed / np.maximum(objects, 1) < RECALLS[:, None]
    most, n = int(objects.max(initial=0)), len(objects)
    flat = (needed * n + np.arange(n)).ravel()  # a row more: no object, nothing to reach
    steps = np.bincount(flat, minlength=(most + 2) * n).reshape(most + 2, n)
    return np.cumsum(steps[:-1], axis=0, dtype=np.float32)
