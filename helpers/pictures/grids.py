"""Pictures side by side. Each function but :func:`tile` returns a matplotlib figure and draws nothing to the screen."""

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageOps

from helpers.index import CocoIndex
from helpers.pictures.charts import note
from helpers.pictures.colours import GREY
from helpers.pictures.draw import Box, font_of, paint, show, visible_boxes

SIDE, LETTERS = 300, 13  # pixels of a tile's width, four in a line, and of the labels in it


def tile(picture: Image.Image, text: str, width: int, font_size: int = 12) -> Image.Image:
    """``picture`` on white, in the middle of ``width`` pixels, under ``text``, wrapped; a line break in it stays."""
    font, step = font_of(font_size), round(1.3 * font_size)
    width = max(picture.width, width)
    lines = [part for line in text.splitlines() for part in _wrapped(line, font, width - 4)]
    canvas = Image.new("RGB", (width, picture.height + step * len(lines) + 6), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(canvas).text((2, 2 + step * i), line, fill="black", font=font)
    canvas.paste(picture, ((width - picture.width) // 2, canvas.height - picture.height))
    return canvas


def _wrapped(line: str, font, width: int) -> list[str]:
    """The words of ``line`` in lines of at most ``width`` pixels; a word that is longer is cut."""
    lines = [""]
    for word in line.split():
        most = len(word) if font.getlength(word) <= width else max(int(width / font.getlength("W")), 1)
        for part in (word[k : k + most] for k in range(0, len(word), most)):
            longer = f"{lines[-1]} {part}".strip()
            lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, part]
    return lines


def sides(sizes: list[tuple[int, int]], width: int = SIDE) -> list[int]:
    """The longest side of each photo of a sheet, of ``sizes`` (width, height), that just fits into one box for all.

    It is 4:3, as most photos are, or higher where all of them are (a square at most): so a portrait photo does not
    leave its neighbours white.
    """
    flattest = min((h / w for w, h in sizes), default=0.0)
    height = round(width * min(max(flattest, 0.75), 1.0))
    return [max(1, round(max(w, h) * min(width / w, height / h))) for w, h in sizes]


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
    chosen = np.random.default_rng(seed).permutation(len(index))[:n]
    tiles = []
    for i, side in zip(chosen, sides([(index.widths[i], index.heights[i]) for i in chosen])):
        boxes = visible_boxes(index, i, [], 1.0)
        photo = show(index, i, boxes, side, font_size=LETTERS)
        text = "" if boxes else ": no objects of our classes"
        tiles.append(tile(photo, f"image {index.image_ids[i]}{text}", SIDE))
    return sheet(tiles, columns=4)


def before_after(pictures: list[tuple[np.ndarray, np.ndarray, list[str]]], titles: list[str]) -> Figure:
    """Pictures side by side, or versions of one: (image, boxes_xyxy, class names) each."""
    photos, tiles = [Image.fromarray(image) for image, _, _ in pictures], []
    longest = sides([photo.size for photo in photos])
    for photo, side, (_, boxes, names), title in zip(photos, longest, pictures, titles):
        boxes = [Box(tuple(xyxy), name) for xyxy, name in zip(boxes.tolist(), names)]
        photo = paint(photo, boxes, side, font_size=LETTERS)
        tiles.append(tile(photo, title, SIDE))
    return sheet(tiles, columns=4)


def padding_mask(images: np.ndarray, masks: np.ndarray) -> Figure:
    """Photos of a batch as the model gets them, and beside each its mask: white is photo, black is padding."""
    tiles = []
    for picture, mask in zip(images, masks):
        for part, title in ((picture, "pixel_values"), (mask > 0, "pixel_mask")):
            photo = Image.fromarray(part).convert("RGB")
            photo.thumbnail((SIDE - 2, SIDE - 2))
            tiles.append(tile(ImageOps.expand(photo, 1, GREY), title, SIDE))  # an edge: the mask is white on white
    return sheet(tiles, columns=4)
