"""The pictures of ``visualizations/``: some of the best, typical and worst photos of a checkpoint."""

from pathlib import Path

import numpy as np
import pandas as pd

from helpers.evaluate.curves import with_something
from helpers.files import write_atomic
from helpers.index import CocoIndex
from helpers.metrics import Detections
from helpers.pictures.draw import draw

KINDS = ("best", "typical", "worst")


def pick_examples(photos: pd.DataFrame, each: int = 4) -> list[tuple[str, int]]:
    """(kind, image id) of ``each`` best, typical (around the median) and worst photos, no photo twice.

    ``photos`` of ``photo_table``. Photos without objects and predictions are left out where there are others.
    """
    some = with_something(photos)
    ids = (some if len(some) >= len(KINDS) * each else photos)["image_id"].tolist()  # best first
    each = min(each, -(-len(ids) // len(KINDS)))
    middle = max(0, (len(ids) - each) // 2)
    chosen: dict[int, str] = {}
    for kind, part in (("worst", ids[::-1][:each]), ("best", ids[:each]), ("typical", ids[middle : middle + each])):
        for image_id in part:
            chosen.setdefault(image_id, kind)
    return sorted(((kind, image_id) for image_id, kind in chosen.items()), key=lambda pair: KINDS.index(pair[0]))


def write_examples(
    folder: Path, index: CocoIndex, detections: list[dict], photos: pd.DataFrame, threshold: float
) -> list[tuple[str, bytes]]:
    """Draw :func:`pick_examples` into ``folder`` (in place of an earlier run's); caption and JPEG of each."""
    chosen = pick_examples(photos)
    position = {int(image_id): i for i, image_id in enumerate(index.image_ids)}
    scores = photos.set_index("image_id")
    found = Detections.of(detections)
    for kind in KINDS:
        for old in folder.glob(f"{kind}_[0-9]*.jpg"):
            old.unlink()
    pictures = []
    for number, (kind, image_id) in enumerate(chosen):
        jpeg = draw(index, position[image_id], found.rows(found.image_id == image_id), threshold)
        write_atomic(folder / f"{kind}_{number:02d}_{image_id:012d}.jpg", jpeg)
        row = scores.loc[image_id]
        counts = f"{row['correct']:.0f} right, {row['false']:.0f} wrong, {row['missed']:.0f} missed"
        if row["uncounted"]:
            counts += f", {row['uncounted']:.0f} in a crowd and not counted"
        pictures.append((f"{kind}: photo {image_id}, F1 {row['f1']:.2f} ({counts})", jpeg))
    return pictures


def of_each_kind(pictures: list[tuple[str, bytes]], each: int = 2) -> list[tuple[str, bytes]]:
    """The first ``each`` pictures of every kind, for one figure."""
    kinds = np.array([text.split(":")[0] for text, _ in pictures])
    return [pictures[i] for kind in KINDS for i in np.flatnonzero(kinds == kind)[:each]]
