"""One photo with its boxes as a picture: red dashed boxes are predicted, green solid ones are the ground truth."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from helpers.boxes import xywh_to_xyxy
from helpers.dataset import read_image
from helpers.index import CocoIndex

PREDICTED, TRUTH = (205, 0, 0), (0, 128, 60)


@dataclass(frozen=True)
class Box:
    """A box of the picture; ``xyxy`` in the photo's pixels."""

    xyxy: tuple[float, float, float, float]
    text: str
    predicted: bool
    width: int = 2


def visible_boxes(
    index: CocoIndex,
    i: int,
    detections: list[dict],
    threshold: float,
    show_truth: bool = True,
    classes: list[str] | None = None,
    errors: pd.DataFrame | None = None,
) -> list[Box]:
    """What :func:`draw` puts on image ``i``: its ground truth, and predictions with ``score >= threshold``.

    ``classes`` (names) keeps only these. With ``errors`` (rows of ``error_table``) the predictions are only the false
    ones, their label says why, and what was missed is drawn thick.
    """
    wanted = set(index.classes if classes is None else classes)
    missed = set() if errors is None else set(errors.loc[errors["type"] == "missed", "annotation_id"])
    boxes = []
    for row in index.rows(i) if show_truth else ():
        name, lost = index.classes[index.labels[row]], index.annotation_ids[row] in missed
        text = f"crowd of {name}" if index.iscrowd[row] else f"missed: {name}" if lost else name
        if name in wanted:
            boxes.append(Box(_xyxy(index.bbox[row]), text, False, 4 if lost else 1 if index.iscrowd[row] else 2))
    if errors is not None:
        return boxes + _false_predictions(errors[errors["image_id"] == index.image_ids[i]], threshold, wanted)
    name_of = {category: name for category, name in zip(index.category_ids, index.classes) if name in wanted}
    rows = [
        d
        for d in detections
        if d["image_id"] == index.image_ids[i] and d["score"] >= threshold and d["category_id"] in name_of
    ]
    return boxes + [
        Box(_xyxy(d["bbox"]), f"{name_of[d['category_id']]} {d['score']:.2f}", True)
        for d in sorted(rows, key=lambda d: d["score"])
    ]


def _false_predictions(errors: pd.DataFrame, threshold: float, wanted: set[str]) -> list[Box]:
    """Boxes of the wrong predictions of one photo; a class is meant when it was predicted or should have been."""
    errors = errors[(errors["type"] != "missed") & (errors["score"] >= threshold)]
    errors = errors[errors["predicted_class"].isin(wanted) | errors["class"].isin(wanted)].sort_values("score")
    return [
        Box(_xyxy(bbox), f"{kind}: {name} {score:.2f}", True)
        for kind, name, score, bbox in zip(
            errors["type"],
            errors["predicted_class"],
            errors["score"],
            errors[["x", "y", "w", "h"]].to_numpy(dtype=float),
        )
    ]


def draw(
    index: CocoIndex,
    i: int,
    detections: list[dict],
    threshold: float,
    show_truth: bool = True,
    classes: list[str] | None = None,
    errors: pd.DataFrame | None = None,
    max_side: int = 640,
) -> bytes:
    """Image ``i`` with its boxes as JPEG, longest side ``max_side`` pixels at most (small photos are doubled at most).

    ``detections``: COCO results, those of other photos are left out; the rest as in :func:`visible_boxes`. A photo that
    cannot be read gives a grey picture that says so.
    """
    return picture(index, i, visible_boxes(index, i, detections, threshold, show_truth, classes, errors), max_side)


def picture(index: CocoIndex, i: int, boxes: list[Box], max_side: int = 640) -> bytes:
    """Image ``i`` with ``boxes``, as JPEG."""
    height, width = int(index.heights[i]), int(index.widths[i])
    factor = min(max_side / max(height, width), 2.0)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    try:
        image = Image.fromarray(read_image(index.path(i), height, width)).resize(size, Image.BILINEAR)
    except OSError as error:
        return message(f"This photo cannot be shown: {error}", size)
    canvas = ImageDraw.Draw(image)
    limit = np.array([size[0] - 1, size[1] - 1] * 2)
    corners = [np.clip(np.array(box.xyxy) * factor, 0, limit) for box in boxes]
    for box, at in zip(boxes, corners):
        _rectangle(canvas, at.tolist(), box)
    font, taken = _font(13 if len(boxes) <= 30 else 11), []
    for box, at in sorted(zip(reversed(boxes), reversed(corners)), key=lambda pair: pair[0].width, reverse=True):
        _label(
            canvas, at.tolist(), box, font, size, taken
        )  # what was missed first, then the most confident predictions
    return _jpeg(image)


def message(text: str, size: tuple[int, int] = (640, 480)) -> bytes:
    """A grey picture with a sentence, as JPEG."""
    image = Image.new("RGB", size, (120, 120, 120))
    lines = [text[k : k + max(size[0] // 9, 8)] for k in range(0, min(len(text), 600), max(size[0] // 9, 8))]
    ImageDraw.Draw(image).multiline_text((8, 8), "\n".join(lines), fill="white", font=_font(13))
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _xyxy(bbox) -> tuple[float, ...]:
    return tuple(xywh_to_xyxy(np.asarray(bbox, dtype=float)).tolist())


@functools.lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu Sans knows more letters than Pillow's own font

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _rectangle(canvas: ImageDraw.ImageDraw, xyxy: list[float], box: Box) -> None:
    """Solid green for the truth; red dashes on a thin white line for a prediction, to be told apart without colour."""
    if not box.predicted:
        canvas.rectangle(xyxy, outline=TRUTH, width=box.width)
        return
    x0, y0, x1, y1 = xyxy
    canvas.rectangle(xyxy, outline="white", width=1)
    for start, stop, fixed, across in (
        (x0, x1, y0, False),
        (x0, x1, y1, False),
        (y0, y1, x0, True),
        (y0, y1, x1, True),
    ):
        for at in np.arange(start, stop, 11.0):
            end = min(at + 7.0, stop)
            canvas.line((fixed, at, fixed, end) if across else (at, fixed, end, fixed), fill=PREDICTED, width=box.width)


def _label(
    canvas: ImageDraw.ImageDraw, xyxy: list[float], box: Box, font, size: tuple[int, int], taken: list[tuple]
) -> None:
    """Write the text on a filled rectangle inside the picture, at the box's corner that hides the least of the labels
    ``taken``.

    Where every place would hide another label the box stays without one: half a name helps nobody.
    """
    text = _plain(box.text)
    width, height = font.getlength(text) + 6, font.size + 5
    x0, y0, x1, y1 = xyxy
    above, below = [(x0, y0 - height), (x1 - width, y0 - height)], [(x0, y1), (x1 - width, y1)]
    inside = [(x0, y0), (x0, y1 - height), (x1 - width, y0), (x1 - width, y1 - height)]
    places = [
        (min(max(x, 0), max(size[0] - width - 1, 0)), min(max(y, 0), max(size[1] - height - 1, 0)))
        for x, y in (above + below if box.predicted else below + above) + inside
    ]
    hidden = _overlaps(np.array([(x, y, x + width, y + height) for x, y in places]), np.array(taken).reshape(-1, 4))
    if hidden.min() <= 0.15 * width * height:
        x, y = places[int(hidden.argmin())]
        taken.append((x, y, x + width, y + height))
        canvas.rectangle(taken[-1], fill=PREDICTED if box.predicted else TRUTH)
        canvas.text((x + 3, y + 1), text, fill="white", font=font)


def _overlaps(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """How much of each rectangle of [n, 4] those of [m, 4] cover together, in square pixels, [n]."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # [n, m, 2]
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(axis=2).sum(axis=1)


def _plain(text: str) -> str:
    """One short line without control characters: a class name comes from a file."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 36 else text[:35] + "…"
