"""Charts of the error analysis; each returns a matplotlib figure, which says so if there is nothing to show."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from helpers.error_analysis.tide import TYPES
from helpers.pictures.charts import chart, heat_map, note, open_frame, panels, plain, spread
from helpers.pictures.colours import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from helpers.pictures.draw import Box, paint
from helpers.pictures.grids import sheet

COLOURS = dict(zip(("found", *TYPES), (GREEN, BLUE, ORANGE, PURPLE, SKY, GREY, VERMILLION)))


def type_bars(counts: pd.DataFrame) -> Figure:
    """Errors of each type, and what AP50 would gain without them; ``counts`` as from ``Analysis.counts``."""
    figure, axes = panels(10, 3.2, 1, 2, sharey=True)
    for ax, values, form, label in (
        (axes[0], counts["at the threshold"], "{:,.0f}", "errors at the threshold"),
        (axes[1], 100 * counts["AP50 to gain"], "{:.1f}", "AP50 to gain, in points (1 point = 0.01)"),
    ):
        bars = ax.barh(counts.index, values, color=[COLOURS[name] for name in counts.index])
        ax.bar_label(bars, [form.format(v) for v in values], padding=3, fontsize=10)
        open_frame(ax, xlabel=label, xlim=(0, max(float(values.max()), 1e-9) * 1.15))
    axes[0].invert_yaxis()
    axes[0].set_ylabel("type of error")
    return figure


def gain_by_class(ap: pd.DataFrame) -> Figure:
    """Points of AP50 that each class would gain from mending each type; the 20 classes with the largest sums."""
    gain = 100 * ap[list(TYPES.values())].sub(ap["AP50"], axis=0).dropna()
    if not len(gain):
        return note("Nothing to show: no class has objects or predictions.")
    gain = gain.loc[gain.sum(axis=1).sort_values(ascending=False, kind="stable").index[:20]]
    figure, ax = panels(9, 1.6 + 0.32 * len(gain))
    points = gain.to_numpy()
    image = heat_map(ax, points, lambda r, c: f"{points[r, c]:.1f}", max(float(points.max()), 1.0))
    ax.set_xticks(range(len(TYPES)), TYPES)
    ax.set_yticks(range(len(gain)), [f"{plain(name)} (AP50 {100 * ap.loc[name, 'AP50']:.0f})" for name in gain.index])
    ax.set(xlabel="type of error that an oracle mends", ylabel="class")
    figure.colorbar(image, label="points of AP50 to gain")
    return figure


def trait_panels(groups: pd.DataFrame) -> Figure:
    """Recall and precision by trait with their 95 % intervals; ``groups`` as from ``group_table``."""
    figure, axes = panels(11, 6.6, 2, 3)
    for ax, (trait, part) in zip(axes.flat, groups.groupby("trait", sort=False)):
        if trait == "position":
            _position_map(ax, part)
            continue
        at, both = np.arange(len(part)), part["precision"].notna().any()
        _bars(ax, at - 0.2 * both, part, "recall", BLUE)
        counts = [f"{n:,}" for n in part["objects"]]
        if both:
            _bars(ax, at + 0.2, part, "precision", ORANGE)
            counts = [f"{n} | {m:,.0f}" for n, m in zip(counts, part["predictions"])]
        ax.set_xticks(at, [f"{group}\n{n}" for group, n in zip(part["group"], counts)], fontsize=9)
        ax.set(title=trait, xlim=(-0.6, len(part) - 0.4), ylim=(0, 1.02))
        open_frame(ax, ylabel="fraction", xlabel=f"annotated objects{' | predictions' if both else ''} of the group")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _bars(ax, at: np.ndarray, part: pd.DataFrame, name: str, colour: str) -> None:
    bars = spread(part[name], part[f"{name}_low"], part[f"{name}_high"])
    ax.bar(at, part[name], 0.38, color=colour, yerr=bars, capsize=3, label=f"{name}, 95 % interval")


def _position_map(ax, part: pd.DataFrame) -> None:
    recall, n = part["recall"].to_numpy(float).reshape(3, 3), part["objects"].to_numpy().reshape(3, 3)
    heat_map(ax, recall, lambda r, c: f"{recall[r, c]:.0%}\nn = {n[r, c]:,}" if n[r, c] else "n = 0")
    ax.set_xticks(range(3), ["left", "centre", "right"])
    ax.set_yticks(range(3), ["top", "middle", "bottom"])
    ax.set(title="position: recall", xlabel="where the box's centre is", ylabel="in the photo")


def outcome_bars(objects: pd.DataFrame) -> Figure:
    """What became of the annotated objects, by size and by class (the 15 most frequent ones)."""
    if not len(objects):
        return note("Nothing to show: no object is annotated.")
    classes = objects["class"].value_counts().index[:15]
    figure, axes = panels(11, 1.9 + 0.28 * len(classes), 1, 2)
    outcomes = objects["outcome"].cat.categories
    for ax, label, order in zip(axes, ("size", "class"), (objects["size"].cat.categories, classes)):
        some = objects[objects[label].isin(order)]
        table = pd.crosstab(some[label].astype(str), some["outcome"])
        table = table.reindex(index=order, columns=outcomes, fill_value=0)
        share = table.div(table.sum(axis=1).clip(lower=1), axis=0)
        left = np.zeros(len(share))
        for name in share:
            ax.barh(range(len(share)), share[name], 0.7, left=left, color=COLOURS[name], label=name, edgecolor="white")
            left += share[name].to_numpy()
        ax.set_yticks(range(len(share)), [f"{plain(key)} (n = {n:,})" for key, n in zip(order, table.sum(axis=1))])
        ax.set(xlim=(0, 1), xlabel="fraction of the annotated objects", ylabel=label)
        ax.invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def size_curve(table: pd.DataFrame) -> Figure:
    """Recall against sqrt(area); ``table`` as from ``recall_by_size``."""
    if not len(table):
        return note("Nothing to show: no object is annotated.")
    figure, ax = chart(9, 3.6, ylim=(0, 1.02), ylabel="recall, 95 % interval")
    bars = spread(table["recall"], table["recall_low"], table["recall_high"])
    ax.errorbar(table["side"], table["recall"], yerr=bars, fmt="o-", color=BLUE, capsize=3)
    for edge, name in ((32, "small | medium"), (96, "medium | large")):
        ax.axvline(edge, color="black", linestyle=":", linewidth=1)
        ax.annotate(name, (edge, 1.03), xycoords=("data", "axes fraction"), ha="center", fontsize=9)
    ticks = np.array([4, 8, 16, 32, 64, 96, 128, 256, 512, 1024])
    ticks = ticks[(ticks >= table["side"].min() / 2) & (ticks <= table["side"].max() * 2)]
    ax.set_xscale("log")
    ax.set_xticks(ticks, ticks.astype(str))
    ax.minorticks_off()
    ax.set_xlabel("sqrt(area) of the object, pixels of the original photo (log scale)")
    ax.grid(alpha=0.3)
    return figure


def pair_bars(pairs: pd.DataFrame) -> Figure:
    """The twelve most frequent confusions; ``pairs`` as from ``confused_pairs``."""
    if not len(pairs):
        return note("Nothing to show: no object was taken for another class.")
    pairs = pairs.head(12)
    figure, ax = chart(9, 1.2 + 0.3 * len(pairs), xlabel="classification errors at the threshold")
    names = [f"{plain(a)} taken for {plain(b)}" for a, b in zip(pairs["class"], pairs["predicted_class"])]
    bars = ax.barh(names, pairs["errors"], color=COLOURS["classification"])
    texts = [f"{n:,}  (mean score {s:.2f})" for n, s in zip(pairs["errors"], pairs["mean_score"])]
    ax.bar_label(bars, texts, padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.set(ylabel="annotated and predicted class", xlim=(0, float(pairs["errors"].max()) * 1.3))
    ax.xaxis.get_major_locator().set_params(integer=True)
    return figure


def schematic(gt: dict, detections: list[dict], errors: pd.DataFrame) -> Figure:
    """A small COCO document drawn on white: annotations in solid green, detections in dashed red with their type."""
    image, names = gt["images"][0], {c["id"]: c["name"] for c in gt["categories"]}
    types = dict(zip(errors["detection"], errors["type"]))
    missed = set(errors.loc[errors["type"] == "missed", "annotation_id"])
    name = lambda record: names[record["category_id"]]
    boxes = [Box.of(a["bbox"], name(a) + (": missed" if a["id"] in missed else "")) for a in gt["annotations"]]
    for k, d in enumerate(detections):
        boxes.append(Box.of(d["bbox"], f"{name(d)} {d['score']:.1f}, {types.get(k, 'correct')}", True))
    return sheet([paint(Image.new("RGB", (image["width"], image["height"]), "white"), boxes, 2 * image["width"])], 1)
