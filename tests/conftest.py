"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from helpers.files import ROOT

sys.path.insert(0, str(Path(__file__).parent / "support"))  # for `from mirror import Mirror`, from every folder


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

    real = ROOT.parent / "shared" / "coco_real"
    if real.is_dir() and os.environ.get("COCO_SOURCE") != "scenes":
        return real
    return scenes_like_coco(tmp_path_factory.mktemp("coco"), n_train=60, n_val=40)
