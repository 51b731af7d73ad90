"""Pictures of errors: the part of the photo around each, and whole photos with all their boxes.

Red dashed boxes are predicted, green solid ones annotated.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from helpers.boxes import xywh_to_xyxy
from helpers.dataset import read_image
from helpers.error_analysis.figures import note
from helpers.index import CocoIndex
from helpers.pictures.draw import draw

PREDICTED, ANNOTATED = (213, 0, 0), (0, 140, 60)


def caption(row: dict) -> str:
    """What is wrong, in words; ``row`` is a row of the error table as a dict, here and below."""
    score = f"{row['predicted_class']} {row['score']:.2f}"
    texts = {
        "classification": "predicted {score}, annotated {truth} (IoU {iou:.2f})",
        "localization": "{score} lies badly: IoU {iou:.2f} with the {truth}",
        "both": "{score}: wrong class and place, IoU {iou:.2f} with a {truth}",
        "duplicate": "{score} again: this {truth} has a more confident one",
        "background": "{score} where nothing is annotated",
        "missed": "{truth} not found",
    }
    iou = np.floor(100 * row["iou"]) / 100  # 0.497 is not to read as 0.50, which would be no localization error
    return row["type"] + ": " + texts[row["type"]].format(score=score, truth=row["class"], iou=iou)


def error_jpeg(index: CocoIndex, row: dict, size: int = 520) -> bytes:
    """The crop of :func:`error_crop` under its caption and the photo's id, as JPEG."""
    buffer = io.BytesIO()
    tile = _tile(error_crop(index, row, size), [caption(row), f"photo {row['image_id']}"], size, 16)
    tile.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()


def _tile(picture: Image.Image, lines: list[str], width: int, font_size: int) -> Image.Image:
    """``picture`` on white under ``lines`` (wrapped), ``width`` pixels at least."""
    font, step = _font(font_size), round(1.3 * font_size)
    lines = [part for line in lines for part in textwrap.wrap(line, int(11 * width / font.getlength("an example ")))]
    tile = Image.new("RGB", (max(picture.width, width), picture.height + step * len(lines) + 6), "white")
    canvas = ImageDraw.Draw(tile)
    for i, line in enumerate(lines):
        canvas.text((2, 2 + step * i), line, fill="black", font=font)
    tile.paste(picture, (0, tile.height - picture.height))
    return tile


def error_crop(index: CocoIndex, row: dict, size: int = 520) -> Image.Image:
    """The photo around an error, longest side ``size`` pixels; annotations that are not meant have thin boxes."""
    i = int(np.flatnonzero(index.image_ids == row["image_id"])[0])
    rows = index.rows(i, crowd=False)
    truth = rows[index.annotation_ids[rows] == row["annotation_id"]]
    box = _box(row)
    both = np.vstack([box, xywh_to_xyxy(index.bbox[truth])])
    x0, y0, x1, y1 = _with_context(both, int(index.widths[i]), int(index.heights[i]))
    scale = size / max(x1 - x0, y1 - y0)
    crop = (
        _photo(index, i)
        .crop((x0, y0, x1, y1))
        .resize((max(round((x1 - x0) * scale), 1), max(round((y1 - y0) * scale), 1)), Image.BICUBIC)
    )
    canvas = ImageDraw.Draw(crop)
    line, font_size = max(round(size / 130), 3), max(round(size / 26), 12)

    def corners(boxes_xyxy: np.ndarray) -> np.ndarray:
        return (boxes_xyxy - np.array([x0, y0, x0, y0])) * scale

    for k in rows:
        canvas.rectangle(
            _corners(corners(xywh_to_xyxy(index.bbox[k]))), outline=ANNOTATED, width=line if k in truth else 1
        )
    rival = row.get("rival")
    if rival:
        _dashed(canvas, corners(_box(rival)), PREDICTED, line // 2)
        _label(canvas, corners(_box(rival)), f"first: {rival['score']:.2f}", PREDICTED, font_size, "right")
    if row["type"] != "missed":
        _dashed(canvas, corners(box), PREDICTED, line)
        _label(canvas, corners(box), f"{row['predicted_class']} {row['score']:.2f}", PREDICTED, font_size, "above")
    for k in truth:
        name = index.classes[index.labels[k]]
        _label(canvas, corners(xywh_to_xyxy(index.bbox[k])), name, ANNOTATED, font_size, "below")
    return crop


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _box(row: dict) -> np.ndarray:
    return xywh_to_xyxy(np.array([row[side] for side in ("x", "y", "w", "h")], dtype=float))


def _photo(index: CocoIndex, i: int) -> Image.Image:
    """The photo, or a grey one where the file cannot be read any more."""
    height, width = int(index.heights[i]), int(index.widths[i])
    try:
        return Image.fromarray(read_image(index.path(i), height, width))
    except OSError:
        return Image.new("RGB", (width, height), "grey")


def _with_context(boxes_xyxy: np.ndarray, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of a photo around ``boxes_xyxy`` [n, 4], twice their size, 96 pixels at least, nearly square."""
    low, high = boxes_xyxy[:, :2].min(axis=0), boxes_xyxy[:, 2:].max(axis=0)
    side = np.maximum(2 * (high - low), 96)
    side = np.maximum(side, side.max() * 0.75)
    centre, limit = (low + high) / 2, np.array([width, height])
    start = np.clip(centre - side / 2, 0, np.maximum(limit - side, 0))
    end = np.minimum(start + side, limit)
    return tuple(int(v) for v in (*np.floor(start), *np.maximum(np.ceil(end), np.floor(start) + 1)))


def _corners(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, max(x1, x0), max(y1, y0)]


def _dashed(canvas: ImageDraw.ImageDraw, box: np.ndarray, colour, width: int) -> None:
    x0, y0, x1, y1 = _corners(box)
    for start, end in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x0, y1), (x1, y1)), ((x0, y0), (x0, y1))):
        start, end = np.array(start), np.array(end)
        length = max(float(np.abs(end - start).max()), 1.0)
        for at in np.arange(0, length, 16):
            a, b = start + (end - start) * at / length, start + (end - start) * min(at + 9, length) / length
            canvas.line([*a, *b], fill=colour, width=width)


def _label(canvas: ImageDraw.ImageDraw, box: np.ndarray, text: str, colour, size: int, where: str = "above") -> None:
    """White text on ``colour``: above the box, below it or at its right (a line lower than its top, where the label
    above
    another box would be), moved so that it stays in the picture."""
    font = _font(size)
    _, _, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right + 6, bottom + 5
    x, y = {"above": (box[0], box[1] - height), "below": (box[0], box[3]), "right": (box[2], max(box[1], 0) + height)}[
        where
    ]
    x = float(np.clip(x, 0, max(canvas.im.size[0] - width, 0)))
    y = float(np.clip(y, 0, max(canvas.im.size[1] - height, 0)))
    canvas.rectangle([x, y, x + width, y + height], fill=colour)
    canvas.text((x + 3, y + 1), text, fill="white", font=font)


def crop_grid(index: CocoIndex, errors: pd.DataFrame) -> Figure:
    """A picture per row of ``errors``, four in a line, under its caption (and ``question``, where the table has
    one).
    """
    tiles = []
    for row in errors.to_dict("records"):
        text = caption(row) if "question" not in row else f"{row['question']} {caption(row).partition(': ')[2]}"
        tiles.append(_tile(error_crop(index, row, 235), [text], 235, 12))
    return _sheet(tiles, columns=4) if tiles else note("Nothing to show: there is no such error.")


def photo_grid(index: CocoIndex, photos: pd.DataFrame, detections: list[dict]) -> Figure:
    """Whole photos with all their boxes; ``photos`` as from ``photo_table``, ``detections`` are the ones to draw."""
    tiles = []
    for row in photos.itertuples(index=False):
        i = int(np.flatnonzero(index.image_ids == row.image_id)[0])
        photo = Image.open(io.BytesIO(draw(index, i, detections, threshold=0.0, max_side=470)))
        text = f"photo {row.image_id}: F1 {row.f1:.2f}; {row.correct} of {row.objects} objects found, {row.false} false"
        tiles.append(_tile(photo, [text], 470, 13))
    return _sheet(tiles, columns=2) if tiles else note("Nothing to show: there is no such photo.")


def _sheet(tiles: list[Image.Image], columns: int) -> Figure:
    """Tiles in lines, as one picture that fills a figure (an axes for each would take seconds to lay out)."""
    lines = [tiles[k : k + columns] for k in range(0, len(tiles), columns)]
    width = max(tile.width for tile in tiles) + 6
    sheet = Image.new("RGB", (columns * width, sum(max(t.height for t in line) + 10 for line in lines)), "white")
    top = 0
    for line in lines:
        for k, tile in enumerate(line):
            sheet.paste(tile, (k * width, top))
        top += max(tile.height for tile in line) + 10
    figure = Figure(figsize=(sheet.width / 100, sheet.height / 100), dpi=100)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(np.asarray(sheet), interpolation="nearest")
    ax.axis("off")
    return figure
