"""Figures of synthetic data and of the experiment; each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from helpers.boxes import xywh_to_xyxy
from helpers.dataset import read_image
from helpers.index import CocoIndex
from helpers.pictures.charts import heat_map, panels
from helpers.pictures.colours import BLUE, GREY, ORANGE, PURPLE, SKY
from helpers.pictures.grids import before_after
from helpers.scenes.compositor import Layer, Sprite
from helpers.synthetic_data.arms import ARMS
from helpers.synthetic_data.copy_paste import Context, CopyPaste
from helpers.synthetic_data.offline import Synthetic
from helpers.synthetic_data.probe import Probe

COLOURS = (BLUE, ORANGE, SKY, PURPLE)
CLASSES = 20  # the most frequent ones get a bar or a row; more would not be legible


def things(copy_paste: CopyPaste, made: Synthetic) -> list[Layer]:
    """What is annotated in a synthetic photo, as far as it is seen, what was pasted last."""
    segmentations, (height, width) = copy_paste.segmentations, made.pasted.image.shape[:2]
    seen = made.pasted.seen(segmentations.index.rows(made.background, crowd=False))
    there = [layer or segmentations.layer(row, made.background, height, width) for row, layer in seen.items()]
    return there + made.pasted.layers


def with_masks(image: np.ndarray, layers: Sequence[Layer]) -> np.ndarray:
    """A copy of a photo, uint8 [H, W, 3], with the masks laid over it in four colours, one after the other."""
    shown = image.astype(np.float32)
    for k, layer in enumerate(layers):
        mask, colour = layer.whole_mask(*image.shape[:2]), 255 * np.array(to_rgb(COLOURS[k % len(COLOURS)]), np.float32)
        shown[mask] = 0.6 * shown[mask] + 0.4 * colour
    return shown.astype(np.uint8)


def _picture(index: CocoIndex, image: np.ndarray, boxes: Sequence[Layer], masks: Sequence[Layer]) -> tuple:
    """An image as ``before_after`` wants it: ``boxes`` and classes of some layers, over the ``masks`` of some."""
    name = lambda label: label.name if isinstance(label, Sprite) else index.classes[index.labels[label]]
    boxes_xyxy = xywh_to_xyxy(np.array([layer.bbox for layer in boxes], float).reshape(-1, 4))
    return with_masks(image, masks), boxes_xyxy, [name(layer.label) for layer in boxes]


def page(copy_paste: CopyPaste, photos: Sequence[Synthetic], titles: Sequence[str] = ()) -> Figure:
    """Synthetic photos with boxes of what is annotated, and masks of what was pasted."""
    index, pictures = copy_paste.segmentations.index, []
    for made in photos:
        pictures.append(_picture(index, made.pasted.image, things(copy_paste, made), made.pasted.layers))
    return before_after(pictures, list(titles) or [f"number {made.number}" for made in photos])


def steps(copy_paste: CopyPaste, made: Synthetic) -> Figure:
    """How a synthetic photo comes about: a source with its mask, the cut-out, the background, the paste, the labels."""
    segmentations, index, pasted = copy_paste.segmentations, copy_paste.segmentations.index, made.pasted.layers
    photo = lambda i: read_image(index.path(i), int(index.heights[i]), int(index.widths[i]))
    layer = max(pasted, key=lambda each: each.visible)
    source, row = layer.label.base
    whole, before, after = photo(source), photo(made.background), made.pasted.image
    cut = segmentations.layer(row, source, *whole.shape[:2])
    rgba = layer.label.rgba.astype(np.float32)
    squares = 180 + 50.0 * ((np.indices(rgba.shape[:2]) // 8).sum(axis=0)[..., None] % 2)
    clear = (rgba[..., :3] + squares * (1 - rgba[..., 3:] / 255)).astype(np.uint8)
    there = [segmentations.layer(r, made.background, *before.shape[:2]) for r in index.rows(made.background, False)]
    seen = things(copy_paste, made)
    parts = {  # image, layers with boxes, layers with masks
        "another photo, an object's mask": (whole, [cut], [cut]),
        "the object, cut out, its edge soft": (clear, [], []),
        "the photo to paste on": (before, there, []),
        "the masks of its own objects": (before, there, there),
        "with objects pasted": (after, [], []),
        "what was pasted, with masks": (after, pasted, pasted),
        "all masks: only what is seen": (after, [], seen),
        "the labels to learn from": (after, seen, []),
    }
    pictures = [_picture(index, *part) for part in parts.values()]
    return before_after(pictures, [f"{k}. {title}" for k, title in enumerate(parts, start=1)])


def statistics(indices: dict[str, CocoIndex]) -> Figure:
    """Classes, sizes and objects a photo of two sets side by side, crowd regions not counted; shares in percent."""
    figure, (classes, sizes, counts) = panels(12, 3.8, 1, 3, width_ratios=(1.3, 1, 1))
    first = next(iter(indices.values()))
    order = np.argsort(-np.bincount(first.labels[~first.iscrowd], minlength=len(first.classes)))[:CLASSES]
    for k, ((name, index), colour) in enumerate(zip(indices.items(), (BLUE, ORANGE))):
        labels, photos = index.labels[~index.iscrowd], np.repeat(np.arange(len(index)), np.diff(index.starts))
        share = 100 * np.bincount(labels, minlength=len(index.classes)) / max(1, len(labels))
        classes.barh(np.arange(len(order)) + (k - 0.5) * 0.4, share[order], height=0.38, color=colour, label=name)
        each = {"histtype": "step", "linewidth": 2, "color": colour}
        side = np.sqrt(np.maximum(index.areas[~index.iscrowd], 1))
        sizes.hist(side, np.geomspace(4, 800, 40), weights=np.full(len(side), 100 / max(1, len(side))), **each)
        objects = np.bincount(photos[~index.iscrowd], minlength=len(index))
        counts.hist(objects, np.arange(-0.5, 31), weights=np.full(len(objects), 100 / max(1, len(objects))), **each)
    classes.set_yticks(np.arange(len(order)), [first.classes[k] for k in order], parse_math=False)
    classes.invert_yaxis()
    classes.set_xlabel("% of the objects")
    classes.legend()
    sizes.set(xscale="log", xlabel="square root of the area (pixels)", ylabel="% of the objects")
    sizes.set_xticks([8, 16, 32, 96, 200, 400], ["8", "16", "32", "96", "200", "400"])
    sizes.minorticks_off()
    counts.set(xlabel="objects in a photo", ylabel="% of the photos")
    return figure


def co_occurrence(indices: dict[str, CocoIndex]) -> Figure:
    """How often photos that show the row's class show the column's class as well, in percent."""
    first = next(iter(indices.values()))
    order = np.argsort(-np.bincount(first.labels, minlength=len(first.classes)))[:CLASSES]
    names = [first.classes[k] for k in order]
    figure, axes = panels(12, 1.6 + 0.34 * len(order), 1, 2)
    for axis, (name, index) in zip(axes, indices.items()):
        together = 100 * Context.of(index).together[np.ix_(order, order)]
        heat_map(axis, together, lambda r, c, values=together: f"{values[r, c]:.0f}", most=100)
        axis.set(title=name, xlabel="show this class too, %", ylabel="photos with this class")
        axis.set_xticks(np.arange(len(order)), names, rotation=60, ha="right", parse_math=False)
        axis.set_yticks(np.arange(len(order)), names, parse_math=False)
    return figure


def probe_figure(found: Probe, control: Probe) -> Figure:
    """Scores of photos that the probe has not learnt from, and its accuracy beside the control's."""
    figure, (left, right) = panels(10, 3, 1, 2, width_ratios=(2, 1))
    bins = np.linspace(found.scores.min(), found.scores.max(), 31)
    for truth, name, colour in ((False, "real", BLUE), (True, "synthetic", ORANGE)):
        left.hist(found.scores[found.synthetic == truth], bins, color=colour, alpha=0.6, label=name)
    left.axvline(0, color=GREY, linestyle=":")
    left.set(xlabel="taken for real  ←  score  →  taken for synthetic", ylabel="photos")
    left.legend()
    for y, each in enumerate((found, control)):
        low, high = each.interval
        right.plot([low, high], [y, y], color=BLUE, linewidth=2)
        right.plot(each.accuracy, y, "o", color=BLUE)
    right.axvline(0.5, color=GREY, linestyle=":")
    right.set(xlim=(0, 1), ylim=(1.5, -0.5), xlabel="accuracy, 95 %")
    right.set_yticks([0, 1], ["synthetic or real", "real or real (control)"])
    return figure


def effects_figure(effects: pd.DataFrame, groups: Sequence[str] = ("all", "small", "medium", "large")) -> Figure:
    """AP of each arm minus that of real photos alone, with its 95 % interval: a panel per group of objects."""
    rows = list(dict.fromkeys(zip(effects["arm"], effects["share"])))
    groups = [group for group in groups if effects.loc[effects["group"] == group, "value"].notna().any()]
    columns = min(4, max(1, len(groups)))
    lines = -(-max(1, len(groups)) // columns)
    size, shared = (2.3 * columns + 2.6, lines * (1.2 + 0.3 * max(2, len(rows)))), {"sharex": True, "sharey": True}
    figure, axes = panels(*size, lines, columns, squeeze=False, **shared)
    titles = [f"{ARMS[arm].title}\n{100 * share:g} % of the real photos" for arm, share in rows]
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, group in zip(axes.flat, groups):
        part = effects[effects["group"] == group].set_index(["arm", "share"])
        for y, key in enumerate(rows):
            row = part.loc[key]
            sure = row["low"] > 0 or row["high"] < 0
            colour = (BLUE if row["value"] > 0 else ORANGE) if sure else GREY
            axis.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
            axis.plot(row["value"], y, "o", color=colour)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(group, fontsize=10, parse_math=False)
        axis.set_yticks(range(len(rows)), titles, fontsize=8)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", alpha=0.3)
        axis.xaxis.get_major_locator().set_params(nbins=5)
    for axis in axes.flat[max(len(groups) - columns, 0) : len(groups)]:  # the lowest panel of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel("AP minus AP with real photos only; grey: the interval holds 0", fontsize=10)
    return figure


def shares_figure(table: pd.DataFrame) -> Figure:
    """mAP against the share of the real photos: a dot per run, a line through the means of an arm."""
    figure, axis = panels(7, 3.6)
    for arm, colour in zip(dict.fromkeys(table["arm"]), (GREY, *COLOURS)):
        part = table[table["arm"] == arm]
        mean = part.groupby("share")["mAP"].mean()
        axis.plot(100 * mean.index, mean, color=colour, label=ARMS[arm].title)
        axis.plot(100 * part["share"], part["mAP"], "o", color=colour, markersize=4)
    axis.set(xlabel="% of the real photos", ylabel="mAP")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    return figure
