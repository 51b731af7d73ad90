"""The painter of boxes: solid green is the truth, dashed red is predicted; they can be told apart without colour."""

from __future__ import annotations

import functools
import io
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from helpers.boxes import intersection, xywh_to_xyxy
from helpers.dataset import read_image
from helpers.index import CocoIndex
from helpers.metrics import Detections
from helpers.pictures.colours import PREDICTED, TRUTH

CROWDED = 15  # labels


@dataclass(frozen=True)
class Box:
    """A box of the picture; ``xyxy`` in the photo's pixels; no label without ``text``; a crowd region is ``dotted``."""

    xyxy: tuple[float, float, float, float]
    text: str
    predicted: bool = False
    width: int = 2
    dotted: bool = False

    @classmethod
    def of(cls, bbox, *rest) -> Box:
        """From COCO's ``bbox``, the rest as it is."""
        return cls(tuple(xywh_to_xyxy(np.asarray(bbox, dtype=float)).tolist()), *rest)

    @property
    def colour(self) -> str:
        return PREDICTED if self.predicted else TRUTH


def visible_boxes(
    index: CocoIndex,
    i: int,
    detections: list[dict],
    threshold: float,
    show_truth: bool = True,
    classes: list[str] | None = None,
    errors: pd.DataFrame | None = None,
) -> list[Box]:
    """Boxes of image ``i``: its ground truth (crowds dotted), and its ``detections`` with ``score >= threshold``.

    ``classes`` (names) keeps only these. With ``errors`` (rows of ``error_table``) the predictions are only the false
    ones, their label says why, and what was missed is drawn thick.
    """
    wanted = set(index.classes if classes is None else classes)
    missed = set() if errors is None else set(errors.loc[errors["type"] == "missed", "annotation_id"])
    boxes = []
    for row in index.rows(i) if show_truth else ():
        name, lost = index.classes[index.labels[row]], index.annotation_ids[row] in missed
        text = f"crowd: {name}" if index.iscrowd[row] else f"missed: {name}" if lost else name
        if name in wanted:
            crowd = bool(index.iscrowd[row])
            boxes.append(Box.of(index.bbox[row], text, False, 4 if lost else 1 if crowd else 2, crowd))
    if errors is not None:
        return boxes + _false_predictions(errors[errors["image_id"] == index.image_ids[i]], threshold, wanted)
    name_of = {category: name for category, name in zip(index.category_ids, index.classes) if name in wanted}
    found = Detections.of(detections)
    found = found.rows((found.image_id == index.image_ids[i]) & (found.score >= threshold))
    for row in sorted(found, key=lambda row: row["score"]):
        if name := name_of.get(row["category_id"]):
            boxes.append(Box.of(row["bbox"], f"{name} {row['score']:.2f}", True))
    return boxes


def _false_predictions(errors: pd.DataFrame, threshold: float, wanted: set[str]) -> list[Box]:
    """Boxes of the wrong predictions of one photo; a class is meant when it was predicted or should have been."""
    errors = errors[(errors["type"] != "missed") & (errors["score"] >= threshold)]
    errors = errors[errors["predicted_class"].isin(wanted) | errors["class"].isin(wanted)].sort_values("score")
    rows = zip(errors[[*"xywh"]].to_numpy(), errors["type"], errors["predicted_class"], errors["score"])
    return [Box.of(bbox, f"{kind}: {name} {score:.2f}", True) for bbox, kind, name, score in rows]


def draw(index: CocoIndex, i: int, detections: list[dict], threshold: float, max_side: int = 640, **which) -> bytes:
    """Image ``i`` with its :func:`visible_boxes` (``which``: the rest of its arguments) as JPEG, see :func:`show`."""
    return jpeg(show(index, i, visible_boxes(index, i, detections, threshold, **which), max_side))


def show(index: CocoIndex, i: int, boxes: list[Box], side: int = 640, region=None, font_size: int = 13) -> Image.Image:
    """Image ``i``, or its ``region``, painted; a whole photo is doubled at most. One that cannot be read says so."""
    height, width = int(index.heights[i]), int(index.widths[i])
    side = side if region else min(side, 2 * max(height, width))
    try:
        photo = Image.fromarray(read_image(index.path(i), height, width))
    except OSError as error:
        return message(f"This photo cannot be shown: {error}", _size(region or (0, 0, width, height), side))
    return paint(photo, boxes, side, region, font_size)


def paint(photo: Image.Image, boxes: list[Box], side: int, region=None, font_size: int = 13) -> Image.Image:
    """``photo``, or its ``region`` (left, top, right, bottom), with ``boxes``, the longest side ``side`` pixels.

    Boxes end at the photo's edges. Labels stay inside and hide no other: the thick boxes' come first, then those that
    were given last; a box whose label finds no place stays without one, as half a name helps nobody. So do, where more
    than ``CROWDED`` have one, those that are smaller than their label: forty plates would hide forty books. A few
    predictions keep theirs among many objects.
    """
    region = region or (0, 0, *photo.size)
    image = photo.convert("RGB").resize(_size(region, side), Image.Resampling.BICUBIC, box=region)
    origin, end, edge = np.array(region[:2] * 2), np.array(region[2:] * 2), np.array(photo.size * 2)
    factor = (np.array(image.size * 2) - 1) / (end - origin)  # the last pixel of the photo is that of the picture
    corners = [((np.clip(box.xyxy, 0, edge) - origin) * factor).tolist() for box in boxes]
    corners = [(x0, y0, max(x0, x1), max(y0, y1)) for x0, y0, x1, y1 in corners]
    canvas = ImageDraw.Draw(image)
    for box, at in zip(boxes, corners):
        _rectangle(canvas, at, box)
    named = sum(bool(box.text) for box in boxes)
    crowded = {False: named > CROWDED, True: sum(box.predicted for box in boxes if box.text) > CROWDED}
    font, taken = font_of(font_size if named <= 30 else min(font_size, 11)), []
    for box, at in sorted(zip(reversed(boxes), reversed(corners)), key=lambda pair: pair[0].width, reverse=True):
        if box.text:
            _label(canvas, at, box, font, image.size, taken, crowded[box.predicted])
    return image


def _size(region: tuple, side: int) -> tuple[int, int]:
    width, height = region[2] - region[0], region[3] - region[1]
    return tuple(max(1, round(length * side / max(width, height))) for length in (width, height))


def message(text: str, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A grey picture with a sentence."""
    image = Image.new("RGB", size, (120, 120, 120))
    lines = textwrap.fill(text[:600], max(size[0] // 9, 8))
    ImageDraw.Draw(image).multiline_text((8, 8), lines, fill="white", font=font_of(13))
    return image


def jpeg(image: Image.Image, quality: int = 88) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


@functools.lru_cache(maxsize=8)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu Sans knows more letters than Pillow's own font

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _rectangle(canvas: ImageDraw.ImageDraw, xyxy: tuple, box: Box) -> None:
    """Solid for the truth; on a thin white line dashes for a prediction and dots for a crowd region."""
    if not box.predicted and not box.dotted:
        canvas.rectangle(xyxy, outline=box.colour, width=box.width)
        return
    x0, y0, x1, y1 = xyxy
    canvas.rectangle(xyxy, outline="white", width=1)
    dash, step = (3 * box.width + 1, 4 * box.width + 3) if box.predicted else (2, 6)
    for start, stop, sides, across in ((x0, x1, (y0, y1), False), (y0, y1, (x0, x1), True)):
        for at in np.arange(start, max(stop, start + 1), step):
            end = min(at + dash, stop)
            for fixed in sides:
                line = (fixed, at, fixed, end) if across else (at, fixed, end, fixed)
                canvas.line(line, fill=box.colour, width=box.width)


def _label(canvas: ImageDraw.ImageDraw, xyxy: tuple, box: Box, font, size: tuple, taken: list, crowded: bool) -> None:
    """Write the text on a filled rectangle at the corner, in the picture, that hides least of the labels ``taken``."""
    text = one_line(box.text, 36)
    width, height = font.getlength(text) + 6, font.size + 5
    x0, y0, x1, y1 = xyxy
    if crowded and (x1 - x0) * (y1 - y0) < width * height:
        return
    above, below = [(x0, y0 - height), (x1 - width, y0 - height)], [(x0, y1), (x1 - width, y1)]
    inside = [(x0, y0), (x0, y1 - height), (x1 - width, y0), (x1 - width, y1 - height)]
    places = np.array((above + below if box.predicted else below + above) + inside)
    places = np.clip(places, 0, np.maximum(np.array(size) - (width + 1, height + 1), 0))
    places_xyxy = np.hstack([places, places + (width, height)])
    hidden = intersection(places_xyxy, np.array(taken).reshape(-1, 4)).sum(axis=1)
    if hidden.min() <= 0.02 * width * height:
        taken.append(tuple(places_xyxy[hidden.argmin()].tolist()))
        x, y, _, _ = taken[-1]
        canvas.rectangle(taken[-1], fill=box.colour)
        canvas.text((x + 3, y + 1), text, fill="white", font=font)


def one_line(text: str, most: int) -> str:
    """One short line without control characters: a class name comes from a file."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"
