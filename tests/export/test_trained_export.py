"""The export of a detector that was trained on COCO, on real photos.

The detector is not part of the project: where ``../shared/models`` or ``../shared/coco_real`` is missing, the first
lines of pytest output say what is not tested (see conftest.py).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from coco_folder import COCO_REAL, TRAINED
from PIL import Image
from readme_example import as_detections, namespace

from helpers.config import load_config
from helpers.download.prepare import prepare
from helpers.engine import eval_loader, predict
from helpers.evaluate.checkpoint import load_checkpoint
from helpers.export.folder import PIXELS, SCORE, differences, export
from helpers.export.graph import OnnxModel
from helpers.index import open_split
from helpers.metrics import Detections, coco_metrics, ground_truth

pytestmark = pytest.mark.usefixtures("one_thread")


def test_trained_detector_finds_the_same(tmp_path):
    """32 photos: in onnxruntime what the checkpoint finds; and with its own pixels, the README's example as much."""
    settings = {
        "data_dir": tmp_path / "data",
        "output_dir": tmp_path / "out",
        "max_train_images": 4,
        "max_val_images": 32,
        "num_workers": 0,
    }
    cfg = load_config(
        "photos", coco_root=str(COCO_REAL), model=str(TRAINED), image_size=320, checkpoint="start", **settings
    )
    prepare(cfg)
    where, about = export(cfg)
    assert about["compared"]["largest_score"] < SCORE / 10 and about["compared"]["largest_pixels"] < PIXELS / 10
    index = open_split(cfg, "val2017")
    detector = load_checkpoint(cfg, index.classes, "start")
    loader = list(eval_loader(index, detector.preprocess, 7, 0))
    ids = detector.category_ids(index)
    ours, theirs = (
        predict(each, loader, ids)[0] for each in (detector, replace(detector, model=OnnxModel(where / "model.onnx")))
    )
    count, score, edge = differences(ours, theirs)
    assert count > 1000 and score < SCORE and edge < PIXELS
    detect, found, known = namespace(where, index.path(0))["detect"], [], dict(zip(index.classes, index.category_ids))
    for i in range(len(index)):
        with Image.open(index.path(i)) as photo:
            rows = [row for row in detect(photo, threshold=0.0) if row[0] in known]
        found.append(as_detections(rows, known, int(index.image_ids[i])))
    pillows, torchvisions = (
        coco_metrics(ground_truth(index), each)["stats"] for each in (Detections.joined(found), ours)
    )
    assert torchvisions["mAP"] > 0.1 and abs(pillows["mAP"] - torchvisions["mAP"]) < 0.005
