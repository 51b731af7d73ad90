"""The photos that the report carries for browsing predictions without a kernel: a stated selection, bounded in size."""

from pathlib import Path

import numpy as np
from PIL import Image

from helpers.config import Config
from helpers.dataset import read_image
from helpers.files import UserError, read_table, require
from helpers.grading.readers import neighbour, read_json
from helpers.index import CocoIndex, open_split
from helpers.metrics import Detections, load_detections
from helpers.pictures.embed import jpeg

PHOTOS = 24
FLOOR = 0.05  # predictions with a lower score are left out
MOST = 100  # predictions of a photo


def gallery(cfg: Config, side: int = 640) -> dict:
    """What ``templates/browse.js`` shows: classes (names), photos, rule (a sentence), floor and threshold (scores).

    A photo has its ``picture`` (a JPEG data URI, at most ``side`` pixels), ``width`` and ``height`` of the original,
    ``truth`` rows ``[x, y, w, h, class index, crowd]`` and ``predicted`` rows ``[x, y, w, h, class index, score]``,
    most certain first. Raises UserError when 01 or 04 has not run, KeyError, TypeError or ValueError for a record that
    is no detection.
    """
    found = Detections.of(load_detections(require(cfg.run_dir / "detections_val2017.json", "04_evaluate")))
    if not (np.isfinite(found.score).all() and np.isfinite(found.bbox).all()):
        raise ValueError("detections_val2017.json holds a score or a box that is no number")
    index = open_split(cfg, "val2017")
    chosen, rule = _choose(index, cfg.output_dir / "error_analysis" / "photos.csv")
    photos = [_photo(index, i, why, found, side) for i, why in chosen.items()]
    photos = [photo for photo in photos if photo]
    if not photos:
        raise UserError("No photo of the validation split can be read: see notebook 02_sanity.")
    best = neighbour(lambda: float(read_json(cfg.run_dir / "metrics.json")["score_threshold"]))
    threshold = 0.5 if best is None else round(min(max(best, FLOOR), 0.95), 2)  # 04's, where it is within the slider
    return {"classes": list(index.classes), "photos": photos, "rule": rule, "floor": FLOOR, "threshold": threshold}


def _choose(index: CocoIndex, photos_file: Path) -> tuple[dict[int, str], str]:
    """Positions of the photos to carry, each with a remark, and the rule in words."""
    position = {int(image_id): i for i, image_id in enumerate(index.image_ids)}
    chosen: dict[int, str] = {}
    table = neighbour(lambda: read_table(photos_file)[["image_id", "false", "missed"]].astype(int))
    if table is not None:  # else 05 has not run: a regular selection alone
        table = table[table["image_id"].isin(position.keys()) & (table["false"] + table["missed"] > 0)]
        for image_id, false, missed in table[::-1].head(PHOTOS // 2).itertuples(index=False):  # the file: best first
            chosen[position[image_id]] = f"The error analysis counts {false} false and {missed} missed."
    worst = len(chosen)
    for i in np.linspace(0, len(index) - 1, min(PHOTOS - worst, len(index))).astype(int):
        chosen.setdefault(int(i), "")
    rest = f"{len(chosen) - worst} photos taken at regular steps from the {len(index)} of val2017"
    return chosen, f"the {worst} worst photos of the error analysis, then {rest}" if worst else rest


def _predicted(index: CocoIndex, i: int, found: Detections) -> list[list]:
    rows = []
    for row in found.rows((found.image_id == index.image_ids[i]) & (found.score >= FLOOR)):
        if row["category_id"] in index.category_ids:
            box = [round(value, 1) for value in row["bbox"]]
            rows.append([*box, index.category_ids.index(row["category_id"]), round(row["score"], 4)])
    return sorted(rows, key=lambda row: -row[5])[:MOST]


def _photo(index: CocoIndex, i: int, why: str, found: Detections, side: int) -> dict | None:
    height, width = int(index.heights[i]), int(index.widths[i])
    try:
        image = Image.fromarray(read_image(index.path(i), height, width))
    except OSError:
        return None
    rows = index.rows(i)
    kinds = np.stack([index.labels[rows], index.iscrowd[rows]], axis=1)
    truth = [[*bbox, *kind] for bbox, kind in zip(index.bbox[rows].round(1).tolist(), kinds.tolist())]
    about = {"name": str(index.file_names[i]), "why": why, "width": width, "height": height}
    return {**about, "picture": jpeg(image, side), "truth": truth, "predicted": _predicted(index, i, found)}
