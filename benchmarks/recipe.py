"""What each part of the recipe is worth: the same data and the same number of steps in every row, one change at a time.

    python benchmarks/recipe.py scenes                              # made-up scenes
    python benchmarks/recipe.py photos --coco FOLDER,FOLDER         # COCO folders
    python benchmarks/recipe.py scenes --only no_ema,no_augment     # these rows, beside those that are there

A row is a training by the project's own loop from the checkpoint in ``data/pretrained`` (preset ``demo``), measured on
the validation split after its last step. A row that is there is not trained again, and one that was interrupted goes on
from its last epoch. The tables are in ``docs/recipe.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import orjson
import torch

from helpers.cli import command
from helpers.config import Config, load_config
from helpers.download.prepare import prepare
from helpers.engine import eval_loader, predict
from helpers.evaluate.checkpoint import load_checkpoint
from helpers.files import ROOT, UserError, write_atomic, write_json
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth
from helpers.train.training import train

EPOCHS = {"scenes": 1, "photos": 3}
ROWS = {  # name: what it is, what differs from the first training
    "start": ("untouched checkpoint, head remapped", {}),
    "recipe": (
        "**the recipe**: head remapped, grouped learning rates, EMA, light augmentation, four stages frozen",
        {},
    ),
    "other_seed": ("the same with another seed: what is chance", {"seed": 43}),
    "fresh_head": ("fresh head, grouped learning rates", {"class_head": "reset"}),
    "fresh_head_low": (
        "fresh head, one learning rate of 1e-5",
        {"class_head": "reset", "lr": 1e-5, "lr_backbone": 1e-5},
    ),
    "earlier": (
        "the earlier submission: fresh head, one learning rate of 1e-5, no auxiliary losses, no EMA",
        {"class_head": "reset", "lr": 1e-5, "lr_backbone": 1e-5, "auxiliary_loss": False, "ema": 0.0},
    ),
    "no_auxiliary": ("without auxiliary losses", {"auxiliary_loss": False}),
    "no_ema": ("without EMA", {"ema": 0.0}),
    "no_augment": ("without augmentation", {"augment": "none"}),
    "full_augment": ("with `full` augmentation", {"augment": "full"}),
    "strong_augment": ("with `strong` augmentation", {"augment": "strong"}),
    "frozen_two": ("stem and first stage frozen", {"freeze_stages": 2}),
    "frozen_none": ("nothing frozen", {"freeze_stages": 0}),
    "larger": ("photos of 320 pixels", {"image_size": 320}),
    "half": ("half of the photos, each seen twice as often", {}),
}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(EPOCHS))
    parser.add_argument("--coco", help="COCO folders, separated by commas, for photos")
    parser.add_argument("--only", help="names of rows, separated by commas")
    parser.add_argument("--epochs", type=int, help="of the whole training split, for every row alike")
    options = parser.parse_args(argv)
    names = options.only.split(",") if options.only else list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        raise UserError(f"There is no row {unknown[0]!r}; there are {', '.join(ROWS)}.")
    base = data_of(options.data, options.coco)
    for name in names:
        file = base.output_dir / f"{name}.json"
        if not file.exists():
            write_json(file, measure(base, name, options.epochs or EPOCHS[options.data]))
        print(name, orjson.loads(file.read_bytes()), flush=True)
    write_table(base, options.data)
    return 0


def data_of(data: str, roots: str | None, share: int = 1) -> Config:
    """The demo preset's config on scenes or on COCO folders, with its data in place; ``share`` 2 takes half of the
    photos.
    """
    if data == "photos" and not roots:
        raise UserError("photos needs --coco FOLDER[,FOLDER...].")
    where = {"data_source": "folder", "coco_root": roots} if data == "photos" else {}
    cfg = load_config(
        "demo", **where, data_dir=f"data/recipe/{data}", output_dir=f"artifacts/recipe/{data}", profile=False
    )
    cfg = cfg.with_(
        max_train_images=None if data == "photos" else cfg.max_train_images,
        max_val_images=None if data == "photos" else 300,
    )
    prepare(cfg)
    if share > 1:
        cfg = cfg.with_(max_train_images=len(open_split(cfg, "train2017")) // share, data_dir=f"{cfg.data_dir}-half")
        prepare(cfg)
    return cfg


def measure(base: Config, name: str, epochs: int) -> dict:
    """AP, AP50, steps and minutes of a row."""
    began = time.perf_counter()
    if name == "start":
        index, detector = (
            open_split(base, "val2017"),
            load_checkpoint(base, open_split(base, "val2017").classes, "start"),
        )
        loader = eval_loader(index, detector.preprocess, base.batch_size, base.num_workers)
        detections, _ = predict(detector.model, detector.processor, detector.preprocess, loader, index.category_ids)
        stats = coco_metrics(ground_truth(index), detections)["stats"]
        return {"mAP": stats["mAP"], "mAP50": stats["mAP50"], "steps": 0, "minutes": (time.perf_counter() - began) / 60}
    if name == "half":
        base = data_of(base.data_dir.name, ",".join(map(str, base.coco_root)) or None, share=2)
        epochs *= 2
    run = train(base.with_(run_name=name, epochs=epochs, overwrite=False, resume="auto", **ROWS[name][1]))
    return {
        "mAP": run.epochs[-1]["mAP"],
        "mAP50": run.epochs[-1]["mAP50"],
        "steps": run.step,
        "minutes": (time.perf_counter() - began) / 60,
    }


def write_table(base: Config, data: str) -> None:
    """Put the rows that are there into this data set's part of ``docs/recipe.md``."""
    found = {
        name: orjson.loads((base.output_dir / f"{name}.json").read_bytes())
        for name in ROWS
        if (base.output_dir / f"{name}.json").exists()
    }
    lines = ["| | AP | AP50 | steps | minutes |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {ROWS[name][0]} | {row['mAP']:.3f} | {row['mAP50']:.3f} | {row['steps']} | {row['minutes']:.1f} |"
        for name, row in found.items()
    ]
    photos = {split: len(open_split(base, split)) for split in ("train2017", "val2017")}
    lines += [
        "",
        f"{photos['train2017']} {data} to learn from, {photos['val2017']} to test with; one seed; "
        f"{platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads.",
    ]
    page = ROOT / "docs" / "recipe.md"
    text = page.read_text() if page.exists() else "# What each part of the recipe is worth\n"
    start, end = f"<!-- {data}: written by benchmarks/recipe.py -->\n", f"<!-- end of {data} -->\n"
    if start not in text:
        text += f"\n## On {data}: `python benchmarks/recipe.py {data}`\n\n{start}{end}"
    write_atomic(page, text[: text.index(start) + len(start)] + "\n".join(lines) + "\n" + text[text.index(end) :])


if __name__ == "__main__":
    command(main)
