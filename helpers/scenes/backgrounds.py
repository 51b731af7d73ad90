"""What stands behind the sprites of a built-in scene, and what a camera does to the whole picture."""

import cv2
import numpy as np


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: flat, gradient, stripes, checks, a horizon or shapes, with more or less value noise over it."""
    kinds = ("flat", "gradient", "noise", "stripes", "checks", "horizon", "shapes")
    kind = rng.choice(kinds, p=[0.08, 0.17, 0.2, 0.12, 0.08, 0.22, 0.13])
    one, two = random_colour(rng), random_colour(rng)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along = (np.cos(angle) * x + np.sin(angle) * y) / max(height, width)
    across = (np.cos(angle) * y - np.sin(angle) * x) / max(height, width)
    rate = rng.uniform(3, 14)
    if kind == "gradient":
        mix = along - along.min()
    elif kind == "stripes":
        mix = 0.6 * (np.sin(along * rate * 6.28) > rng.uniform(-0.7, 0.7))
    elif kind == "checks":
        mix = 0.5 * ((np.floor(along * rate) + np.floor(across * rate)) % 2)
    elif kind == "horizon":
        edge = rng.uniform(0.25, 0.75) * height + rng.uniform(-0.1, 0.1) * x
        mix = np.where(y < edge, 0.25 * y / height, 1 - 0.25 * (y - edge) / height)
    elif kind == "noise":
        mix = _value_noise(rng, height, width) * 0.5 + 0.5
    else:
        mix = np.zeros((height, width), np.float32)
    image = one + np.clip(mix, 0, 1)[..., None] * (two - one)
    if kind == "shapes":
        image = _shapes(rng, image.astype(np.float32))
    image += _value_noise(rng, height, width)[..., None] * rng.uniform(0, 28)
    return np.clip(image, 0, 255).astype(np.uint8)


def _shapes(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Blobs and bars that are nothing in particular: what a detector must learn to leave alone."""
    height, width = image.shape[:2]
    for _ in range(rng.integers(4, 14)):
        centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
        axes = tuple(int(v) for v in rng.uniform(0.03, 0.22, 2) * max(height, width))
        colour, turn = random_colour(rng).tolist(), rng.uniform(0, 180)
        if rng.random() < 0.5:
            cv2.ellipse(image, centre, axes, turn, 0, 360, colour, -1)
        else:
            corners = cv2.boxPoints((centre, axes, turn)).astype(np.int32)
            cv2.fillPoly(image, [corners], colour)
    return image


def _value_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth noise of three octaves, float32 [H, W], about -1 to 1."""
    total, cells = np.zeros((height, width), np.float32), int(rng.integers(2, 8))
    for octave in range(3):
        grid = rng.uniform(-1, 1, (cells * 2**octave + 1,) * 2).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2**octave
    return total / 1.3


def photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light, white balance, blur and noise over the whole picture."""
    height, width = image.shape[:2]
    light = np.linspace(*rng.uniform(0.75, 1.15, 2), width, dtype=np.float32)[None, :, None]
    gain = rng.uniform(0.92, 1.08, 3).astype(np.float32)
    photo = (image - np.float32(127)) * np.float32(rng.uniform(0.7, 1.1)) + np.float32(127 + rng.uniform(-15, 15))
    photo = photo * (light * gain)
    if rng.random() < 0.6:
        photo = cv2.GaussianBlur(photo, (0, 0), rng.uniform(0.3, 1.0))
    photo += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(0, 7))
    return np.clip(photo, 0, 255).astype(np.uint8)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour, float32 [3], greyish more often than gaudy."""
    hsv = np.array([[[rng.uniform(0, 180), 255 * rng.beta(1.2, 2.2), 255 * rng.uniform(0.2, 1)]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)
