"""Pictures of errors: the part of the photo around each, and whole photos with all their boxes."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from helpers.boxes import intersection, xywh_to_xyxy
from helpers.error_analysis.tide import BOX
from helpers.index import CocoIndex
from helpers.metrics import Detections
from helpers.pictures.draw import Box, jpeg, show, visible_boxes
from helpers.pictures.grids import sheet, sides, tile


def in_words(row: dict) -> str:
    """What is wrong, in words; ``row`` is a row of the error table as a dict, here and below."""
    score = f"{row['predicted_class']} {row['score']:.2f}"
    texts = {
        "classification": "predicted {score}, annotated {truth} (IoU {iou:.2f})",
        "localization": "{score} lies badly: IoU {iou:.2f} with the {truth}",
        "both": "{score}, but no {predicted} is annotated here; it touches a {truth}, IoU {iou:.2f}",
        "duplicate": "{score} again: this {truth} has a more confident one",
        "background": "{score}, IoU below 0.1 with every annotation",
        "missed": "{truth} not found",
    }
    iou = np.floor(100 * row["iou"]) / 100  # 0.497 is not to read as 0.50, which would be no localization error
    words = {"score": score, "predicted": row["predicted_class"], "truth": row["class"], "iou": iou}
    return row["type"] + ": " + texts[row["type"]].format(**words)


def error_jpeg(index: CocoIndex, row: dict) -> bytes:
    """The crop of :func:`error_crop` under its caption and the photo's id, as JPEG."""
    return jpeg(tile(error_crop(index, row), f"{in_words(row)}\nphoto {row['image_id']}", 520, 16))


def error_crop(index: CocoIndex, row: dict, size: int = 520) -> Image.Image:
    """The photo around an error, longest side ``size`` pixels; annotations that are not meant have thin boxes, crowd
    regions with their names.
    """
    i = position(index, row["image_id"])
    line = max(round(size / 130), 3)
    rows = index.rows(i)
    meant = (index.annotation_ids[rows] == row["annotation_id"]) & (row["type"] != "background")  # that is about none
    boxes = [Box.of(index.bbox[k], index.classes[index.labels[k]], False, line) for k in rows[meant]]
    if rival := row.get("rival"):
        boxes.append(Box.of([rival[side] for side in BOX], f"kept {rival['score']:.2f}", True, line // 2))
    bbox = np.array([row[side] for side in BOX], dtype=float)
    if row["type"] != "missed":
        boxes.append(Box.of(bbox, f"{row['predicted_class']} {row['score']:.2f}", True, line))
    about = xywh_to_xyxy(np.vstack([bbox, index.bbox[rows[meant]]]))
    region = _with_context(about, int(index.widths[i]), int(index.heights[i]))
    near = rows[~meant & (intersection(index.boxes_xyxy[rows], np.array([region], dtype=float))[:, 0] > 0)]
    name = lambda k: f"crowd: {index.classes[index.labels[k]]}" if index.iscrowd[k] else ""
    boxes = [Box.of(index.bbox[k], name(k), False, 1, bool(index.iscrowd[k])) for k in near] + boxes
    return show(index, i, boxes, size, region, max(round(size / 26), 12))


def position(index: CocoIndex, image_id: int) -> int:
    return int(np.flatnonzero(index.image_ids == image_id)[0])


def _with_context(boxes_xyxy: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a photo around ``boxes_xyxy`` [n, 4], twice their size, 96 pixels at least, nearly square."""
    low, high = boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)
    side = np.maximum(2 * (high - low), 96)
    side = np.maximum(side, side.max() * 0.75)
    centre, limit = (low + high) / 2, np.array([width, height])
    start = np.clip(centre - side / 2, 0, np.maximum(limit - side, 0))
    end = np.minimum(start + side, limit)
    return tuple(int(v) for v in (*np.floor(start), *np.maximum(np.ceil(end), np.floor(start) + 1)))


def crop_grid(index: CocoIndex, errors: pd.DataFrame) -> Figure:
    """A picture per row of ``errors``, four in a line, under its caption (and ``question``, where there is one)."""
    tiles = []
    for row in errors.to_dict("records"):
        text = in_words(row) if "question" not in row else f"{row['question']} {in_words(row).partition(': ')[2]}"
        tiles.append(tile(error_crop(index, row, 235), text, 235))
    return sheet(tiles, 4, "Nothing to show: there is no such error.")


def photo_grid(index: CocoIndex, photos: pd.DataFrame, detections: list[dict]) -> Figure:
    """Whole photos with all their boxes; ``photos`` as from ``photo_table``, ``detections`` are the ones to draw."""
    detections = Detections.of(detections)  # once, not for every photo
    positions = [position(index, image_id) for image_id in photos["image_id"]]
    longest = sides([(index.widths[i], index.heights[i]) for i in positions], 470)
    tiles = []
    for i, side, row in zip(positions, longest, photos.itertuples(index=False)):
        text = f"photo {row.image_id}: F1 {row.f1:.2f}; {row.correct} of {row.objects} objects found, {row.false} false"
        text += f", {row.uncounted} in a crowd" if row.uncounted else ""
        tiles.append(tile(show(index, i, visible_boxes(index, i, detections, 0.0), side), text, 470, 13))
    return sheet(tiles, 2, "Nothing to show: there is no such photo.")
