"""Odd and broken data all the way: read, augmented, collated, trained on for a step and evaluated, with everything
invalid counted.
"""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.config import load_config
from helpers.download.coco import read_index
from helpers.engine import train_loader
from helpers.evaluate.checkpoint import evaluate_checkpoint
from helpers.files import UserError
from helpers.index import open_split
from helpers.train.training import build, train

NAMES = ['"quoted\' name"', "🐶 dog", "<script>alert(1)</script> $\\frac{$ *x*"]


def save_photos(folder) -> dict[str, tuple[int, int]]:
    """One photo of each odd kind: name -> (width, height) as its record says."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    photo, turned = Image.fromarray(noise), Image.Exif()
    turned[0x0112] = 6
    photo.save(folder / "plain.jpg")
    photo.convert("L").save(folder / "grey.jpg")
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise[:, :, 0].astype(np.uint16) * 257).save(folder / "sixteen.png")
    photo.save(folder / "turned.jpg", exif=turned)
    photo.save(folder / "turned_back.jpg", exif=turned)
    photo.save(folder / "frames.gif", save_all=True, append_images=[photo.rotate(90)])
    Image.fromarray(noise[:1, :1]).save(folder / "one.png")
    Image.fromarray(np.resize(noise, (10, 20_000, 3))).save(folder / "panorama.png")
    photo.save(folder / "empty of objects.jpg")
    photo.save(folder / "crowded.jpg")
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "half.jpg").write_bytes((folder / "plain.jpg").read_bytes()[:700])
    sizes = dict.fromkeys([path.name for path in sorted(folder.iterdir())] + ["missing.jpg"], (80, 60))
    return sizes | {"turned_back.jpg": (60, 80), "one.png": (1, 1), "panorama.png": (20_000, 10)}


GOOD = {
    "plain.jpg",
    "grey.jpg",
    "cmyk.jpg",
    "sixteen.png",
    "turned.jpg",
    "turned_back.jpg",
    "frames.gif",
    "one.png",
    "panorama.png",
}
BAD_BOXES = [
    [1, 1, 0, 5],
    [1, 1, 5, -5],
    [500, 1, 5, 5],
    [1, math.nan, 5, 5],
    [0, 0, 1e9, 1e9],
    [1, 1, math.inf, 5],
    [0, 0, 10**400, 5],
]


def write_split(data_dir, split: str, sizes: dict) -> int:
    """COCO's file for photos of :func:`save_photos`; gives the count of records in it that cannot be used."""
    images = [
        {"id": k, "file_name": name, "width": w, "height": h} for k, (name, (w, h)) in enumerate(sizes.items(), start=1)
    ]
    records = []
    for image in images:
        width, height = image["width"], image["height"]
        boxes = [
            [width * 0.1, height * 0.1, width * 0.8, height * 0.7],
            [-0.4, -0.4, width * 0.5, height + 0.8],
        ]  # a little outside
        boxes = [] if image["file_name"] == "empty of objects.jpg" else boxes
        if image["file_name"] == "crowded.jpg":
            boxes = [[x * 0.7, y * 0.5, 9, 8] for x in range(100) for y in range(100)]
        records += [
            {
                "id": len(records) + k,
                "image_id": image["id"],
                "category_id": 1 + k % 3,
                "bbox": box,
                "iscrowd": 0,
                "area": box[2] * box[3],
            }
            for k, box in enumerate(boxes, start=1)
        ]
    bad = [{**records[0], "id": 10**6 + k, "bbox": box} for k, box in enumerate(BAD_BOXES)]
    bad += [
        {**records[0], "id": 10**7, "category_id": 99},
        {**records[0]},
        {**records[0], "id": 10**7 + 1, "image_id": 999},
        {**records[0], "id": 10**7 + 2, "image_id": [1]},
        {**records[0], "id": 10**7 + 3, "area": 10**400},
    ]
    images.append({**images[0]})  # an id that is there twice
    coco = {
        "images": images,
        "annotations": records + bad,
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)],
    }
    (data_dir / "annotations").mkdir(exist_ok=True)
    save_split(data_dir, split, coco)
    return len(bad) + 1


def save_split(data_dir, split: str, coco: dict) -> None:
    """As notebook 01 leaves it, had it not already dropped what cannot be used."""
    file = data_dir / "annotations" / f"instances_{split}.json"
    file.write_text(json.dumps(coco))
    read_index(file, data_dir / "images" / split).save(file)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A data folder with everything odd in both splits, a tiny model of each family, and the number of unusable
    records in a split.
    """
    folder = tmp_path_factory.mktemp("odd")
    (folder / "data").mkdir()
    for split in ("train2017", "val2017"):
        bad = write_split(folder / "data", split, save_photos(folder / "data" / "images" / split))
    tiny.detr(folder / "detr", backbone="test_resnet")
    tiny.dfine(folder / "dfine", backbone="test_efficientnet", channels=(32, 48, 64))
    return folder, bad


def config(folder, family: str, **changes):
    settings = {
        "data_dir": folder / "data",
        "output_dir": folder / "out",
        "image_size": 64,
        "batch_size": 3,
        "epochs": 1,
        "num_workers": 0,
        "augment": "full",
        "overwrite": True,
        "classes": NAMES,
        "ema": 0.0,
        "precision": "fp32",
    }
    return load_config(
        "demo", model=str(folder / family), class_head="reset", run_name=family, **{**settings, **changes}
    )


def test_what_cannot_be_used_is_counted(odd):
    """A record that vanishes without a word is one that nobody mends."""
    folder, bad = odd
    index = open_split(config(folder, "detr"), "train2017")
    assert set(index.file_names) == GOOD | {"empty of objects.jpg", "crowded.jpg", "zero.jpg", "half.jpg"}
    assert len(index.dropped) == bad + 1, "the missing photo too; its annotations go with it"
    for why in (
        "no area",
        "outside",
        "not four finite",
        "twice as large",
        "unknown category 99",
        "there twice",
        "no photo 999",
        "no photo [1]",
        "the photo is missing",
        "is no number",
    ):
        assert any(why in row["why"] for row in index.dropped), why
    assert len(index.bbox) == 2 * (len(GOOD) + 2) + 10_000


@pytest.mark.parametrize("family", ["detr", "dfine"])
def test_odd_photos_go_all_the_way(odd, family):
    """Every kind of photo through augmentation, collation, a training of an epoch and the evaluation; D-FINE would need
    gigabytes for
    the denoising queries of 10,000 boxes."""
    folder, _ = odd
    cfg = config(folder, family)
    run = train(cfg)
    assert max(len(label["boxes"]) for batch in train_loader(run, 0) for label in batch["labels"]) == 30
    assert run.step == 5 and np.isfinite(pd.DataFrame(run.losses)).all().all()
    notes = " ".join(run.notes)
    assert "could not be read" in notes and "1 photos have more than 30 objects" in notes
    index = open_split(cfg, "val2017")
    detections, metrics = evaluate_checkpoint(cfg, index, "best")
    name_of = dict(zip(index.image_ids.tolist(), index.file_names.tolist()))
    assert {name_of[row["image_id"]] for row in detections} == GOOD | {"empty of objects.jpg", "crowded.jpg"}
    assert np.isfinite([row["bbox"] for row in detections]).all()
    assert metrics["per_class"]["class"].tolist() == NAMES and 0 <= metrics["stats"]["mAP"] <= 1
    events = EventAccumulator(str(cfg.output_dir / "runs" / cfg.run_name))
    events.Reload()
    written = [path.name for path in cfg.output_dir.rglob("*")] + [
        tag.replace("/", "") for tag in events.Tags()["scalars"]
    ]
    assert len(written) > 30 and all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in written), (
        "nothing of the data's names is in them"
    )


@pytest.mark.parametrize("family", ["detr", "dfine"])
def test_data_set_without_one_single_box(odd, family, tmp_path):
    """Nothing to learn but "no object": no division by zero, and no average precision that looks like one."""
    folder, _ = odd
    for split in ("train2017", "val2017"):
        photos = tmp_path / "images" / split
        photos.mkdir(parents=True)
        for name in ("a.jpg", "b.jpg"):
            Image.fromarray(np.random.default_rng(len(name)).integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(
                photos / name
            )
        images = [{"id": k, "file_name": name, "width": 40, "height": 30} for k, name in enumerate(("a.jpg", "b.jpg"))]
        coco = {
            "images": images,
            "annotations": [],
            "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, 1)],
        }
        (tmp_path / "annotations").mkdir(exist_ok=True)
        save_split(tmp_path, split, coco)
    run = train(config(folder, family, data_dir=tmp_path, output_dir=tmp_path / "out"))
    assert run.step == 1 and math.isfinite(run.losses[0]["loss"]) and run.epochs[0]["mAP"] == -1


@pytest.mark.parametrize("split, word", [("train2017", "training"), ("val2017", "validation")])
def test_empty_split_is_refused(odd, split, word, tmp_path):
    """Else the training would fail, or run for a night without one validation."""
    folder, _ = odd
    (tmp_path / "images").symlink_to(folder / "data" / "images")
    for name in ("train2017", "val2017"):
        coco = json.loads((folder / "data" / "annotations" / f"instances_{name}.json").read_text())
        (tmp_path / "annotations").mkdir(exist_ok=True)
        save_split(tmp_path, name, {**coco, "images": []} if name == split else coco)
    with pytest.raises(UserError, match=f"The {word} split .* holds no usable photo"):
        build(config(folder, "detr", data_dir=tmp_path))
