"""The numbers of 04 and 05 against pycocotools and tidecv, on what a real detector says about real pictures.

Made-up detections (tests/test_curves.py, tests/test_errors.py) are harder, but the scores and boxes of a network have
shapes that nobody made up: hundreds of weak boxes on top of each other, scores of float32.
"""

from __future__ import annotations

import pytest
import torch
from test_errors import by_tidecv, without_crowds

from helpers.config import load_config
from helpers.download.coco import read_index
from helpers.engine import eval_loader, predict
from helpers.error_analysis.analysis import analyse, count_types
from helpers.error_analysis.tide import TYPES
from helpers.evaluate.checkpoint import load_checkpoint
from helpers.metrics import coco_metrics, ground_truth
from helpers.scenes.scenes import write_scenes

CROWD = 9  # every ninth object becomes a crowd region


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[dict, list[dict]]:
    """The shipped checkpoint on scenes of its classes: ground truth with crowds, and every detection down to score
    0.
    """
    root = tmp_path_factory.mktemp("real")
    cfg = load_config("demo", num_workers=0, batch_size=8)
    write_scenes(root, cfg.classes, 1, 20, seed=11)
    index = read_index(root / "annotations" / "instances_val2017.json", root / "images" / "val2017")
    index.iscrowd[::CROWD] = True
    detector = load_checkpoint(cfg, index.classes, "start")
    loader = eval_loader(index, detector.preprocess, cfg.batch_size, 0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several, on a machine that is busy, wait for each other for a minute
    detections, _ = predict(detector, loader, detector.category_ids(index))
    torch.set_num_threads(threads)
    return ground_truth(index), detections


def test_twelve_numbers_of_a_real_detector_to_the_bit(run):
    gt, detections = run
    fast, reference = coco_metrics(gt, detections), coco_metrics(gt, detections, engine="pycocotools")
    assert fast["stats"] == reference["stats"] and fast["per_class"].equals(reference["per_class"])
    assert fast["stats"]["mAP"] > 0.2 and any(a["iscrowd"] for a in gt["annotations"])


def test_prices_and_counts_of_a_real_detector_are_tides(run):
    """Within 0.01 is the promise (crowds left out of both, 100 a photo at most); counts agree exactly."""
    gt, detections = run
    gt = without_crowds(gt)
    ap50, gains, counts = by_tidecv(gt, detections)
    analysis = analyse(gt, detections)
    assert analysis.verdicts.beyond_cap == 0 and min(counts.values()) > 0
    assert analysis.ap["AP50"].mean() == pytest.approx(ap50, abs=0.01)
    assert {name: pytest.approx(gain, abs=0.01) for name, gain in gains.items()} == analysis.delta_ap
    assert dict(zip(TYPES.values(), count_types(analysis.errors))) == counts
