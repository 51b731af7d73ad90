"""The test that the whole chain is right: a detector learns eight photos by heart, and what it learnt is what others
load.
"""

from pathlib import Path

import numpy as np
import orjson
import pytest
import transformers
from PIL import Image

from helpers.config import load_config
from helpers.download.prepare import prepare
from helpers.engine import eval_loader, predict
from helpers.evaluate.checkpoint import load_checkpoint
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth
from helpers.train.training import train

CLASSES = ("person", "car", "traffic light", "handbag", "bottle", "cup", "bowl", "chair", "dining table", "book")


COPIES = 10  # of each photo in an epoch: a validation and a checkpoint every ten steps, not after each one


def eight_photos(source: Path, folder: Path) -> Path:
    """A COCO folder with eight photos of ``source`` that a model of forty queries at 256 pixels can learn: two to nine
    objects,
    no crowd, nothing tiny. They are the validation split, and the training split ``COPIES`` times over."""
    coco = orjson.loads((source / "annotations" / "instances_train2017.json").read_bytes())
    ids = {c["id"] for c in coco["categories"] if c["name"] in CLASSES}
    images = {image["id"]: image for image in coco["images"]}
    of_photo = {i: [a for a in coco["annotations"] if a["image_id"] == i and a["category_id"] in ids] for i in images}
    good = [
        i
        for i, rows in of_photo.items()
        if 2 <= len(rows) <= 9
        and all(
            not a["iscrowd"] and min(a["bbox"][2:]) > 0.06 * max(images[i]["width"], images[i]["height"]) for a in rows
        )
    ]
    chosen, known = [], set()
    while len(chosen) < 8:  # always the photo that shows most classes that are still lacking
        best = max(
            (i for i in good if i not in chosen),
            key=lambda i: (len({a["category_id"] for a in of_photo[i]} - known), -i),
        )
        chosen, known = [*chosen, best], known | {a["category_id"] for a in of_photo[best]}
    for split, copies in (("train2017", COPIES), ("val2017", 1)):
        doc = {"categories": coco["categories"], "images": [], "annotations": []}
        (folder / "images" / split).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        for copy in range(copies):
            for i in chosen:
                name = f"{copy}_{Path(images[i]['file_name']).name}"
                (folder / "images" / split / name).symlink_to(
                    (source / "images" / "train2017" / images[i]["file_name"]).resolve()
                )
                doc["images"].append({**images[i], "id": COPIES * i + copy, "file_name": name})
                doc["annotations"] += [
                    {**a, "id": COPIES * a["id"] + copy, "image_id": COPIES * i + copy} for a in of_photo[i]
                ]
        (folder / "annotations" / f"instances_{split}.json").write_bytes(orjson.dumps(doc))
    return folder


@pytest.fixture(scope="module")
def learnt(coco_source, tmp_path_factory):
    """The shipped checkpoint's weights with a fresh class head, trained on the eight photos for 240 steps; (config,
    their index).
    """
    folder = tmp_path_factory.mktemp("overfit")
    cfg = load_config(
        "demo",
        data_source="folder",
        coco_root=str(eight_photos(coco_source, folder / "eight")),
        data_dir=str(folder / "data"),
        output_dir=str(folder / "out"),
        classes=CLASSES,
        class_head="reset",
        augment="none",
        image_size=256,
        batch_size=2,
        epochs=6,
        lr=6e-4,
        lr_backbone=2e-4,
        freeze_stages=2,
        num_workers=0,
        ema=0.0,
        scheduler="flat_cosine",
        warmup_ratio=0.05,
        precision="fp32",
        clip_norm=1.0,
        seed=3,
    )
    prepare(cfg)
    train(cfg)
    return cfg, open_split(cfg, "val2017")


def test_eight_photos_by_heart(learnt):
    """AP50 above 0.9 on the photos that it was trained on. A wrong box format, a shifted class, boxes that do not move
    with their
    photo: any of these and it stays low, however long the training."""
    cfg, index = learnt
    detector = load_checkpoint(cfg, index.classes, "last")
    detections, _ = predict(detector, eval_loader(index, detector.preprocess, 4, 0), index.category_ids)
    assert len(index) == 8 and len(set(index.labels.tolist())) >= 5, "too little to tell a right chain from a wrong one"
    stats = coco_metrics(ground_truth(index), detections)["stats"]
    assert stats["mAP50"] > 0.9, stats


def test_pipeline_gives_the_same_boxes_and_scores(learnt):
    """The saved folder in the library's own pipeline, on photos of different shapes: same boxes, scores and names as
    ours.
    """
    cfg, index = learnt
    pipeline = transformers.pipeline("object-detection", str(cfg.run_dir / "checkpoint_last"), device="cpu")
    detector = load_checkpoint(cfg, index.classes, "last")
    shapes = np.argsort(index.widths / index.heights)
    compared = 0
    for i in (shapes[0], shapes[len(shapes) // 2], shapes[-1]):
        one = index.take(np.array([i]))
        ours, _ = predict(detector, eval_loader(one, detector.preprocess, 1, 0), one.category_ids)
        ours = [row for row in ours if row["score"] > 0.05]
        theirs = sorted(pipeline(Image.open(one.path(0)).convert("RGB"), threshold=0.05), key=lambda row: -row["score"])
        assert len(ours) == len(theirs)
        names = dict(zip(index.category_ids, index.classes))
        for a, b in zip(ours, theirs):
            x, y, w, h = a["bbox"]
            box = [b["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
            assert names[a["category_id"]] == b["label"] and abs(a["score"] - b["score"]) < 1e-3
            assert (
                np.abs(np.array([x, y, x + w, y + h]) - box).max() < 1 + 1e-3
            )  # the pipeline cuts pixels to whole numbers
        compared += len(ours)
    assert compared >= 10
