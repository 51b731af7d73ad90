"""Augmentation keeps boxes, labels and pixels together; what holds for any input is in test_properties.py."""

import random

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.core.bbox_utils import filter_bboxes

from helpers.augment import MIN_SIDE, MIN_VISIBLE, Augment, augmentation, zoomed
from helpers.sanity import augmented

FULL = Augment("full")


@pytest.mark.parametrize("level", ["light", "full", "strong"])
def test_boxes_move_with_their_pixels(level):
    """A white square on black, which no zoom takes out of the photo: after any change the box must still hold it. A
    flip of pixels alone would not."""
    augment, moved = Augment(level), 0
    for seed in range(40):
        image = np.zeros((80, 120, 3), np.uint8)
        image[25:55, 30:60] = 255
        out, boxes, _ = augment(image, np.array([[30, 25, 60, 55]], np.float32), np.array([4]), seed)
        bright = np.argwhere(out.max(axis=-1).astype(int) > (int(out.max()) + int(np.median(out))) / 2)
        (y0, x0), (y1, x1) = bright.min(axis=0), bright.max(axis=0) + 1
        assert np.abs(boxes[0] - [x0, y0, x1, y1]).max() <= 3, (seed, boxes, (x0, y0, x1, y1))
        moved += abs(boxes[0][0] - 30) > 3
    assert 10 < moved < 40


@pytest.mark.parametrize("level", ["none", "light", "full", "strong"])
def test_a_flip_is_among_the_versions_that_are_shown(level):
    """A page about flips without one, and of another level than the run's."""
    image = np.zeros((60, 80, 3), np.uint8)
    image[:, :40] = 200
    sample = {"image": image, "boxes_xyxy": np.array([[5.0, 5, 30, 30]], np.float32), "class_labels": np.array([1])}
    (_, original), *versions = augmented(sample, ("cup", "bowl"), level).items()
    assert np.array_equal(original[0], image) and original[2] == ["bowl"]
    assert len(versions) == (0 if level == "none" else 3)
    mirrored = [bool(version[:, -20:].mean() > version[:, :20].mean()) for _, (version, _, _) in versions]
    assert mirrored == [True, False, False][: len(versions)]


def test_same_seed_same_picture():
    """A resumed run must see the same pictures; another seed must not."""
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    boxes, labels = np.array([[5, 5, 20, 20]], np.float32), np.array([1])
    one, two, other = (FULL(image, boxes, labels, seed) for seed in (7, 7, 8))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1]) and not np.array_equal(one[0], other[0])


def test_steps_are_drawn_independently():
    """Flip and contrast, each for every other photo: all four cases must come, about equally often. With one seed for
    each step
    they would come together or not at all."""
    ramp = np.repeat(np.linspace(60, 180, 64, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(8, axis=0)
    light, cases = Augment("light"), []
    for seed in range(200):
        out, _, _ = light(ramp, np.zeros((0, 4), np.float32), np.zeros(0, int), seed)
        flipped = int(out[0, 0, 0]) > int(out[0, -1, 0])
        cases.append((flipped, not np.array_equal(out[:, ::-1] if flipped else out, ramp)))
    counts = [cases.count((flip, changed)) for flip in (False, True) for changed in (False, True)]
    assert min(counts) > 30, counts


def test_none_is_none():
    assert augmentation("none") is None and isinstance(augmentation("light"), Augment)


def photo(height: int = 96, width: int = 130) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 4)


def test_light_is_albumentations_own():
    """The boxes are flipped here, because the library's handling of them costs more than the pixels: the same photos,
    boxes and labels must come out as of the library alone."""
    steps = [A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5)]
    small = {"min_visibility": MIN_VISIBLE, "min_width": MIN_SIDE, "min_height": MIN_SIDE}
    whole = A.Compose(steps, bbox_params=A.BboxParams("pascal_voc", label_fields=["labels"], **small))
    boxes, labels = np.array([[3, 4, 50, 60], [5, 5, 5.5, 30], [100, 0, 130, 96]], np.float32), np.array([4, 5, 6])
    for seed in range(20):
        whole.set_random_state(np.random.default_rng(seed), random.Random(seed))
        theirs = whole(image=photo(), bboxes=boxes, labels=labels)
        image, ours, kept = Augment("light")(photo(), boxes, labels, seed)
        assert np.array_equal(image, theirs["image"]) and kept.tolist() == theirs["labels"].tolist() == [4, 6]
        assert np.allclose(ours, theirs["bboxes"], atol=1e-4)


@pytest.mark.parametrize("scale", [(0.6, 0.6), (0.8, 1.2), (1.2, 0.85), (1.6, 1.6), (1, 1)])
@pytest.mark.parametrize("shift", [(0, 0), (0.2, -0.2), (-0.05, 0.03)])
def test_a_zoom_is_the_affine_map(scale, shift):
    """Scaled about the middle, then moved: a zoom of the other sign, about a corner, or one whose boxes lie beside
    their pixels would teach wrong places."""
    image, size = photo(), np.array([130, 96])
    scale, offset = np.array(scale), size * ((1 - np.array(scale)) / 2 + shift)
    boxes = np.array([[30, 20, 90, 70], [0, 0, 130, 96], [61, 41, 70, 50]], np.float32)
    out, moved = zoomed(image, boxes, scale, np.array(shift))
    assert np.abs(moved - (boxes * np.tile(scale, 2) + np.tile(offset, 2))).max() < 1 + max(scale), "whole pixels"
    # what cv2 draws when it takes the middles of the pixels: half a pixel further on both sides
    matrix = np.column_stack([np.diag(scale), offset + (scale - 1) / 2])
    theirs = cv2.warpAffine(image, matrix, size.tolist())
    assert np.abs(out.astype(int) - theirs).mean() < 4 and out.shape == image.shape
    assert np.array_equal(out, image) == (scale.tolist() == [1, 1] and shift == (0, 0))


def test_boxes_are_exact_after_a_zoom():
    """To the fraction of a pixel: a disc's centre lies where its box's centre lies."""
    y, x = np.mgrid[:240, :320]
    disc = np.repeat(255 * np.exp(-((x + 0.5 - 140) ** 2 + (y + 0.5 - 110) ** 2) / 200)[..., None], 3, 2)
    draw = np.random.default_rng(0)
    for _ in range(20):
        out, boxes = zoomed(
            disc.astype(np.uint8),
            np.array([[120, 90, 160, 130]]),
            draw.uniform(0.8, 1.2, 2),
            draw.uniform(-0.1, 0.1, 2),
        )
        weight = out[..., 0].astype(float)
        centre = [((axis + 0.5) * weight).sum() / weight.sum() for axis in (x, y)]
        assert np.abs((boxes[0, :2] + boxes[0, 2:]) / 2 - centre).max() < 0.1


def test_boxes_are_judged_as_albumentations_does():
    """A box of which a fifth is left stays, clipped; less, or less than a pixel, is no object to learn from."""
    corners = np.random.default_rng(0).uniform(-40, 140, (400, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    light = Augment("light")
    light.compose = A.Compose([A.NoOp()], save_applied_params=True)
    _, ours, labels = light(photo(), boxes, np.arange(400), 0)
    small = {"min_visibility": MIN_VISIBLE, "min_width": MIN_SIDE, "min_height": MIN_SIDE}
    theirs = filter_bboxes(boxes / np.float32([130, 96] * 2), {"height": 96, "width": 130}, **small) * np.float32(
        [130, 96] * 2
    )
    assert 50 < len(labels) < 390 and np.allclose(ours, theirs, atol=1e-3)


def test_noise_is_as_strong_as_it_says():
    """Without bias, 0.02 to 0.08 of white, another for each seed and pixel; an unseeded one would not come again."""
    grey, full = np.full((80, 80, 3), 128, np.uint8), Augment("full")
    full.compose, full.zooms, full.noises = A.Compose([A.NoOp()], save_applied_params=True), 0, 1
    rounds = [full(grey, np.zeros((0, 4)), np.zeros(0, int), seed)[0].astype(float) - 128 for seed in range(30)]
    strengths = [deviation / 255 for noise in rounds for deviation in noise.std(axis=(0, 1))]  # of each channel
    assert min(strengths) > 0.018 and max(strengths) < 0.083 and np.ptp(strengths) > 0.03
    assert max(abs(noise.mean()) for noise in rounds) < 1
    assert np.abs(np.corrcoef([*rounds[0].reshape(-1, 3).T, *rounds[1].reshape(-1, 3).T]) - np.eye(6)).max() < 0.06


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_photo_of_a_few_pixels(side):
    """Rounded to whole pixels, nothing of it may be left."""
    augment, image, boxes = Augment("strong"), np.full((side, 40, 3), 9, np.uint8), np.float32([[0, 0, 40, side]])
    for seed in range(60):
        out, kept, labels = augment(image, boxes, np.array([3]), seed)
        assert out.shape == image.shape and len(kept) == len(labels)
