"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))  # for `from mirror import Mirror`, from every folder

from coco_folder import COCO_REAL, TRAINED  # noqa: E402

ON_A_TRAINED_DETECTOR = ["error_analysis/test_trained_detector.py", "export/test_trained_export.py"]
LONGEST_FIRST = [  # so that no process is left with one of them when the others have nothing to do any more
    "run/test_true_path.py",
    "train/test_overfit.py",
    "error_analysis/test_trained_detector.py",
    "run/test_lab.py",
    "train/test_processes.py",
    "train/test_resume.py",
    "download/test_download.py",
]
collect_ignore = [] if TRAINED.is_dir() and COCO_REAL.is_dir() else ON_A_TRAINED_DETECTOR


def pytest_report_header() -> list[str]:
    """What a reader of the results must know: which tests had nothing to run on."""
    missing = [path.name for path in (TRAINED, COCO_REAL) if not path.is_dir()]
    if not missing:
        return []
    return [f"Not here: {' and '.join(missing)}. NOT TESTED on a trained detector: {', '.join(ON_A_TRAINED_DETECTOR)}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: k for k, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="module")
def one_thread():
    """For the tiny models of the tests: they are so small that threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def coco_source(tmp_path_factory) -> Path:
    """A COCO folder with both splits, all 80 categories and crowds.

    Real photos where ``../shared/coco_real`` is there, made-up scenes elsewhere: the suite is the same on any machine.
    ``COCO_SOURCE=scenes pytest`` takes the scenes everywhere.
    """
    from coco_folder import scenes_like_coco

    if COCO_REAL.is_dir() and os.environ.get("COCO_SOURCE") != "scenes":
        return COCO_REAL
    return scenes_like_coco(tmp_path_factory.mktemp("coco"), n_train=60, n_val=40)
