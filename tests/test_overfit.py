"""The test that the whole chain is right: a detector learns eight photos by heart, and what it learnt is what others load."""
from pathlib import Path

import numpy as np
import orjson
import pytest
import transformers
from PIL import Image

from helpers.config import load_config
from helpers.dataset import open_split
from helpers.download import prepare
from helpers.engine import train
from helpers.evaluation import coco_metrics, eval_loader, ground_truth, load_checkpoint, predict

CLASSES = ("person", "car", "traffic light", "handbag", "bottle", "cup", "bowl", "chair", "dining table", "book")


def eight_photos(source: Path, folder: Path) -> Path:
    """A COCO folder whose training split is eight photos of ``source`` that a model of forty queries at 256 pixels can learn:
    two to nine objects, none a crowd, none tiny, and together all the classes that such photos show."""
    for split in ("train2017", "val2017"):
        coco = orjson.loads((source / "annotations" / f"instances_{split}.json").read_bytes())
        ids = {c["id"] for c in coco["categories"] if c["name"] in CLASSES}
        of_photo = {image["id"]: [a for a in coco["annotations"] if a["image_id"] == image["id"] and a["category_id"] in ids] for image in coco["images"]}
        sides = {image["id"]: max(image["width"], image["height"]) for image in coco["images"]}
        good = [i for i, rows in of_photo.items() if 2 <= len(rows) <= 9 and not any(a["iscrowd"] for a in rows)
                and all(min(a["bbox"][2:]) > 0.06 * sides[i] for a in rows)]
        chosen, known = [], set()
        while len(chosen) < 8:  # always the photo that shows most classes that are still lacking
            best = max((i for i in good if i not in chosen), key=lambda i: (len({a["category_id"] for a in of_photo[i]} - known), -i))
            chosen, known = [*chosen, best], known | {a["category_id"] for a in of_photo[best]}
        coco["images"] = [image for image in coco["images"] if image["id"] in chosen]
        coco["annotations"] = [a for a in coco["annotations"] if a["image_id"] in chosen]
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        (folder / "annotations" / f"instances_{split}.json").write_bytes(orjson.dumps(coco))
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / split).symlink_to(source / "images" / split)
    return folder


@pytest.fixture(scope="module")
def learnt(coco_source, tmp_path_factory):
    """The shipped checkpoint's weights with a fresh class head, trained on eight photos for 80 steps; (config, their index)."""
    folder = tmp_path_factory.mktemp("overfit")
    cfg = load_config("demo", data_source="folder", coco_root=str(eight_photos(coco_source, folder / "eight")), data_dir=str(folder / "data"),
                      output_dir=str(folder / "out"), classes=CLASSES, max_val_images=1, class_head="reset", augment="none", image_size=256,
                      batch_size=8, epochs=80, lr=8e-4, lr_backbone=2e-4, freeze_stages=2, num_workers=0, ema=0.0, scheduler="flat_cosine",
                      warmup_ratio=0.05, precision="fp32", clip_norm=1.0, seed=3)
    prepare(cfg)
    train(cfg)
    return cfg, open_split(cfg, "train2017")


def test_eight_photos_by_heart(learnt):
    """AP50 above 0.9 on the photos that it was trained on. A wrong box format, a shifted class, boxes that do not move with their
    photo: any of these and it stays low, however long the training."""
    cfg, index = learnt
    detector = load_checkpoint(cfg, index.classes, "last")
    detections, _ = predict(detector.model, detector.processor, detector.preprocess, eval_loader(index, detector.preprocess, 4, 0), index.category_ids)
    assert len(index) == 8 and len(set(index.labels.tolist())) >= 5, "too little to tell a right chain from a wrong one"
    stats = coco_metrics(ground_truth(index), detections)["stats"]
    assert stats["mAP50"] > 0.9, stats


def test_pipeline_gives_the_same_boxes_and_scores(learnt):
    """The saved folder in the library's own pipeline, on photos of different shapes: same boxes, scores and names as ours."""
    cfg, index = learnt
    pipeline = transformers.pipeline("object-detection", str(cfg.run_dir / "checkpoint_last"), device="cpu")
    detector = load_checkpoint(cfg, index.classes, "last")
    shapes = np.argsort(index.widths / index.heights)
    compared = 0
    for i in (shapes[0], shapes[len(shapes) // 2], shapes[-1]):
        one = index.take(np.array([i]))
        ours, _ = predict(detector.model, detector.processor, detector.preprocess, eval_loader(one, detector.preprocess, 1, 0), one.category_ids)
        ours = [row for row in ours if row["score"] > 0.05]
        theirs = sorted(pipeline(Image.open(one.path(0)).convert("RGB"), threshold=0.05), key=lambda row: -row["score"])
        assert len(ours) == len(theirs)
        names = dict(zip(index.category_ids, index.classes))
        for a, b in zip(ours, theirs):
            x, y, w, h = a["bbox"]
            box = [b["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
            assert names[a["category_id"]] == b["label"] and abs(a["score"] - b["score"]) < 1e-3
            assert np.abs(np.array([x, y, x + w, y + h]) - box).max() < 1 + 1e-3  # the pipeline cuts pixels to whole numbers
        compared += len(ours)
    assert compared >= 10
