"""FiftyOne's own COCO evaluation of a run that the project exported, and what each box's other outcome comes from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from mongod import wait_for_no_mongod

from helpers.error_analysis.tide import BOX, Verdicts
from helpers.evaluate.matching import match
from helpers.files import ROOT

# for the process that has FiftyOne; the boxes come in the order in which they were exported
COCO_MAP = """
def coco_map(dataset):
    how = {"method": "coco", "compute_mAP": True, "iou": 0.5, "classes": dataset.default_classes, "progress": False}
    result, boxes = dataset.evaluate_detections("predictions", "ground_truth", "sweep", **how), []
    for sample in dataset.iter_samples(progress=False):
        truth = {d.id: d.annotation_id for d in sample.ground_truth.detections} if sample.ground_truth else {}
        predicted = sample.predictions.detections if sample.predictions else []
        boxes += [[d.label, d.confidence, d.sweep, truth.get(d.sweep_id, -1)] for d in predicted]
    return {"mAP": float(result.mAP()), "boxes": boxes}
"""
JOB = f"""
import json, os, sys
import fiftyone.service.util
fiftyone.service.util.find_processes_by_args = lambda _: []  # a mongod of our own, also where someone else's runs
from helpers.config import load_config
from helpers.error_analysis.fiftyone_export import to_fiftyone
{COCO_MAP}
print("ANSWER " + json.dumps(coco_map(to_fiftyone(load_config(**json.loads(sys.argv[1])), 0.0))), flush=True)
os._exit(0)
"""


def in_fiftyone(script: str, job: dict, base: Path, timeout: int = 120):
    """What ``script`` answers, run with ``job`` in a process of its own, its database below ``base``."""
    process = subprocess.run(
        [sys.executable, "-c", script, json.dumps(job)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "HOME": str(base), "FIFTYONE_DATABASE_DIR": str(base / "database")},
    )
    wait_for_no_mongod(base)
    lines = [line for line in process.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, process.stderr[-3000:]
    return json.loads(lines[0][7:])


def disagreements(gt: dict, verdicts: Verdicts, boxes: list[list]) -> dict[str, int]:
    """How many predictions FiftyOne judges otherwise than 05 at IoU 0.5, by the reason.

    ``crowd first``: FiftyOne meets overlapping annotations in the order of a spatial index, so a crowd region can take
    a prediction that fits a free object; COCO asks the objects first. ``left free``: that object then goes to the next
    prediction. ``unexplained``: anything else.
    """
    crowds = {a["id"]: a["bbox"] for a in gt["annotations"] if a["iscrowd"]}
    rows, objects = verdicts.predictions, verdicts.objects
    ids = objects["annotation_id"].to_numpy()
    ours = [
        (ids[k] if kind == "correct" else "crowd" if kind == "ignored" else None)
        for kind, k in zip(rows["kind"], rows["object"])
    ]
    theirs = ["crowd" if a in crowds else a if outcome == "tp" else None for _, _, outcome, a in boxes]
    assert [round(score, 6) for score in rows["score"]] == [round(score, 6) for _, score, _, _ in boxes]
    counts, freed = {"crowd first": 0, "left free": 0, "unexplained": 0}, set()
    for k in (k for k in range(len(ours)) if ours[k] != theirs[k]):
        if theirs[k] == "crowd" and ours[k] not in (None, "crowd"):
            x, y, w, h = rows[BOX].iloc[k]
            cx, cy, cw, ch = crowds[boxes[k][3]]
            inside = max(min(x + w, cx + cw) - max(x, cx), 0) * max(min(y + h, cy + ch) - max(y, cy), 0) / (w * h)
            reason = "crowd first" if inside >= rows["iou"].iloc[k] else "unexplained"
        else:
            reason = "left free" if theirs[k] in freed else "unexplained"
        freed |= {ours[k]} - {None, "crowd"}  # what it was taken from is left for a less confident one
        counts[reason] += 1
    return counts


def map_right_first(gt: dict, detections: list[dict]) -> float:
    """COCO's mAP with the right ones first among detections of equal score, which is how FiftyOne sorts them."""
    matches, ap = match(gt, detections), []
    for k in np.flatnonzero(matches.truth.sum(axis=0)):
        part, objects = matches.of_class(k), matches.truth[:, k].sum()
        for right, ignored in zip(matches.right[:, part], matches.ignored[:, part]):
            right, score = right[~ignored], matches.score[part][~ignored]
            hits = np.cumsum(right[np.lexsort((~right, -score))])
            precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
            at = np.searchsorted(hits / objects, np.linspace(0, 1, 101))
            ap.append(precision[at[at < len(hits)]].sum() / 101)
    return float(np.mean(ap))
