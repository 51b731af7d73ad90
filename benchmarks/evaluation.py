"""How long notebook 04's numbers take, against pycocotools' twelve: ``python benchmarks/evaluation.py [--images
5000]``.

Both sides get the same made-up ground truth and detections, in memory. Ours is everything that 04 computes from the
detections of two checkpoints, the untouched one and the trained one, without inference and without drawing; pycocotools
computes its twelve numbers for one of them. The sides take turns, and medians are compared. Memory is that of a process
that does our side alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
from machine import header
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from helpers.evaluate import sentences
from helpers.evaluate.comparison import assess, metrics_summary, per_class_table, run_table, twelve_numbers, unknown_ids
from helpers.evaluate.curves import (
    best_operating_point,
    confusion,
    photo_table,
    precision_recall,
    reliability,
    score_curves,
)
from helpers.evaluate.examples import pick_examples
from helpers.metrics import STATS, Annotations, Detections, coco_metrics, load_detections

OBJECTS = 7.3  # on a photo of val2017, on average
CROWDS = 0.012  # the part of its annotations that are crowd regions
WIDTH, HEIGHT = 640, 480


def made_up_truth(images: int, classes: int, seed: int) -> dict:
    """A COCO document with val2017's crowding: some photos are empty, a few hold dozens of objects, classes are
    uneven.
    """
    random = np.random.default_rng(seed)
    count = random.geometric(1 / (OBJECTS + 1), images) - 1
    n = int(count.sum())
    size = np.exp(random.uniform(np.log(8), np.log(300), (n, 2)))
    corner = random.uniform(0, 1, (n, 2)) * np.maximum((WIDTH, HEIGHT) - size, 0)
    label = random.choice(classes, n, p=frequencies(classes)) + 1
    crowd = (random.random(n) < CROWDS).astype(int)
    rows = zip(
        np.repeat(np.arange(images), count).tolist(),
        label.tolist(),
        np.hstack([corner, size]).round(2).tolist(),
        crowd.tolist(),
        (0.6 * size.prod(axis=1)).round(4).tolist(),
    )
    return {
        "images": [
            {"id": i + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{i + 1:012d}.jpg"} for i in range(images)
        ],
        "categories": [{"id": k + 1, "name": f"class {k + 1}"} for k in range(classes)],
        "annotations": [
            {"id": k, "image_id": i + 1, "category_id": c, "bbox": box, "iscrowd": flag, "area": area}
            for k, (i, c, box, flag, area) in enumerate(rows, 1)
        ],
    }


def frequencies(classes: int) -> np.ndarray:
    """One class is on every other object, the rarest on few, as person and hair drier in COCO."""
    weight = 1 / np.arange(1, classes + 1)
    return weight / weight.sum()


def made_up_detections(gt: dict, per_image: int, noise: float, seed: int) -> list[dict]:
    """``per_image`` boxes on every photo, as a detection transformer gives them: three about each object, the rest low
    scores anywhere; the smaller ``noise``, the better the detector."""
    random = np.random.default_rng(seed)
    classes = len(gt["categories"])
    objects = np.array([(a["image_id"], a["category_id"], *a["bbox"]) for a in gt["annotations"]])
    about = np.repeat(objects, 3, axis=0)
    about[:, 2:] += random.normal(0, noise, (len(about), 4)) * np.tile(about[:, 4:], 2)
    wrong = random.random(len(about)) < 0.15
    about[wrong, 1] = random.integers(1, classes + 1, wrong.sum())
    score = np.where(np.arange(len(about)) % 3 == 0, random.beta(4, 2, len(about)), random.beta(1.5, 6, len(about)))
    n = per_image * len(gt["images"])
    size = np.exp(random.uniform(np.log(8), np.log(300), (n, 2)))
    corner = random.uniform(0, 1, (n, 2)) * np.maximum((WIDTH, HEIGHT) - size, 0)
    label = random.choice(classes, n, p=frequencies(classes)) + 1
    rest = np.hstack([np.repeat(np.arange(len(gt["images"])) + 1, per_image)[:, None], label[:, None], corner, size])
    table, scores = np.vstack([about, rest]), np.append(score, random.beta(1, 12, n))
    order = np.argsort(table[:, 0], kind="stable")  # by photo, those about objects first
    rank = np.arange(len(order)) - np.searchsorted(table[order, 0], table[order, 0])
    order = order[rank < per_image]
    order = order[np.lexsort((-scores[order], table[order, 0]))]
    table[:, 4:] = np.maximum(table[:, 4:], 1)
    image_ids, category_ids = ([record["id"] for record in gt[name]] for name in ("images", "categories"))
    rows = zip(table[order, 0].astype(int) - 1, table[order, 1].astype(int) - 1, table[order, 2:], scores[order])
    return [
        {"image_id": image_ids[i], "category_id": category_ids[k], "bbox": bbox.tolist(), "score": float(score)}
        for i, k, bbox, score in rows
    ]


def ours(gt: dict, before: list[dict], after: list[dict]) -> tuple[dict[str, float], dict[str, float]]:
    """Everything that notebook 04 computes from two checkpoints' detections: the twelve numbers, and seconds by
    step.
    """
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable):
        begin = time.perf_counter()
        value = work()
        seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - begin
        return value

    before, after = (timed("arrays, both", lambda f=found: Detections.of(f)) for found in (before, after))
    gt = {**gt, "annotations": timed("arrays of the truth", lambda: Annotations.of(gt["annotations"]))}
    pairs = (("start", before), ("best", after))
    metrics = [timed("twelve numbers, both", lambda f=found: coco_metrics(gt, f)) for _, found in pairs]
    assert not any(timed("unknown ids", lambda f=found: unknown_ids(gt, f)) for _, found in pairs)
    start, result = (
        timed("matching and bootstrap, both", lambda p=pair, m=m: assess(*(p[0], gt, p[1]), m))
        for pair, m in zip(pairs, metrics)
    )
    timed(
        "tables and sentences",
        lambda: (
            twelve_numbers(start, result, gt),
            sentences.headline(start, result),
            sentences.by_size(result, gt),
            sentences.collapse(start, result),
        ),
    )
    table = timed("tables and sentences", lambda: per_class_table(start, result))
    timed("tables and sentences", lambda: sentences.classes(table))
    timed("curves", lambda: [precision_recall(r.matches, k) for r in (start, result) for k in range(len(table))])
    by_score = timed("curves", lambda: score_curves(result.matches))
    best = timed("curves", lambda: best_operating_point(by_score))
    _, error = timed("calibration", lambda: reliability(result.matches))
    timed(
        "confusion matrix",
        lambda: sentences.confusions(confusion(gt, result.detections, result.matches, best.threshold)),
    )
    photos = timed("photos", lambda: photo_table(result.matches, best.threshold))
    timed("photos", lambda: pick_examples(photos))
    timed("tables and sentences", lambda: run_table([start, result], result))
    timed("tables and sentences", lambda: metrics_summary(start, result, best.threshold, calibration_error=error))
    return result.stats, seconds


def reference(gt: dict, detections: list[dict]) -> tuple[dict[str, float], float]:
    """pycocotools' twelve numbers, and their seconds; the copy that it writes into is not timed."""
    copy = [dict(row) for row in detections]
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = gt
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes(copy), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return dict(zip(STATS, map(float, run.stats))), time.perf_counter() - begin


def data(arguments: argparse.Namespace) -> tuple[dict, list[dict], list[dict]]:
    gt = made_up_truth(arguments.images, arguments.classes, arguments.seed)
    return (
        gt,
        made_up_detections(gt, arguments.per_image, 0.12, arguments.seed + 1),
        made_up_detections(gt, arguments.per_image, 0.09, arguments.seed + 2),
    )


def peak_memory(gt: dict, before: list[dict], after: list[dict]) -> float:
    """GB that a process of its own, which reads these from files, has resident at most: libraries, data and our
    side.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{name}.json" for name in ("truth", "before", "after")]
        for file, document in zip(files, (gt, before, after)):
            file.write_bytes(orjson.dumps(document))
        command = [sys.executable, __file__, "--alone", *map(str, files)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def alone(truth: str, before: str, after: str) -> float:
    """Our side on files; the peak of this process in GB. (``ru_maxrss`` would not do: a parent passes its own on.)"""
    ours(orjson.loads(Path(truth).read_bytes()), *(Detections.of(load_detections(file)) for file in (before, after)))
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("images", 5000), ("per-image", 100), ("classes", 80), ("seed", 0), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--alone", nargs=3, metavar="FILE", help="our side once on three files; prints its peak memory in GB"
    )
    arguments = parser.parse_args()
    if arguments.alone:
        print(alone(*arguments.alone))
        return
    gt, before, after = data(arguments)
    print(header("numpy", "hotcoco", "pycocotools"))
    print(
        f"{arguments.images:,} photos x {arguments.per_image} detections, {arguments.classes} classes, "
        f"{len(gt['annotations']):,} annotations, seed {arguments.seed}, {arguments.rounds} rounds"
    )
    steps, theirs, processor = [], [], []
    for _ in range(arguments.rounds):
        began = time.process_time()
        stats, seconds = ours(gt, before, after)
        between = time.process_time()
        expected, spent = reference(gt, after)
        steps.append(seconds)
        theirs.append(spent)
        processor.append((between - began, time.process_time() - between))
        assert stats == expected, "the two sides do not compute the same numbers"
    table = pd.DataFrame(steps)
    total = table.sum(axis=1)
    for name, value in table.median().items():
        print(f"{name:32} {value:8.3f} s")
    print(f"{'all of 04, two checkpoints':32} {total.median():8.3f} s   ({total.min():.3f} to {total.max():.3f})")
    print(f"{'pycocotools, twelve numbers':32} {np.median(theirs):8.3f} s   ({min(theirs):.3f} to {max(theirs):.3f})")
    ratios = np.array(theirs) / total
    print(
        f"pycocotools takes {np.median(theirs) / total.median():.1f} times as long ({ratios.min():.1f} to "
        f"{ratios.max():.1f}); "
        f"the aim is 40 with 80 classes, 20 with ten"
    )
    columns = (total - table["arrays, both"]).median()
    print(
        f"without the first line {columns:.3f} s, {np.median(theirs) / columns:.1f} times: 04 has its detections as "
        "arrays, and reads no dicts"
    )
    mine, other = np.median(processor, axis=0)
    print(
        f"processor time, which a busy machine changes less: {mine:.2f} s on two cores, {other:.2f} s on one, "
        f"{other / mine:.1f} "
        f"times"
    )
    print(
        f"peak memory of our side, a process of its own: {peak_memory(gt, before, after):.2f} GB; the aim is less "
        f"than 1.5"
    )


if __name__ == "__main__":
    main()
