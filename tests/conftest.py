"""Fixtures that several test files share."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson
import pytest

from helpers.config import ROOT

sys.path.insert(0, str(Path(__file__).parent))  # for `from mirror import Mirror`, whatever the import mode


@pytest.fixture(scope="module")
def one_thread():
    """For the tiny models of the tests: they are so small that threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def coco_category_ids() -> dict[str, int]:
    """COCO's 80 classes, name -> id, from a table that is not ours."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    return {name: key for key, name in enumerate(names) if name not in ("__background__", "N/A")}


@pytest.fixture(scope="session")
def coco_source(tmp_path_factory) -> Path:
    """A COCO folder with both splits, all 80 categories and crowds.

    Real photos where ``../shared/coco_real`` is there, made-up scenes elsewhere: the suite is the same on any machine.
    ``COCO_SOURCE=scenes pytest`` takes the scenes everywhere.
    """
    real = ROOT.parent / "shared" / "coco_real"
    if real.is_dir() and os.environ.get("COCO_SOURCE") != "scenes":
        return real
    return scenes_like_coco(tmp_path_factory.mktemp("coco"), n_train=60, n_val=40)


def scenes_like_coco(root: Path, n_train: int, n_val: int) -> Path:
    """Built-in scenes written as COCO publishes its photos: 80 categories, a ``coco_url`` each, some crowds."""
    from helpers.scenes import SCENE_CLASSES, write_scenes

    write_scenes(root, SCENE_CLASSES, n_train, n_val, seed=5)
    for split in ("train2017", "val2017"):
        file = root / "annotations" / f"instances_{split}.json"
        coco = orjson.loads(file.read_bytes())
        coco["categories"] = [{"id": key, "name": name, "supercategory": "thing"}
                              for name, key in coco_category_ids().items()]
        for image in coco["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}/{image['file_name']}"
        for record in coco["annotations"][::15]:
            x, y, w, h = record["bbox"]
            image = next(image for image in coco["images"] if image["id"] == record["image_id"])
            height, width = image["height"], image["width"]
            record["iscrowd"] = 1
            record["segmentation"] = {"size": [height, width],
                                      "counts": [x * height + y, h, (width - x) * height - y - h]}  # one column
        file.write_bytes(orjson.dumps(coco))
    return root
