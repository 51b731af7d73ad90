"""Errors of 05 to look at: ``python benchmarks/error_sheets.py --coco FOLDER --model FOLDER [--size 416]``.

The untouched detector is evaluated on the photos of val2017 that notebook 01 takes. Of each type of error that 05 shows
some are drawn by the seed, and the first of the annotations that it suspects; docs/error_analysis.md says what a reader
saw in them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from machine import header

from helpers.cli import command
from helpers.config import load_config
from helpers.download.prepare import prepare
from helpers.error_analysis import sentences
from helpers.error_analysis.analysis import analyse, with_rivals
from helpers.error_analysis.crops import error_crop, in_words
from helpers.error_analysis.tide import TYPES
from helpers.evaluate.checkpoint import evaluate_checkpoint
from helpers.families.loading import quiet
from helpers.files import save_figure
from helpers.index import CocoIndex, open_split
from helpers.metrics import ground_truth
from helpers.pictures.grids import sheet, tile

SENTENCES = ("at_threshold", "by_type", "scores", "by_trait", "outcomes", "small_objects", "pairs", "confident")
SIDE, COLUMNS, A_SHEET = 380, 4, 8


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco", required=True, help="the COCO folder whose val2017 is looked at")
    parser.add_argument("--model", required=True, help="the detector's folder")
    parser.add_argument("--preset", default="photos", help="whose classes are asked for")
    parser.add_argument("--out", type=Path, default=Path("artifacts/error_sheets"))
    for name, value in (("size", 416), ("each", 40), ("candidates", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(argv)
    quiet()
    print(header("torch", "transformers", "hotcoco"), end="\n\n")
    settings = {"data_dir": options.out / "data", "output_dir": options.out / "run", "image_size": options.size}
    settings |= {"coco_root": options.coco, "model": options.model, "num_workers": 0}
    cfg = load_config(options.preset, checkpoint="start", **settings)
    prepare(cfg)
    index = open_split(cfg, "val2017")
    detections, metrics = evaluate_checkpoint(cfg, index, "start")
    analysis = analyse(ground_truth(index), detections)
    print(f"{len(index)} photos, mAP {metrics['stats']['mAP']:.4f}\n\n{analysis.counts()}\n")
    print(
        "\n\n".join(getattr(sentences, name)(analysis) for name in (*SENTENCES, "photos", "candidates", "conclusions"))
    )
    parts = {kind: drawn(analysis.shown, kind, options.each, options.seed) for kind in TYPES}
    parts["label_candidates"] = analysis.candidates.head(options.candidates)
    for name, rows in parts.items():
        draw_sheets(index, with_rivals(analysis.verdicts, rows), options.out / name)
    print(f"\nSheets: {options.out}")
    return 0


def drawn(errors: pd.DataFrame, kind: str, most: int, seed: int) -> pd.DataFrame:
    """``most`` errors of a type (all of them where there are fewer), chosen by the seed, in the table's order."""
    rows = errors[errors["type"] == kind]
    return rows.sample(min(most, len(rows)), random_state=seed).sort_index()


def draw_sheets(index: CocoIndex, errors: pd.DataFrame, stem: Path) -> None:
    """``stem``_1.png and so on, eight numbered crops each."""
    tiles = []
    for k, row in enumerate(errors.to_dict("records"), 1):
        text = f"{k}. {row.get('question', '')} {in_words(row)}\nphoto {row['image_id']}"
        tiles.append(tile(error_crop(index, row, SIDE), text, SIDE))
    for start in range(0, len(tiles), A_SHEET):
        save_figure(sheet(tiles[start : start + A_SHEET], COLUMNS), Path(f"{stem}_{start // A_SHEET + 1}.png"))


if __name__ == "__main__":
    command(main)
