"""Random changes to a photo and its boxes, all of albumentations behind one function."""

import os
import random

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

        steps = [A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5)]
        if level != "light":
            zoom = {"scale": (0.8, 1.2), "translate_percent": (-0.05, 0.05), "p": 0.5}
            if level == "strong":
                zoom = {"scale": (0.6, 1.6), "translate_percent": (-0.2, 0.2), "p": 0.8}
            steps += [A.HueSaturationValue(p=0.3), A.Affine(**zoom), A.Blur(blur_limit=3, p=0.1)]
            steps += [A.GaussNoise(std_range=(0.02, 0.08), p=0.1)]
        # boxes are judged once, at the end
        small = {"min_visibility": MIN_VISIBLE, "min_width": MIN_SIDE, "min_height": MIN_SIDE}
        careful = {"clip": True, "filter_invalid_bboxes": True, "check_each_transform": False}
        boxes = A.BboxParams("pascal_voc", label_fields=["labels"], **careful, **small)
        self.compose = A.Compose(steps, bbox_params=boxes)

    def __call__(self, image: np.ndarray, boxes_xyxy: np.ndarray, labels: np.ndarray, seed: int):
        # One stream for all steps. set_random_seed would give each step the seed anew, and they all would draw the same
        # number: whatever is flipped would also be moved, and only what is moved would be blurred.
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        out = self.compose(image=image, bboxes=boxes_xyxy, labels=labels)
        boxes_xyxy = np.asarray(out["bboxes"], dtype=np.float32).reshape(-1, 4)  # no box left: albumentations gives []
        return out["image"], boxes_xyxy, np.asarray(out["labels"], dtype=np.int64).reshape(-1)  # it gives floats


def augmentation(level: str) -> Augment | None:
    """The augmentation of a config's ``augment``; None for ``none``."""
    return None if level == "none" else Augment(level)
