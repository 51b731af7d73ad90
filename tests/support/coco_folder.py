"""COCO folders for tests: built-in scenes, dressed up as COCO publishes its photos."""

from __future__ import annotations

from pathlib import Path

import orjson

from helpers.files import ROOT

COCO_REAL = ROOT.parent / "shared" / "coco_real"  # real photos of COCO, and
TRAINED = ROOT.parent / "shared" / "models" / "deimv2_hgnetv2_atto_coco"  # a detector trained on it: not of the project


def coco_category_ids() -> dict[str, int]:
    """COCO's 80 classes, name -> id, from a table that is not ours."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"]
    return {name: key for key, name in enumerate(names) if name not in ("__background__", "N/A")}


def scenes_like_coco(root: Path, n_train: int, n_val: int) -> Path:
    """Built-in scenes written as COCO publishes its photos: 80 categories, a ``coco_url`` each, some crowds."""
    from helpers.scenes.scenes import SCENE_CLASSES, write_scenes

    write_scenes(root, SCENE_CLASSES, n_train, n_val, seed=5)
    for split in ("train2017", "val2017"):
        file = root / "annotations" / f"instances_{split}.json"
        coco = orjson.loads(file.read_bytes())
        coco["categories"] = [
            {"id": key, "name": name, "supercategory": "thing"} for name, key in coco_category_ids().items()
        ]
        for image in coco["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/{split}/{image['file_name']}"
        for record in coco["annotations"][::15]:
            x, y, w, h = record["bbox"]
            image = next(image for image in coco["images"] if image["id"] == record["image_id"])
            height, width = image["height"], image["width"]
            record["iscrowd"] = 1
            record["segmentation"] = {
                "size": [height, width],
                "counts": [x * height + y, h, (width - x) * height - y - h],
            }  # one column
        file.write_bytes(orjson.dumps(coco))
    return root
