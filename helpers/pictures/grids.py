"""Figures of notebooks 01 to 03. Each function returns a matplotlib figure and draws nothing to the screen."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.dataset import read_image
from helpers.index import CocoIndex
from helpers.pictures.colours import GREY, TRUTH


def _grid(n: int, columns: int = 4, size: float = 3.0):
    rows = -(-n // columns)
    figure = Figure(figsize=(columns * size, rows * size), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis("off")
    return figure, axes


def show_boxes(
    axis, image: np.ndarray, boxes_xyxy: np.ndarray, names: list[str], title: str = "", dashed: np.ndarray | None = None
) -> None:
    """Draw a photo with ground-truth boxes (pixels) and their class names; ``dashed`` marks crowd regions."""
    axis.imshow(image)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
    for k, (x0, y0, x1, y1) in enumerate(boxes_xyxy):
        style = "--" if dashed is not None and dashed[k] else "-"
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=TRUTH, linewidth=1.6, linestyle=style))
        above = y0 > 0.06 * image.shape[0]  # else the label would be cut off at the top
        axis.text(
            x0,
            y0,
            names[k],
            fontsize=7,
            color="white",
            verticalalignment="bottom" if above else "top",
            clip_on=True,
            parse_math=False,
            bbox={"facecolor": TRUTH, "pad": 0.8, "edgecolor": "none"},
        )


def sample_grid(index: CocoIndex, n: int = 8, seed: int = 0) -> Figure:
    """``n`` photos of a split, chosen by the seed, with their boxes; crowd regions dashed."""
    chosen = np.random.default_rng(seed).permutation(len(index))[:n]
    figure, axes = _grid(len(chosen))
    for axis, i in zip(axes, chosen):
        rows = index.rows(i)
        image = read_image(index.path(i), int(index.heights[i]), int(index.widths[i]))
        names = [index.classes[label] for label in index.labels[rows]]
        show_boxes(axis, image, index.boxes_xyxy[rows], names, f"image {index.image_ids[i]}", index.iscrowd[rows])
    return figure


def batch_grid(images: np.ndarray, boxes_xyxy: list[np.ndarray], names: list[list[str]], titles: list[str]) -> Figure:
    """A batch drawn back from its tensors: uint8 [B, H, W, 3] with padding, boxes in pixels of each photo without
    padding.
    """
    figure, axes = _grid(len(images))
    for axis, image, boxes, labels, title in zip(axes, images, boxes_xyxy, names, titles):
        show_boxes(axis, image, boxes, labels, title)
    return figure


def padding_mask(images: np.ndarray, masks: np.ndarray) -> Figure:
    """Photos of a batch as the model gets them, and beside each its mask: white is photo, black is padding."""
    n = min(3, len(images))
    figure, axes = _grid(2 * n, columns=2 * n, size=2.2)
    for k in range(n):
        axes[2 * k].imshow(images[k])
        axes[2 * k].set_title("pixel_values", fontsize=9)
        axes[2 * k + 1].imshow(masks[k], cmap="gray", vmin=0, vmax=1)
        axes[2 * k + 1].set_title("pixel_mask", fontsize=9)
        axes[2 * k + 1].add_patch(
            Rectangle((0, 0), 1, 1, transform=axes[2 * k + 1].transAxes, fill=False, color=GREY)
        )  # white on white
    return figure


def before_after(pairs: list[tuple[np.ndarray, np.ndarray, list[str]]], titles: list[str]) -> Figure:
    """Versions of one photo side by side: (image, boxes_xyxy, class names) each."""
    figure, axes = _grid(len(pairs), columns=min(4, len(pairs)))
    for axis, (image, boxes, names), title in zip(axes, pairs, titles):
        show_boxes(axis, image, boxes, names, title)
    return figure
