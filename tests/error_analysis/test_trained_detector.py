"""The whole chain on a detector that was trained on COCO, and on real photos. Random weights hide faults; these do not.

The detector is not part of the project: where ``../shared/models`` or ``../shared/coco_real`` is missing, the first
lines of pytest output say what is not tested (see conftest.py).
"""

from __future__ import annotations

import copy

import numpy as np
import orjson
import pytest
import torch
import transformers
from coco_folder import COCO_REAL, TRAINED
from fiftyone_map import JOB, disagreements, in_fiftyone
from PIL import Image
from test_errors import by_tidecv

from helpers.config import load_config
from helpers.devices import autocast
from helpers.download.prepare import prepare
from helpers.engine import eval_loader, predict
from helpers.error_analysis.tide import gains, judge, oracle_ap
from helpers.evaluate.checkpoint import evaluate_checkpoint, load_checkpoint
from helpers.families.loading import load_detector
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth, save_detections
from helpers.train.fast_path import take_fast_path

TEN = ("person", "car", "traffic light", "handbag", "bottle", "cup", "bowl", "chair", "dining table", "book")
PUBLISHED = {"all": 0.1793, "ten": 0.1424}  # AP on these 320 photos by pycocotools, of the detector's own description


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """All 80 classes of the 320 photos of val2017, as notebook 01 prepares them."""
    folder = tmp_path_factory.mktemp("trained")
    coco = orjson.loads((COCO_REAL / "annotations" / "instances_val2017.json").read_bytes())
    settings = {"data_dir": folder / "data", "output_dir": folder / "out", "image_size": 320, "batch_size": 8}
    names = tuple(category["name"] for category in coco["categories"])
    cfg = load_config("photos", coco_root=str(COCO_REAL), model=str(TRAINED), classes=names, num_workers=0, **settings)
    prepare(cfg)
    return cfg


@pytest.fixture(scope="module")
def evaluated(cfg):
    index = open_split(cfg, "val2017")
    return index, *evaluate_checkpoint(cfg, index, "start")


def test_row_one_is_the_published_detector(evaluated):
    """80 classes, and the assignment's ten of them: the figures that the detector is published with."""
    index, detections, metrics = evaluated
    assert len(index) == 320 and abs(metrics["stats"]["mAP"] - PUBLISHED["all"]) < 0.002
    gt = ground_truth(index)
    asked = {category["id"] for category in gt["categories"] if category["name"] in TEN}
    part = {
        "images": gt["images"],
        "categories": [category for category in gt["categories"] if category["id"] in asked],
        "annotations": [record for record in gt["annotations"] if record["category_id"] in asked],
    }
    ten = [row for row in detections if row["category_id"] in asked]
    assert len(asked) == 10 and abs(coco_metrics(part, ten)["stats"]["mAP"] - PUBLISHED["ten"]) < 0.002


def test_whole_head_gives_our_classes_alone(cfg, evaluated):
    """A config of ten classes: the same detections as of eighty, without those of other classes."""
    index, detections, _ = evaluated
    few = index.take(np.arange(24))
    asked = [index.category_ids[index.classes.index(name)] for name in TEN]
    detector = load_checkpoint(cfg.with_(classes=TEN), TEN, "start")
    assert detector.model.config.num_labels == 80
    ids = [category if category in asked else None for category in detector.category_ids(index)]
    loader = eval_loader(few, detector.preprocess, 8, 0)
    found, _ = predict(detector, loader, ids)
    there = set(few.image_ids.tolist())
    expected = [row for row in detections if row["image_id"] in there and row["category_id"] in asked]
    key = lambda row: (row["image_id"], -row["score"], row["category_id"])
    assert len(found) == len(expected) > 500
    for one, other in zip(sorted(found, key=key), sorted(expected, key=key)):
        assert abs(one["score"] - other["score"]) < 1e-4
        assert np.abs(np.array(one["bbox"]) - other["bbox"]).max() < 0.1


def test_both_engines_and_both_countings_of_errors_agree(evaluated):
    """pycocotools to the bit; TIDE's prices within a hundredth of tidecv's, which knows no crowds."""
    index, detections, metrics = evaluated
    gt = ground_truth(index)
    assert coco_metrics(gt, detections, engine="pycocotools")["stats"] == metrics["stats"]
    crowded = {record["image_id"] for record in gt["annotations"] if record["iscrowd"]}
    plain = {**gt, "images": [image for image in gt["images"] if image["id"] not in crowded]}
    plain["annotations"] = [record for record in gt["annotations"] if record["image_id"] not in crowded]
    found = [row for row in detections if row["image_id"] not in crowded]
    ours = oracle_ap(judge(plain, found))
    ap, prices, _ = by_tidecv(plain, found)
    assert abs(float(ours["AP50"].mean()) - ap) < 0.01
    assert all(abs(gains(ours)[name] - price) < 0.01 for name, price in prices.items())


def test_pipeline_sees_the_same(cfg, evaluated):
    """20 photos through the library's own pipeline: scores within 1e-3, boxes within half a pixel."""
    index, detections, _ = evaluated
    pipeline = transformers.pipeline("object-detection", model=str(TRAINED), device="cpu")
    by_photo: dict[int, list[dict]] = {}
    for row in detections:
        by_photo.setdefault(row["image_id"], []).append(row)
    name_of, compared = dict(zip(index.category_ids, index.classes)), 0
    for i in range(0, len(index), len(index) // 20):
        with Image.open(index.path(i)) as photo:
            theirs = pipeline(photo.convert("RGB"), threshold=0.2)
        ours = [row for row in by_photo[int(index.image_ids[i])] if row["score"] > 0.198]
        for row in theirs:
            box = np.array([row["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")])
            same = [
                mine
                for mine in ours
                if name_of[mine["category_id"]] == row["label"] and abs(mine["score"] - row["score"]) < 1e-3
            ]
            corners = [
                np.array([*m["bbox"][:2], m["bbox"][0] + m["bbox"][2], m["bbox"][1] + m["bbox"][3]]) for m in same
            ]
            # half a pixel, and the pipeline cuts coordinates to whole ones
            assert any((np.abs(c - box) < 1.5).all() for c in corners), (index.image_ids[i], row)
            compared += 1
    assert compared > 60


def test_batch_size_changes_nothing(cfg, evaluated):
    """Portrait, landscape and square photos, one at a time and all in one batch."""
    index, _, _ = evaluated
    shapes = np.argsort(index.widths / index.heights)
    middle = len(shapes) // 2
    few = index.take(shapes[[0, 1, 2, middle, middle + 1, -3, -2, -1]])
    detector = load_detector(cfg, index.classes, class_head="whole")
    ids, results = detector.category_ids(index), []
    for size in (1, 8):
        loader = eval_loader(few, detector.preprocess, size, 0)
        results.append(predict(detector, loader, ids)[0])
    one, all_ = (
        np.column_stack([r.image_id, r.category_id, r.score, r.bbox])[np.lexsort((-r.score, r.image_id))]
        for r in results
    )
    assert np.array_equal(one[:, :2], all_[:, :2]) and np.abs(one[:, 2:] - all_[:, 2:]).max() < 0.02


def test_our_computation_is_the_checkpoints(cfg, evaluated):
    """Corrections, folded norms and layouts: on trained norms, the plain library's logits and boxes, and gradients."""
    index, _, _ = evaluated
    plain = transformers.AutoModelForObjectDetection.from_pretrained(TRAINED).eval()
    detector = load_detector(cfg, index.classes, class_head="whole")
    ours = copy.deepcopy(detector.model).eval()
    take_fast_path(ours)
    batch = next(iter(eval_loader(index.take(np.arange(2)), detector.preprocess, 2, 0)))
    inputs = detector.preprocess.to_device(batch)
    outputs = [model(pixel_values=inputs["pixel_values"]) for model in (plain, ours)]
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=2e-3)
    assert torch.allclose(outputs[0].pred_boxes, outputs[1].pred_boxes, atol=1e-4)
    gradients = []
    for model, output in zip((plain, ours), outputs):
        (output.logits.sigmoid().sum() + output.pred_boxes.sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    shared = gradients[0].keys() & gradients[1].keys()  # ours has frozen stages
    assert len(shared) > 100
    for name in shared:
        apart = (gradients[0][name] - gradients[1][name]).norm()
        assert apart <= 2e-2 * gradients[0][name].norm() + 1e-3, name


def test_bf16_costs_no_accuracy(cfg, evaluated):
    """80 photos under autocast against the same in fp32; boxes that leave the model in bf16 would lie on a coarse
    grid."""
    index, detections, _ = evaluated
    few = index.take(np.arange(0, len(index), 4))
    detector = load_checkpoint(cfg, index.classes, "start")
    take_fast_path(detector.model)
    loader = eval_loader(few, detector.preprocess, 8, 0)
    how = {"category_ids": detector.category_ids(index), "autocast": autocast("bf16")}
    in_bf16, _ = predict(detector, loader, **how)
    there = set(few.image_ids.tolist())
    in_fp32 = [row for row in detections if row["image_id"] in there]
    rough, fine = (coco_metrics(ground_truth(few), found)["stats"]["mAP"] for found in (in_bf16, in_fp32))
    assert 0 < abs(rough - fine) < 0.005, (rough, fine)


def test_fiftyones_map_is_ours(cfg, evaluated, tmp_path):
    """FiftyOne's own COCO evaluation of the same boxes of 16 photos, and every box that it judges otherwise."""
    settings = {"coco_root": str(COCO_REAL), "model": str(TRAINED), "classes": list(cfg.classes), "max_val_images": 16}
    folders = {"data_dir": str(tmp_path / "data"), "output_dir": str(tmp_path / "out")}
    part = load_config("photos", **settings, **folders)
    prepare(part)
    index = open_split(part, "val2017")
    there, gt = set(index.image_ids.tolist()), ground_truth(index)
    detections = [row for row in evaluated[1] if row["image_id"] in there]
    save_detections(part.run_dir / "detections_val2017.json", detections)
    answer = in_fiftyone(JOB, {"preset": "photos", **settings, **folders}, tmp_path, timeout=600)
    assert len(index) == 16 and abs(answer["mAP"] - coco_metrics(gt, detections)["stats"]["mAP"]) < 0.001
    assert disagreements(gt, judge(gt, detections), answer["boxes"])["unexplained"] == 0
