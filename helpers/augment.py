"""Random changes to a photo and its boxes: albumentations for flip, colours and blur, the rest here."""

import os
import random

import cv2
import numpy as np

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version at import

MIN_VISIBLE = 0.2  # a box of which less is left after a scale is no object to learn from
MIN_SIDE = 1.0  # pixels


class Augment:
    """The random changes of a ``level``.

    ``light``: flip, brightness and contrast; ``full``: also hue, scale, blur and noise; ``strong`` zooms in and out
    much further and more often, for a few hundred photos that are seen many times. Called with an image uint8
    [H, W, 3], ``boxes_xyxy`` [n, 4] in pixels, labels [n] and a seed; gives the three changed, the same for the same
    seed. Boxes are clipped to the image; one that has left it is dropped with its label.
    """

    def __init__(self, level: str = "full"):
        import albumentations as A

        steps, self.scale, self.shift = [A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5)], (1, 1), (0, 0)
        self.zooms, self.noises = (0, 0) if level == "light" else (0.5, 0.1)  # chances
        if level != "light":
            steps += [A.HueSaturationValue(p=0.3), A.Blur(blur_limit=3, p=0.1)]
            self.scale, self.shift = (0.8, 1.2), (-0.05, 0.05)
        if level == "strong":
            self.scale, self.shift, self.zooms = (0.6, 1.6), (-0.2, 0.2), 0.8
        self.compose = A.Compose(steps, save_applied_params=True)

    def __call__(self, image: np.ndarray, boxes_xyxy: np.ndarray, labels: np.ndarray, seed: int):
        # One stream for all steps. set_random_seed would give each step the seed anew, and they all would draw the same
        # number: whatever is flipped would also be moved, and only what is moved would be blurred.
        draw, (height, width) = np.random.default_rng(seed), image.shape[:2]
        self.compose.set_random_state(draw, random.Random(seed))
        out = self.compose(image=image)  # without the boxes: checked by it step by step, they cost more than the pixels
        image, boxes_xyxy = out["image"], np.array(boxes_xyxy, np.float32)
        if "HorizontalFlip" in dict(out["applied_transforms"]):
            boxes_xyxy[:, [0, 2]] = width - boxes_xyxy[:, [2, 0]]
        zooms, is_noisy = draw.random(2) < (self.zooms, self.noises)
        if zooms:
            image, boxes_xyxy = zoomed(image, boxes_xyxy, draw.uniform(*self.scale, 2), draw.uniform(*self.shift, 2))
        if is_noisy:
            cv2.setRNGSeed(seed % 2**31)
            noise = np.empty((height, width * 3), np.int16)  # one channel: else cv2 wants three deviations
            noise = cv2.randn(noise, 0, 255 * draw.uniform(0.02, 0.08)).reshape(image.shape)
            image = cv2.add(image, noise, dtype=cv2.CV_8U)
        inside = np.clip(boxes_xyxy, 0, np.float32([width, height] * 2))
        sides, whole = inside[:, 2:] - inside[:, :2], (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
        keep = (sides >= MIN_SIDE).all(axis=1) & (sides.prod(axis=1) >= MIN_VISIBLE * whole)
        return image, inside[keep], labels[keep]


def zoomed(image: np.ndarray, boxes_xyxy: np.ndarray, scale: np.ndarray, shift: np.ndarray):
    """The photo scaled about its middle by ``scale`` (x, y), then moved by ``shift`` (fractions of its sides), black
    where nothing is left of it, and its boxes: a rectangle of whole pixels becomes another one, so boxes are exact.
    """
    size = np.array(image.shape[1::-1])
    corner = size * ((1 - scale) / 2 + shift)  # of the whole scaled photo
    seen = np.clip([corner, corner + size * scale], 0, size)  # [2, 2], what is inside the picture
    (x0, y0), (x1, y1) = source = np.rint((seen - corner) / scale).astype(int)
    (left, top), (right, bottom) = target = np.rint(seen).astype(int)
    if (source[0] >= source[1]).any() or (target[0] >= target[1]).any():
        return image, boxes_xyxy  # a photo of a pixel or two
    canvas = np.zeros_like(image)
    canvas[top:bottom, left:right] = cv2.resize(image[y0:y1, x0:x1], (right - left, bottom - top))
    factor = (target[1] - target[0]) / (source[1] - source[0])
    return canvas, np.float32((boxes_xyxy - np.tile(source[0], 2)) * np.tile(factor, 2) + np.tile(target[0], 2))


def augmentation(level: str) -> Augment | None:
    """The augmentation of a config's ``augment``; None for ``none``."""
    return None if level == "none" else Augment(level)
