"""A small, complete and consistent tree of artifacts, made without a model, to test the report and the grading on."""

from __future__ import annotations

import gzip
from pathlib import Path

import nbformat
import numpy as np
import orjson
import pandas as pd
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from torch.utils.tensorboard import SummaryWriter

from helpers.config import Config, load_config
from helpers.download.coco import read_index
from helpers.error_analysis.tide import TYPES
from helpers.evaluate.checkpoint import record_metrics
from helpers.files import notebooks, write_atomic, write_json
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth, save_detections
from helpers.synthetic_data.arms import synthetic_dir
from helpers.train import checkpoints
from helpers.train.run_folder import environment

HOSTILE = "<script>alert(1)</script>"
CLASSES = ("person", HOSTILE, "traffic light")
PHOTOS = 9


def make(root: Path, **overrides) -> Config:
    """The tree under ``root``; its config. Photo 3 is a portrait, the second class has a hostile name."""
    cfg = load_config(
        "demo", data_dir=root / "data", output_dir=root / "artifacts", classes=list(CLASSES), epochs=2, **overrides
    )
    _dataset(cfg)
    _run(cfg)
    _evaluation(cfg)
    _errors(cfg)
    _experiment(cfg)
    _notebooks(cfg)
    return cfg


def picture(path: Path, size: tuple[int, int] = (120, 80), seed: int = 0) -> Path:
    """A JPEG or PNG with something on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(colours).resize(size).save(path)
    return path


def _dataset(cfg: Config) -> None:
    manifest = {
        "source": "demo",
        "seed": 42,
        "classes": list(CLASSES),
        "category_ids": [1, 2, 10],
        "request": {},
        "splits": {},
    }
    random = np.random.default_rng(0)
    for split, first in (("train2017", 1), ("val2017", 101)):
        images, annotations = [], []
        for image_id in range(first, first + PHOTOS):
            width, height = (240, 320) if image_id % 100 == 3 else (320, 240)
            path = cfg.image_dir(split) / f"{image_id:012d}.jpg"
            picture(path, (width, height), seed=image_id)
            with Image.open(path) as opened:
                draw = ImageDraw.Draw(opened)
                images.append({"id": image_id, "file_name": path.name, "width": width, "height": height})
                for k, category in enumerate((1, 2, 10)):
                    x, y, w, h = (int(v) for v in (*random.integers(0, 120, 2), *random.integers(30, 90, 2)))
                    draw.rectangle((x, y, x + w, y + h), fill=(60 * k, 90, 200))
                    annotations.append(
                        {
                            "id": image_id * 10 + k,
                            "image_id": image_id,
                            "category_id": category,
                            "bbox": [x, y, w, h],
                            "area": w * h,
                            "iscrowd": int(image_id == first and k == 2),
                        }
                    )
                opened.save(path)
        categories = [{"id": c, "name": name} for c, name in zip((1, 2, 10), CLASSES)]
        write_json(cfg.annotation_file(split), {"images": images, "annotations": annotations, "categories": categories})
        read_index(cfg.annotation_file(split), cfg.image_dir(split)).save(cfg.annotation_file(split))
        manifest["splits"][split] = {"images": len(images), "annotations": len(annotations), "crowd": 1, "dropped": []}
    write_json(cfg.data_dir / "manifest.json", manifest)


def _run(cfg: Config) -> None:
    run = cfg.run_dir
    write_json(run / "config.json", cfg.as_json())
    write_json(run / "environment.json", environment())
    losses = pd.DataFrame(
        {"step": np.arange(1, 9), "epoch": [1] * 4 + [2] * 4, "lr": 1e-4, "loss": np.linspace(3, 1, 8), "loss_ce": 0.5}
    )
    write_atomic(run / "losses.csv", losses.to_csv(index=False))
    means = losses.groupby("epoch")["loss"].mean()
    epochs = pd.DataFrame(
        {
            "epoch": [1, 2],
            "step": [4, 8],
            "train_loss": means.to_numpy(),
            "val_loss": [2.5, 2.0],
            "mAP": [0.1, 0.2],
            "mAP50": [0.2, 0.4],
            "seconds": [10.0, 11.0],
            "photos_per_s": [0.9, 0.8],
        }
    )
    write_atomic(run / "epochs.csv", epochs.to_csv(index=False))
    picture(run / "loss_curves.png", (600, 300), seed=1)
    for name in ("checkpoint_best", "checkpoint_last"):
        checkpoints.write_folder(run / name, _fill_checkpoint)
    with SummaryWriter(cfg.output_dir / "runs" / cfg.run_name) as board:
        board.add_scalar("train/loss", 1.0, 1)
    folder = cfg.output_dir / "profiler" / cfg.run_name
    breakdown = pd.DataFrame(
        {"range": ["data", "forward", "backward"], "ms": [10.0, 30.0, 60.0], "share": [0.1, 0.3, 0.6]}
    )
    write_atomic(folder / "breakdown.csv", breakdown.to_csv(index=False))
    picture(folder / "breakdown.png", seed=2)
    write_atomic(
        folder / "trace.json.gz", gzip.compress(orjson.dumps({"traceEvents": [{"name": "forward", "ph": "X"}]}))
    )
    write_json(folder / "summary.json", {"sentence": "The bottleneck is backward: 60 of 100 ms.", "photos_per_s": 2.5})
    write_atomic(
        cfg.output_dir / "data_sanity" / "class_counts.csv",
        "class,train2017,val2017\n" + "".join(f"{name},9,9\n" for name in CLASSES),
    )
    picture(cfg.output_dir / "data_sanity" / "class_counts.png", seed=3)


def _fill_checkpoint(folder: Path) -> None:
    write_json(
        folder / "config.json", {"model_type": "detr", "id2label": {str(k): name for k, name in enumerate(CLASSES)}}
    )
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "DetrImageProcessor"})
    save_file({"weights": np.arange(6, dtype=np.float32)}, folder / "model.safetensors")


def _evaluation(cfg: Config) -> None:
    index = open_split(cfg, "val2017")
    truth = ground_truth(index)
    random = np.random.default_rng(1)
    for checkpoint, spread, file in (
        ("start", 25, "detections_val2017_start.json"),
        ("best", 4, "detections_val2017.json"),
    ):
        found = []
        for record in truth["annotations"]:
            for score in (0.9, 0.3):
                box = np.array(record["bbox"]) + random.normal(0, spread if score == 0.9 else 30, 4)
                box[2:] = box[2:].clip(5)
                found.append(
                    {
                        "image_id": record["image_id"],
                        "category_id": record["category_id"],
                        "bbox": box.tolist(),
                        "score": score - float(random.uniform(0, 0.2)),
                    }
                )
        save_detections(cfg.run_dir / file, found)
        metrics = coco_metrics(truth, found)
        record_metrics(cfg.output_dir / "metrics.csv", cfg.run_name, checkpoint, metrics["stats"])
    write_json(
        cfg.run_dir / "metrics.json",
        {
            "run": cfg.run_name,
            "checkpoint": "best",
            "stats": metrics["stats"],
            "intervals": {"best": {"mAP": [0.5, 0.7], "mAP50": None}},
        },
    )
    write_atomic(cfg.run_dir / "per_class.csv", metrics["per_class"].to_csv(index=False))
    picture(cfg.run_dir / "pr_curves.png", seed=4)
    prices = {"run": [cfg.run_name, "other"], "mAP": [0.5, 0.4], "million parameters": [5.3, 41.5]}
    prices |= {"ms a photo": [30.0, 200.0], "worth its time": ["yes", "no"]}
    write_atomic(cfg.run_dir / "prices.csv", pd.DataFrame(prices).to_csv(index=False))
    picture(cfg.run_dir / "prices.png", seed=6)
    for k in range(3):
        picture(cfg.output_dir / "visualizations" / f"{k}.jpg", seed=5 + k)


def _errors(cfg: Config) -> None:
    folder = cfg.output_dir / "error_analysis"
    rows = [
        {
            "image_id": 101 + k,
            "type": name,
            "class": CLASSES[1],
            "predicted_class": CLASSES[0],
            "iou": 0.2,
            "score": np.nan if name == "missed" else 0.6,
            "area": 100.0,
        }
        for k, name in enumerate(TYPES)
    ]
    for name in ("errors", "errors_at_threshold"):
        write_atomic(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False))
    photos = pd.DataFrame(
        {"image_id": [101, 102, 103], "objects": 3, "correct": [3, 2, 1], "false": [0, 1, 2], "missed": [0, 1, 2]}
    )
    write_atomic(folder / "photos.csv", photos.to_csv(index=False))
    write_json(
        folder / "tide.json",
        {
            "delta_ap": {short: 0.01 * k for k, short in enumerate(TYPES.values())},
            "counts": dict.fromkeys(TYPES.values(), 1),
        },
    )
    for k, name in enumerate(TYPES):
        picture(folder / name / "01.jpg", seed=20 + k)
    picture(folder / "error_types.png", seed=30)


def _experiment(cfg: Config) -> None:
    root = synthetic_dir(cfg)
    for k in range(2):
        picture(root / "images" / "train2017" / f"synthetic_{k}.jpg", seed=40 + k)
    write_json(root / "annotations" / "instances_train2017.json", {"images": [{"id": 1}, {"id": 2}]})
    write_json(root / "manifest.json", {"kind": "copy-paste", "photos": 2})
    rows = [
        {"arm": arm, "share": 1.0, "seed": 0, "run": f"demo-{arm}-100-s0", "steps": 12, "photos": 96, "real_photos": 9}
        | dict.fromkeys(("mAP", "mAP50"), 0.1 * k)
        for k, arm in enumerate(("real", "offline", "on_the_fly"))
    ]
    write_atomic(cfg.output_dir / "synthetic_data" / "arms.csv", pd.DataFrame(rows).to_csv(index=False))
    picture(cfg.output_dir / "synthetic_data" / "effects.png", seed=50)


def _notebooks(cfg: Config) -> None:
    times = {}
    for name in (path.stem for path in notebooks()):
        cells = [
            nbformat.v4.new_markdown_cell(
                f"# What does {name} do?\n\nA table:\n\n| a | b |\n|---|---|\n| 1 | {HOSTILE} |"
            ),
            nbformat.v4.new_code_cell(
                "for i in range(3):\n    print(i)",
                execution_count=1,
                outputs=[nbformat.v4.new_output("stream", text=f"0\n1\n2 {HOSTILE}\n")],
            ),
            nbformat.v4.new_code_cell("table", execution_count=2, outputs=[_table_output()]),
        ]
        notebook = nbformat.v4.new_notebook(
            cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        )
        write_atomic(cfg.output_dir / "notebooks" / f"{name}.ipynb", nbformat.writes(notebook))
        times[name] = {"seconds": 12.5, "succeeded": True, "finished": "2026-01-01T10:00:00+00:00"}
    write_json(cfg.output_dir / "notebooks" / "timings.json", times)


def _table_output() -> nbformat.NotebookNode:
    table = pd.DataFrame({"class": list(CLASSES), "AP": [0.1, 0.2, 0.3]})
    return nbformat.v4.new_output(
        "execute_result", {"text/html": table.to_html(), "text/plain": str(table)}, execution_count=2
    )
