"""Augmentation keeps boxes, labels and pixels together; what holds for any input is in test_properties.py."""

import numpy as np
import pytest

from helpers.augment import Augment, augmentation
from helpers.sanity import augmented

FULL = Augment("full")


@pytest.mark.parametrize("level", ["light", "full", "strong"])
def test_boxes_move_with_their_pixels(level):
    """A white square on black: after any change the box must still hold it. A flip of pixels alone would not."""
    augment, moved = Augment(level), 0
    for seed in range(40):
        image = np.zeros((80, 120, 3), np.uint8)
        image[20:50, 10:40] = 255
        out, boxes, _ = augment(image, np.array([[10, 20, 40, 50]], np.float32), np.array([4]), seed)
        bright = np.argwhere(out.max(axis=-1).astype(int) > (int(out.max()) + int(np.median(out))) / 2)
        (y0, x0), (y1, x1) = bright.min(axis=0), bright.max(axis=0) + 1
        assert np.abs(boxes[0] - [x0, y0, x1, y1]).max() <= 3, (seed, boxes, (x0, y0, x1, y1))
        moved += abs(boxes[0][0] - 10) > 3
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
