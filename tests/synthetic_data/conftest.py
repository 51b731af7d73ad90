"""A training split with masks: real photos of ten classes where they are there, else built-in scenes."""

from __future__ import annotations

import pytest

from helpers.config import load_config
from helpers.download.prepare import prepare
from helpers.index import open_split

TEN = ("person", "car", "traffic light", "handbag", "bottle", "cup", "bowl", "chair", "dining table", "book")


@pytest.fixture(scope="package")
def cfg(coco_source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    made = load_config(
        "demo",
        data_source="folder",
        coco_root=str(coco_source),
        data_dir=str(folder / "data"),
        output_dir=str(folder / "out"),
        classes=TEN,
        max_train_images=60,
        max_val_images=12,
        run_name="exp",
    )
    prepare(made)
    return made


@pytest.fixture(scope="package")
def split(cfg):
    """Index and annotation file of the training split."""
    return open_split(cfg, "train2017"), cfg.annotation_file("train2017")
