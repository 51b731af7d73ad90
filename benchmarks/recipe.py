"""What each part of the recipe is worth: the same data and the same number of steps in every row, one change at a time.

    python benchmarks/recipe.py scenes                              # made-up scenes
    python benchmarks/recipe.py first_run                           # the demo's size, scenes, steps and rates
    python benchmarks/recipe.py photos --coco FOLDER,FOLDER         # COCO folders
    python benchmarks/recipe.py detector --coco FOLDER,FOLDER --model FOLDER   # from a detector that knows COCO
    python benchmarks/recipe.py scenes --only no_ema,no_augment     # these rows, beside those that are there

A row is a training by the project's own loop, measured on the validation split after its last step: from the checkpoint
in ``data/pretrained`` (preset ``demo``), or from ``--model`` (preset ``photos``), where each row is compared with the
untouched detector, whole head, at the row's own image size, by a paired bootstrap over the photos. A row that is there
is not trained again, and one that was interrupted goes on from its last epoch. The tables are in ``docs/recipe.md``.
"""

from __future__ import annotations

from helpers.threads import wait_as_the_machine_allows

if __name__ == "__main__":
    wait_as_the_machine_allows()  # before PyTorch is loaded

import argparse
import os
import platform
import time

import orjson
import torch

from helpers.cli import command
from helpers.config import Config, load_config
from helpers.download.prepare import prepare
from helpers.evaluate.checkpoint import evaluate_checkpoint
from helpers.evaluate.comparison import assess, difference
from helpers.files import ROOT, UserError, write_atomic, write_json
from helpers.index import open_split
from helpers.metrics import ground_truth
from helpers.train.training import train

EPOCHS = {"scenes": 1, "photos": 3, "detector": 1, "first_run": 2}
# Where the rows on scenes and photos stand; the preset ``demo`` went on to what ``first_run`` found
TABLE = {"max_train_images": 1600, "image_size": 256, "lr": 4e-4, "lr_backbone": 5e-5}
ROWS = {  # name: what it is, what differs from the first training
    "start": ("untouched checkpoint, with its whole head", {}),
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

OWN_SIZE = {"image_size": 320}  # of the detector that was measured
DETECTOR_ROWS = {  # likewise, for a detector that knows COCO; the recipe is the preset ``photos``
    "start_own": ("untouched, at its own 320 pixels", OWN_SIZE),
    "start": ("untouched, at 416 pixels", {}),
    "recipe": ("**the recipe**, at 416 pixels", {}),
    "other_seed": ("the same with another seed: what is chance", {"seed": 43}),
    "own_size": ("at its own 320 pixels", OWN_SIZE),
    "own_size_low": (
        "at its own 320 pixels, a tenth of the learning rates",
        OWN_SIZE | {"lr": 1e-5, "lr_backbone": 2e-6},
    ),
    "low": ("a tenth of the learning rates", {"lr": 1e-5, "lr_backbone": 2e-6}),
    "high": ("four times the learning rates", {"lr": 4e-4, "lr_backbone": 8e-5}),
    "auxiliary": ("with auxiliary losses, through heads that the checkpoint never trained", {"auxiliary_loss": True}),
    "no_ema": ("without EMA", {"ema": 0.0}),
    "full_augment": ("with `full` augmentation", {"augment": "full"}),
    "frozen_none": ("nothing frozen", {"freeze_stages": 0}),
    "fresh_head": ("fresh head", {"class_head": "reset"}),
    "earlier": (
        "the earlier submission: fresh head, one learning rate of 1e-5, no EMA",
        {"class_head": "reset", "lr": 1e-5, "lr_backbone": 1e-5, "ema": 0.0},
    ),
}

ONCE = {"max_train_images": 800, "epochs": 1}  # a hundred steps, as the preset's 400 scenes twice
FIRST_RUN_ROWS = {  # what differs from the preset ``demo``
    "start_256": ("untouched, at 256 pixels", {"image_size": 256}),
    "start": ("untouched, at 320 pixels", {}),
    "recipe": ("**the preset**: 320 pixels, 400 scenes twice, lr 2e-4", {}),
    "other_seed": ("the same with another seed", {"seed": 43}),
    "longer": ("256 pixels, 1,600 scenes twice, lr 4e-4", TABLE),
    "shorter": ("256 pixels, 1,600 scenes once, lr 4e-4", TABLE | {"epochs": 1}),
    "once": ("320 pixels, 800 scenes once, lr 2e-4", ONCE),
    "once_high": ("320 pixels, 800 scenes once, lr 4e-4", ONCE | {"lr": 4e-4, "lr_backbone": 5e-5}),
    "once_low": ("320 pixels, 800 scenes once, lr 1e-4", ONCE | {"lr": 1e-4, "lr_backbone": 1.25e-5}),
    "once_352": ("352 pixels, 800 scenes once, lr 2e-4", ONCE | {"image_size": 352}),
    "once_384": ("384 pixels, 800 scenes once, lr 4e-4", ONCE | {"image_size": 384, "lr": 4e-4, "lr_backbone": 5e-5}),
}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(EPOCHS))
    parser.add_argument("--coco", help="COCO folders, separated by commas, for photos")
    parser.add_argument("--model", help="folder of a detector that knows COCO, for detector")
    parser.add_argument("--only", help="names of rows, separated by commas")
    parser.add_argument("--epochs", type=int, help="of the whole training split, for every row alike")
    options = parser.parse_args(argv)
    rows = {"detector": DETECTOR_ROWS, "first_run": FIRST_RUN_ROWS}.get(options.data, ROWS)
    names = options.only.split(",") if options.only else list(rows)
    if unknown := [name for name in names if name not in rows]:
        raise UserError(f"There is no row {unknown[0]!r}; there are {', '.join(rows)}.")
    base = detector_of(options.coco, options.model) if rows is DETECTOR_ROWS else data_of(options.data, options.coco)
    one_row = fine_tune if rows is DETECTOR_ROWS else measure
    for name in names:
        file = base.output_dir / f"{name}.json"
        if not file.exists():
            write_json(file, one_row(base, rows, name, options.epochs or EPOCHS[options.data]))
        print(name, orjson.loads(file.read_bytes()), flush=True)
    write_table(base, options.data, rows)
    return 0


def detector_of(roots: str | None, model: str | None) -> Config:
    """The preset ``photos`` from ``model``, with its data in place."""
    if not roots or not model:
        raise UserError("detector needs --coco FOLDER[,FOLDER...] and --model FOLDER.")
    where = {"data_dir": "data/recipe/detector", "output_dir": "artifacts/recipe/detector"}
    cfg = load_config("photos", coco_root=roots, model=model, num_workers=1, **where)
    prepare(cfg)
    return cfg


def fine_tune(base: Config, rows: dict, name: str, epochs: int) -> dict:
    """AP, AP50, steps and minutes of a row, and how far AP is from the untouched detector's at its image size."""
    began = time.perf_counter()
    cfg = base.with_(run_name=name, epochs=epochs, overwrite=False, resume="auto", **rows[name][1])
    val, steps = open_split(cfg, "val2017"), 0
    if not name.startswith("start"):
        steps = train(cfg).step
    checkpoint = "last" if steps else "start"
    found, metrics = evaluate_checkpoint(cfg, val, checkpoint)
    row = {"mAP": metrics["stats"]["mAP"], "mAP50": metrics["stats"]["mAP50"], "steps": steps}
    if steps:
        start, _ = evaluate_checkpoint(cfg, val, "start")
        gt = ground_truth(val)
        apart = difference(assess("start", gt, start), assess(name, gt, found), "mAP")
        row |= {"gain": apart["value"], "interval": list(apart["interval"])}
    return row | {"minutes": (time.perf_counter() - began) / 60}


def data_of(data: str, roots: str | None, share: int = 1) -> Config:
    """The demo preset's config on scenes or on COCO folders, at the size and the rates of their table, with its data in
    place; ``share`` 2 takes half of the photos.
    """
    if data == "photos" and not roots:
        raise UserError("photos needs --coco FOLDER[,FOLDER...].")
    where = {"data_source": "folder", "coco_root": roots} if data == "photos" else {}
    where |= {"data_dir": f"data/recipe/{data}", "output_dir": f"artifacts/recipe/{data}", "profile": False}
    cfg = load_config("demo", **({} if data == "first_run" else TABLE), **where)
    cfg = cfg.with_(
        max_train_images=None if data == "photos" else cfg.max_train_images,
        max_val_images=None if data == "photos" else 300,
    )
    prepare(cfg)
    if share > 1:
        cfg = cfg.with_(max_train_images=len(open_split(cfg, "train2017")) // share, data_dir=f"{cfg.data_dir}-half")
        prepare(cfg)
    return cfg


def measure(base: Config, rows: dict, name: str, epochs: int) -> dict:
    """AP, AP50, steps and minutes of a row."""
    began = time.perf_counter()
    if name == "half":
        base, epochs = data_of(base.data_dir.name, ",".join(map(str, base.coco_root)) or None, share=2), 2 * epochs
    values = {"run_name": name, "epochs": epochs, "overwrite": False, "resume": "auto", **rows[name][1]}
    if values.get("max_train_images", base.max_train_images) != base.max_train_images:
        values["data_dir"] = f"{base.data_dir}-{values['max_train_images']}"
    base = base.with_(**values)
    prepare(base)
    if name.startswith("start"):
        stats = evaluate_checkpoint(base, open_split(base, "val2017"), "start")[1]["stats"]
        return {"mAP": stats["mAP"], "mAP50": stats["mAP50"], "steps": 0, "minutes": (time.perf_counter() - began) / 60}
    run = train(base)
    return {
        "mAP": run.epochs[-1]["mAP"],
        "mAP50": run.epochs[-1]["mAP50"],
        "steps": run.step,
        "minutes": (time.perf_counter() - began) / 60,
    }


def write_table(base: Config, data: str, rows: dict) -> None:
    """Put those of ``rows`` that are there into this data set's part of ``docs/recipe.md``."""
    found = {
        name: orjson.loads((base.output_dir / f"{name}.json").read_bytes())
        for name in rows
        if (base.output_dir / f"{name}.json").exists()
    }
    gain = " | against the start" if rows is DETECTOR_ROWS else ""
    lines = [f"| | AP | AP50{gain} | steps | minutes |", "| --- " * (6 if gain else 5) + "|"]
    for name, row in found.items():
        apart = ""
        if gain:
            low, high = row.get("interval", (0, 0))
            apart = f" | {row['gain']:+.4f} [{low:+.4f}, {high:+.4f}]" if "gain" in row else " | "
        digits = 4 if gain else 3
        numbers = f"{row['mAP']:.{digits}f} | {row['mAP50']:.{digits}f}{apart} | {row['steps']} | {row['minutes']:.1f}"
        lines.append(f"| {rows[name][0]} | {numbers} |")
    photos = {split: len(open_split(base, split)) for split in ("train2017", "val2017")}
    what = "photos" if base.data_source == "folder" else "scenes"
    lines += [
        "",
        f"{photos['train2017']} {what} to learn from, {photos['val2017']} to test with; one seed; "
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
