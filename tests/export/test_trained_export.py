"""The export of a detector that was trained on COCO, on real photos.

The detector is not part of the project: where ``../shared/models`` or ``../shared/coco_real`` is missing, the first
lines of pytest output say what is not tested (see conftest.py).
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from coco_folder import COCO_REAL, TRAINED
from readme_example import detections_of, namespace

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
    """64 photos: in onnxruntime what the checkpoint finds; and with its own pixels, the README's example as much."""
    settings = {"data_dir": tmp_path / "data", "output_dir": tmp_path / "out", "max_val_images": 64, "num_workers": 0}
    cfg = load_config("photos", coco_root=str(COCO_REAL), model=str(TRAINED), image_size=320, checkpoint="start", **settings)
    prepare(cfg)
    where, about = export(cfg)
    assert about["compared"]["largest_score"] < SCORE / 10 and about["compared"]["largest_pixels"] < PIXELS / 10
    index = open_split(cfg, "val2017")
    detector = load_checkpoint(cfg, index.classes, "start")
    loader = list(eval_loader(index, detector.preprocess, 7, 0))
    ids = detector.category_ids(index)
    ours, theirs = (
        predict(model, detector.processor, detector.preprocess, loader, ids)[0]
        for model in (detector.model, OnnxModel(where / "model.onnx"))
    )
    count, score, edge = differences(ours, theirs)
    print(count, score, edge)
    detect = namespace(where, index.path(0))["detect"]
