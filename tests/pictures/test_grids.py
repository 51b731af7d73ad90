"""The colours of boxes, and pictures side by side."""

from __future__ import annotations

import io
from unittest.mock import patch

import numpy as np
import orjson
import pytest
from PIL import Image, ImageColor

from helpers.download.coco import read_index
from helpers.files import ROOT
from helpers.pictures.colours import GREY, PREDICTED, TRUTH
from helpers.pictures.draw import Box, font_of, paint
from helpers.pictures.grids import _wrapped, before_after, padding_mask, sample_grid, sheet, sides, tile

RED, GREEN = ImageColor.getrgb(PREDICTED), ImageColor.getrgb(TRUTH)
# Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency", 2009
EYES = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def linear(colour: tuple) -> np.ndarray:
    value = np.array(colour) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Linear sRGB to CIE Lab (D65)."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb, 0.009, None) / (0.9505, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_green_and_red_can_be_told_apart(eye):
    """A pure green and a pure red of one brightness are one colour to one man in twelve."""
    seen = [lab(np.clip(EYES[eye] @ linear(colour), 0, 1)) for colour in (GREEN, RED)]
    assert np.linalg.norm(seen[0] - seen[1]) > 20  # CIE76; 2 is just noticeable
    for colour in (GREEN, RED):  # WCAG's contrast of the labels' white letters
        assert 1.05 / (linear(colour) @ (0.2126, 0.7152, 0.0722) + 0.05) >= 4.5


def test_the_report_has_the_same_two_colours():
    style = (ROOT / "helpers" / "report" / "templates" / "style.css").read_text()
    assert f"--truth: {TRUTH}; --predicted: {PREDICTED};" in style


def pixels(image: Image.Image, colour: tuple) -> np.ndarray:
    return np.argwhere((np.asarray(image) == colour).all(axis=-1))


def test_a_part_of_the_photo_has_its_boxes_where_they_are():
    """A box that goes on outside of the part must not end at its border; one that leaves the photo ends there."""
    photo = Image.new("RGB", (400, 200), "white")
    part = paint(photo, [Box((150, 50, 350, 100), "")], 300, region=(100, 0, 200, 100))
    rows, columns = pixels(part, GREEN).T
    assert part.size == (300, 300) and columns.min() == pytest.approx(150, abs=2) and columns.max() == 299
    assert len(pixels(part.crop((290, 170, 300, 280)), GREEN)) == 0
    whole = paint(photo, [Box((-50, -50, 900, 900), "")], 400)
    assert all(
        len(pixels(whole.crop(edge), GREEN)) for edge in ((0, 50, 4, 60), (396, 50, 400, 60), (50, 196, 60, 200))
    )


def test_portrait_and_landscape_side_by_side():
    """Pictures of one size stretch photos; captions that overlap the next picture cannot be read."""
    photos = [np.full(shape, 90, np.uint8) for shape in ((300, 200, 3), (100, 400, 3), (50, 50, 3), (60, 300, 3))]
    figure = before_after([(p, np.array([[5, 5, 15, 15]]), ["cup"]) for p in photos] * 2, ["a title " * 9] * 8)
    figure.savefig(buffer := io.BytesIO(), dpi=110)  # as save_figure does
    drawn = np.asarray(Image.open(buffer).convert("RGB"))
    grey = (np.abs(drawn.astype(int) - 90) < 3).all(axis=-1)
    rows = np.flatnonzero(grey.sum(axis=1) > 100)  # of the photos, not of the letters
    assert (np.diff(rows) > 1).sum() == 1, "two lines of pictures with white between them"
    widths = [(grey[:, k * 306 : (k + 1) * 306].sum(axis=0) > 20).sum() for k in range(4)]
    assert np.allclose(widths, [150, 300, 225, 300], atol=3) and drawn.shape[1] == 4 * 306
    assert drawn.shape[0] < 2 * (225 + 90), "a portrait photo leaves its neighbours white"
    assert sides([(400, 400), (512, 512)]) == [300, 300] and sides([(300, 400), (640, 480)]) == [225, 300]


def test_captions_fill_their_tile():
    """Lines that are counted in letters end at four fifths of it; a name without spaces leaves it."""
    text, font = "duplicate: dining table 0.75 again: this one has a more confident one", font_of(12)
    lines = _wrapped(text, font, 235)
    assert " ".join(lines) == text and all(font.getlength(line) <= 235 for line in lines)
    following = [after.split()[0] for after in lines[1:]]
    assert all(font.getlength(f"{line} {word}") > 235 for line, word in zip(lines, following))
    assert all(font.getlength(line) <= 235 for line in _wrapped("W" * 99, font, 235))


def test_a_photo_without_objects_says_so(tmp_path):
    """It looks like a box that was forgotten."""
    Image.new("RGB", (40, 30)).save(tmp_path / "0.png")
    image = {"id": 7, "width": 40, "height": 30, "file_name": "0.png"}
    gt = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "gt.json").write_bytes(orjson.dumps(gt))
    with patch("helpers.pictures.grids.tile", wraps=tile) as drawn:
        sample_grid(read_index(tmp_path / "gt.json", tmp_path))
    assert drawn.call_args.args[1] == "image 7: no objects of our classes"


def test_a_sheet_of_nothing_says_so():
    assert sheet([], 4, "No photo.").texts[0].get_text() == "No photo."
    assert tile(Image.new("RGB", (10, 10)), "two\nlines of <text>\x00", 200).width == 200


def test_masks_stand_beside_their_photos():
    """The mask of a photo without padding is white on white: without an edge it cannot be seen."""
    images, masks = np.full((2, 60, 80, 3), 90, np.uint8), np.ones((2, 60, 80), np.int64)
    masks[0, :, 60:] = 0
    with patch("helpers.pictures.grids.sheet") as drawn:
        padding_mask(images, masks)
    photo, padded, _, whole = (np.asarray(each)[-62:, 109:191] for each in drawn.call_args.args[0])
    assert (photo[1:-1, 1:-1] == 90).all() and (padded[1:-1, 1:-1] == 0).all(axis=-1).mean() == 0.25
    assert (whole[1:-1, 1:-1] == 255).all() and (whole[[0, -1]] == ImageColor.getrgb(GREY)).all()
