"""Figures of notebooks 01 to 03. Each function returns a matplotlib figure and draws nothing to the screen."""
from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from helpers.dataset import CocoIndex, read_image

BLUE, ORANGE, SKY, PURPLE, GREY = "#0072B2", "#E69F00", "#56B4E9", "#CC79A7", "#777777"  # Okabe-Ito, safe for colour-blind readers
TRUTH, PREDICTED = "#00A000", "#D50000"  # ground truth is green, predictions are red, everywhere in the project
SMALL, LARGE = 32**2, 96**2  # COCO's limits, in square pixels


def _grid(n: int, columns: int = 4, size: float = 3.0):
    rows = -(-n // columns)
    figure = Figure(figsize=(columns * size, rows * size), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.axis("off")
    return figure, axes


def show_boxes(axis, image: np.ndarray, boxes_xyxy: np.ndarray, names: list[str], title: str = "", dashed: np.ndarray | None = None) -> None:
    """Draw a photo with ground-truth boxes (pixels) and their class names; ``dashed`` marks crowd regions."""
    axis.imshow(image)
    axis.set_title(title, fontsize=9)
    axis.axis("off")
    for k, (x0, y0, x1, y1) in enumerate(boxes_xyxy):
        style = "--" if dashed is not None and dashed[k] else "-"
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=TRUTH, linewidth=1.6, linestyle=style))
        above = y0 > 0.06 * image.shape[0]  # else the label would be cut off at the top
        axis.text(x0, y0, names[k], fontsize=7, color="white", verticalalignment="bottom" if above else "top", clip_on=True,
                  parse_math=False, bbox={"facecolor": TRUTH, "pad": 0.8, "edgecolor": "none"})


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


def class_counts(table: pd.DataFrame) -> Figure:
    """Bars of instances per class; ``table`` is indexed by class with one column per split."""
    figure = Figure(figsize=(8, 0.32 * len(table) + 1.2), layout="constrained")
    axis = figure.subplots()
    position = np.arange(len(table))
    for k, (split, colour) in enumerate(zip(table.columns, (BLUE, ORANGE))):
        bars = axis.barh(position + (k - 0.5) * 0.4, table[split], height=0.38, color=colour, label=split)
        axis.bar_label(bars, fontsize=7, padding=2)
    axis.set_yticks(position, table.index, parse_math=False)
    axis.invert_yaxis()
    axis.set_xlabel("instances (crowd regions not counted)")
    axis.margins(x=0.1)
    axis.legend()
    return figure


def box_sizes(indices: dict[str, CocoIndex]) -> Figure:
    """Histograms of the square root of COCO's area, with COCO's limits between small, medium and large."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axis = figure.subplots()
    bins = np.geomspace(2, 800, 50)
    for (split, index), colour in zip(indices.items(), (BLUE, ORANGE)):
        sides = np.sqrt(index.areas[~index.iscrowd])
        axis.hist(sides, bins, histtype="step", linewidth=2, color=colour, label=split, weights=np.full(len(sides), 100 / max(1, len(sides))))
    for limit, name in ((32, "small | medium"), (96, "medium | large")):
        axis.axvline(limit, color=GREY, linestyle=":")
        axis.text(limit, 1.01, name, transform=axis.get_xaxis_transform(), verticalalignment="bottom", horizontalalignment="center", fontsize=8)
    axis.set_xscale("log")
    axis.set_xticks([4, 8, 16, 32, 64, 96, 200, 400], ["4", "8", "16", "32", "64", "96", "200", "400"])
    axis.minorticks_off()
    axis.set_xlabel("square root of the object's area (pixels)")
    axis.set_ylabel("share of objects (%)")
    axis.legend()
    return figure


def batch_grid(images: np.ndarray, boxes_xyxy: list[np.ndarray], names: list[list[str]], titles: list[str]) -> Figure:
    """A batch drawn back from its tensors: uint8 [B, H, W, 3] with padding, boxes in pixels of each photo without padding."""
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
        axes[2 * k + 1].add_patch(Rectangle((0, 0), 1, 1, transform=axes[2 * k + 1].transAxes, fill=False, color=GREY))  # white on white
    return figure


def schedule(steps: np.ndarray, rates: dict[str, np.ndarray]) -> Figure:
    """Learning rates over the optimizer steps, a line per parameter group."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axis = figure.subplots()
    for (name, values), colour, style in zip(rates.items(), (BLUE, ORANGE, PURPLE), ("-", "--", ":")):
        axis.plot(steps, values, color=colour, linestyle=style, linewidth=2, label=name)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("learning rate")
    axis.set_yscale("log")
    axis.set_ylim(max(max(v.max() for v in rates.values()) * 1e-4, 1e-9))
    axis.legend()
    return figure


def loss_curves(losses: pd.DataFrame, epochs: pd.DataFrame | None = None) -> Figure:
    """Every loss part over the steps (smoothed; log scale) with validation's at the ends of epochs, and AP over epochs."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    parts = [name for name in losses if name.startswith("loss")]
    window = max(1, len(losses) // 30)
    for name, colour in zip(parts, (("#000000", BLUE, ORANGE, SKY, PURPLE, GREY))):
        smooth = losses[name].rolling(window, min_periods=1).mean()
        left.plot(losses["step"], smooth, color=colour, linewidth=1.6, label=name.removeprefix("loss_") if name != "loss" else "total")
        if name not in ("loss", "loss_auxiliary") and epochs is not None and f"val_{name}" in epochs:  # no denoising in validation
            left.plot(epochs["step"], epochs[f"val_{name}"], "o", color=colour, markersize=5, markeredgecolor="white")
    left.set_yscale("log")
    left.set_xlabel(f"optimizer step (mean of {window}; dots: validation)")
    left.set_ylabel("weighted loss")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False, "fontsize": 8}  # never on a curve
    left.legend(ncols=6, columnspacing=1.2, **above)
    if epochs is not None and len(epochs):
        right.plot(epochs["epoch"], epochs["mAP50"], "s--", color=ORANGE, label="AP50")
        right.plot(epochs["epoch"], epochs["mAP"], "o-", color=BLUE, label="AP")
        right.set_ylim(0, min(1, max(0.05, epochs["mAP50"].max() * 1.15)))
        right.xaxis.get_major_locator().set_params(integer=True)
        right.legend(ncols=2, **above)
    right.set_xlabel("epoch")
    right.set_ylabel("validation average precision")
    return figure


def step_breakdown(breakdown: pd.DataFrame) -> Figure:
    """Milliseconds of a training step by named range, from :mod:`helpers.profiling`."""
    figure = Figure(figsize=(8, 0.42 * len(breakdown) + 0.9), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(breakdown["range"], breakdown["ms"], color=BLUE)
    axis.bar_label(bars, [f"{ms:.0f} ms, {share:.0%}" for ms, share in zip(breakdown["ms"], breakdown["share"])], fontsize=8, padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    axis.set_xlabel("milliseconds per step")
    return figure


def before_after(pairs: list[tuple[np.ndarray, np.ndarray, list[str]]], titles: list[str]) -> Figure:
    """Versions of one photo side by side: (image, boxes_xyxy, class names) each."""
    figure, axes = _grid(len(pairs), columns=min(4, len(pairs)))
    for axis, (image, boxes, names), title in zip(axes, pairs, titles):
        show_boxes(axis, image, boxes, names, title)
    return figure


def attention(image: np.ndarray, queries: list, classes: tuple[str, ...]) -> Figure:
    """Where queries look (:mod:`helpers.attention`): a column each, above the decoder's first layer, below its last one.

    Bright is much attention: a map over the whole photo, or dots where the model reads single points.
    """
    height, width = image.shape[:2]
    columns = max(1, len(queries))
    figure = Figure(figsize=(3.4 * columns, 6.5 * height / width + 0.4), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    dim = 30 + image.mean(axis=2) * 0.6  # grey and dark, so that the marks are seen
    for k, query in enumerate(queries):
        for layer, axis in enumerate(axes[:, k]):
            axis.imshow(dim, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
            strength = query.weights[layer] / max(query.weights[layer].max(), 1e-12)
            if query.grid:
                heat = strength.reshape(query.grid)
                axis.imshow(heat, cmap="inferno", alpha=np.sqrt(heat) * 0.75, extent=(0, width, height, 0), interpolation="nearest")
            else:
                rising = strength.argsort()  # the strongest on top
                x, y = (query.points[layer][rising] * (width, height)).T
                axis.scatter(x, y, s=4 + 70 * strength[rising], c=strength[rising], cmap="plasma", vmin=0, vmax=1, linewidths=0)
            _predicted(axis, query.box_xyxy * (width, height, width, height))
            axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axes[0, k].set_title(f"{classes[query.label]} {query.score:.2f}", fontsize=10, parse_math=False)
    for axis, name in zip(axes[:, 0], ("first decoder layer", "last decoder layer")):
        axis.set_ylabel(name, fontsize=10)
    return figure


def _predicted(axis, box_xyxy: np.ndarray) -> None:
    """A predicted box: red dashes on a thin white line."""
    x0, y0, x1, y1 = box_xyxy
    for colour, style, line in (("white", "-", 0.8), (PREDICTED, "--", 1.8)):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, linestyle=style, linewidth=line))
