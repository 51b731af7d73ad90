"""COCO's twelve numbers, against torchmetrics' MeanAveragePrecision: ``python benchmarks/metric.py [--images 5000]``.

The same made-up detections as in benchmarks/evaluation.py, 100 on each photo, in memory in the form that each side's
evaluation loop leaves: for us COCO records, for torchmetrics tensors of each photo, given to ``update`` in batches of
eight; then ``compute``. torchmetrics is not needed to run the project: ``pip install torchmetrics==1.9.0
lightning-utilities==0.15.3``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections import defaultdict
from importlib.util import find_spec

import numpy as np
import torch
from evaluation import made_up_detections, made_up_truth
from machine import header

from helpers.boxes import xywh_to_xyxy
from helpers.metrics import coco_metrics

BATCH = 8
# Its own defaults are these in single precision; recall 0.1 is then below the threshold 0.1, and mAP another in the
# fourth digit
COCO_THRESHOLDS = {
    "iou_thresholds": np.linspace(0.5, 0.95, 10).tolist(),
    "rec_thresholds": np.linspace(0, 1, 101).tolist(),
}
NAMES = {"mAP": "map", "mAP50": "map_50", "mAP75": "map_75"}


def tensors(records: list[dict], image_ids: list[int], extra: dict[str, tuple[str, type]]) -> list[dict]:
    """The records by photo, as torchmetrics takes them: ``boxes`` xyxy, ``labels``, and ``extra``: name -> (COCO's
    name, type).
    """
    of = defaultdict(list)
    for record in records:
        of[record["image_id"]].append(record)
    found = []
    for key in image_ids:
        bbox = np.array([record["bbox"] for record in of[key]], np.float64).reshape(-1, 4)
        photo = {
            "boxes": torch.from_numpy(xywh_to_xyxy(bbox)),
            "labels": torch.tensor([record["category_id"] for record in of[key]], dtype=torch.int64),
        }
        photo |= {
            name: torch.tensor([record[field] for record in of[key]], dtype=kind)
            for name, (field, kind) in extra.items()
        }
        found.append(photo)
    return found


def theirs(predicted: list[dict], truth: list[dict]) -> tuple[dict, float]:
    """torchmetrics' numbers, and the seconds of all ``update`` and of ``compute``."""
    from torchmetrics.detection import MeanAveragePrecision

    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        metric = MeanAveragePrecision(backend="pycocotools", **COCO_THRESHOLDS)
        for k in range(0, len(truth), BATCH):
            metric.update(predicted[k : k + BATCH], truth[k : k + BATCH])
        found = metric.compute()
    return found, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("images", 5000), ("per-image", 100), ("classes", 80), ("seed", 0), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    if find_spec("torchmetrics") is None:
        raise SystemExit(
            "This benchmark compares with torchmetrics, which the project does not need: "
            "pip install torchmetrics==1.9.0 lightning-utilities==0.15.3"
        )
    gt = made_up_truth(arguments.images, arguments.classes, arguments.seed)
    detections = made_up_detections(gt, arguments.per_image, 0.12, arguments.seed + 1)
    image_ids = [image["id"] for image in gt["images"]]
    truth = tensors(
        gt["annotations"], image_ids, {"iscrowd": ("iscrowd", torch.int64), "area": ("area", torch.float64)}
    )
    predicted = tensors(detections, image_ids, {"scores": ("score", torch.float64)})
    print(header("torch", "torchmetrics", "pycocotools", "hotcoco"))
    print(
        f"{arguments.images:,} photos x {arguments.per_image} detections, {arguments.classes} classes, "
        f"{arguments.rounds} rounds"
    )
    mine, other, processor = [], [], []
    for _ in range(arguments.rounds):
        begin, began = time.perf_counter(), time.process_time()
        stats = coco_metrics(gt, detections)["stats"]
        mine.append(time.perf_counter() - begin)
        between = time.process_time()
        found, seconds = theirs(predicted, truth)
        other.append(seconds)
        processor.append((between - began, time.process_time() - between))
        for ours, name in NAMES.items():
            assert abs(stats[ours] - float(found[name])) < 1e-6, (ours, stats[ours], float(found[name]))
    ratios = np.array(other) / mine
    print(
        f"ours {np.median(mine):.2f} s, torchmetrics {np.median(other):.1f} s, "
        f"{np.median(other) / np.median(mine):.1f} times as long "
        f"({ratios.min():.1f} to {ratios.max():.1f}); the aim is 20. mAP {stats['mAP']:.6f} on both sides"
    )
    ours, torchmetrics = np.median(processor, axis=0)
    print(
        f"processor time, which a busy machine changes less: {ours:.2f} s and {torchmetrics:.1f} s, "
        f"{torchmetrics / ours:.1f} times"
    )


if __name__ == "__main__":
    main()
