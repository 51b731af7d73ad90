"""Pictures side by side. Each function but :func:`tile` returns a matplotlib figure and draws nothing to the screen."""

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw

from helpers.index import CocoIndex
from helpers.pictures.charts import note
from helpers.pictures.colours import GREY
from helpers.pictures.draw import Box, font_of, paint, show, visible_boxes

SIDE, LETTERS = 300, 10  # pixels of a photo's longest side, four in a line, and of its labels


def tile(picture: Image.Image, text: str, width: int, font_size: int = 12) -> Image.Image:
    """``picture`` on white under ``text``, wrapped at ``width`` pixels; a line break in it stays."""
    font, step = font_of(font_size), round(1.3 * font_size)
    letters = int(11 * width / font.getlength("an example "))
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, letters)]
    canvas = Image.new("RGB", (max(picture.width, width), picture.height + step * len(lines) + 6), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(canvas).text((2, 2 + step * i), line, fill="black", font=font)
    canvas.paste(picture, (0, canvas.height - picture.height))
    return canvas


def sheet(tiles: list[Image.Image], columns: int, nothing: str = "There is no photo to show.") -> Figure:
    """Tiles in lines, as one picture that fills a figure (an axes for each would take seconds to lay out)."""
    if not tiles:
        return note(nothing)
    lines = [tiles[k : k + columns] for k in range(0, len(tiles), columns)]
    width = max(tile.width for tile in tiles) + 6
    heights = [max(tile.height for tile in line) + 10 for line in lines]
    canvas = Image.new("RGB", (min(columns, len(tiles)) * width, sum(heights)), "white")
    for r, line in enumerate(lines):
        for c, tile in enumerate(line):
            canvas.paste(tile, (c * width, sum(heights[:r])))
    dpi = 110  # save_figure's: a pixel of the pictures is one of the file
    figure = Figure(figsize=(canvas.width / dpi, canvas.height / dpi), dpi=dpi)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(np.asarray(canvas))
    ax.axis("off")
    return figure


def sample_grid(index: CocoIndex, n: int = 8, seed: int = 0) -> Figure:
    """``n`` photos of a split, chosen by the seed, with their boxes; crowd regions have thin ones."""
    tiles = []
    for i in np.random.default_rng(seed).permutation(len(index))[:n]:
        photo = show(index, i, visible_boxes(index, i, [], 1.0), SIDE, font_size=LETTERS)
        tiles.append(tile(photo, f"image {index.image_ids[i]}", SIDE))
    return sheet(tiles, columns=4)


def batch_grid(images: np.ndarray, boxes_xyxy: list[np.ndarray], names: list[list[str]], titles: list[str]) -> Figure:
    """A batch drawn back from its tensors: uint8 [B, H, W, 3] with padding; boxes in pixels of each photo."""
    return before_after(list(zip(images, boxes_xyxy, names)), titles)


def before_after(pictures: list[tuple[np.ndarray, np.ndarray, list[str]]], titles: list[str]) -> Figure:
    """Pictures side by side, or versions of one: (image, boxes_xyxy, class names) each."""
    tiles = []
    for (image, boxes, names), title in zip(pictures, titles):
        boxes = [Box(tuple(xyxy), name) for xyxy, name in zip(boxes.tolist(), names)]
        tiles.append(tile(paint(Image.fromarray(image), boxes, SIDE, font_size=LETTERS), title, SIDE))
    return sheet(tiles, columns=4)


def padding_mask(images: np.ndarray, masks: np.ndarray) -> Figure:
    """Photos of a batch as the model gets them, and beside each its mask: white is photo, black is padding."""
    n = min(3, len(images))
    figure = Figure(figsize=(2.2 * 2 * n, 2.2), layout="constrained")
    axes = figure.subplots(1, 2 * n)
    for photo, mask, left, right in zip(images, masks, axes[::2], axes[1::2]):
        left.imshow(photo)
        right.imshow(mask, cmap="gray", vmin=0, vmax=1)
        right.add_patch(Rectangle((0, 0), 1, 1, transform=right.transAxes, fill=False, color=GREY))  # white on white
        for axis, title in ((left, "pixel_values"), (right, "pixel_mask")):
            axis.set_title(title, fontsize=9)
            axis.axis("off")
    return figure
