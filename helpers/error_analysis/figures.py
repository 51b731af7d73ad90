"""Charts of the error analysis.

Each function returns a matplotlib figure, which says so if there is nothing to show.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

COLOURS = {
    "found": "#009E73",
    "classification": "#0072B2",
    "localization": "#E69F00",
    "both": "#CC79A7",
    "duplicate": "#56B4E9",
    "background": "#8C8C8C",
    "missed": "#D55E00",
}  # Okabe and Ito's, and a grey


def _plain(name: str) -> str:
    """A class name between dollar signs is not a formula."""
    return name.replace("$", r"\$")


def note(text: str) -> Figure:
    """A figure that holds one sentence."""
    figure = Figure(figsize=(9, 1.0), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12)
    return figure


def type_bars(counts: pd.DataFrame) -> Figure:
    """Errors of each type, and what AP50 would gain without them; ``counts`` as from ``Analysis.counts``."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    points = 100 * counts["AP50 to gain"]
    for ax, values, form, label in (
        (axes[0], counts["at the threshold"], "{:.0f}", "errors at the threshold"),
        (axes[1], points, "{:.1f}", "AP50 to gain, in points (1 point = 0.01)"),
    ):
        bars = ax.barh(counts.index, values, color=[COLOURS[name] for name in counts.index])
        ax.bar_label(bars, [form.format(v) for v in values], padding=3, fontsize=10)
        ax.set(xlabel=label, xlim=(0, max(float(values.max()), 1e-9) * 1.15))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("type of error")
    return figure


def gain_by_class(ap: pd.DataFrame, types: dict[str, str], most: int = 20) -> Figure:
    """Points of AP50 that each class would gain from mending each type; the ``most`` classes with the largest sums."""
    gain = 100 * ap[list(types.values())].sub(ap["AP50"], axis=0).dropna()
    if not len(gain):
        return note("Nothing to show: no class has objects or predictions.")
    gain = gain.loc[gain.sum(axis=1).sort_values(ascending=False, kind="stable").index[:most]]
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(gain)), layout="constrained")
    ax = figure.subplots()
    limit = max(float(gain.to_numpy().max()), 1.0)
    image = ax.imshow(gain, cmap="Blues", aspect="auto", vmin=0, vmax=limit)
    for (r, c), value in np.ndenumerate(gain.to_numpy()):
        ax.text(
            c,
            r,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if value > 0.6 * limit else "black",
        )
    ax.set_xticks(range(len(types)), types)
    ax.set_yticks(range(len(gain)), [f"{_plain(name)} (AP50 {100 * ap.loc[name, 'AP50']:.0f})" for name in gain.index])
    ax.set(xlabel="type of error that an oracle mends", ylabel="class")
    figure.colorbar(image, label="points of AP50 to gain")
    return figure


def trait_panels(groups: pd.DataFrame) -> Figure:
    """Recall (with its 95 % interval) and precision by trait; ``groups`` as from ``group_table``."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for ax, (trait, part) in zip(axes.flat, groups.groupby("trait", sort=False)):
        if trait == "position":
            _position_map(ax, part)
            continue
        at = np.arange(len(part))
        recall = part["recall"].to_numpy(float)
        spread = np.abs(np.array([recall - part["recall_low"], part["recall_high"] - recall], dtype=float))
        both = part["precision"].notna().any()
        ax.bar(
            at - 0.2 * both,
            recall,
            0.38,
            color="#0072B2",
            yerr=np.nan_to_num(spread),
            capsize=3,
            label="recall, 95 % interval",
        )
        if both:
            ax.bar(at + 0.2, part["precision"], 0.38, color="#E69F00", label="precision")
        ax.set_xticks(at, [f"{group}\n(n = {n})" for group, n in zip(part["group"], part["objects"])], fontsize=9)
        ax.set(
            title=trait,
            xlim=(-0.6, len(part) - 0.4),
            ylim=(0, 1.02),
            ylabel="fraction",
            xlabel="annotated objects of the group (n)",
        )
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def _position_map(ax, part: pd.DataFrame) -> None:
    recall = part["recall"].to_numpy(float).reshape(3, 3)
    ax.imshow(recall, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (r, c), value in np.ndenumerate(recall):
        n = int(part["objects"].to_numpy()[3 * r + c])
        ax.text(
            c,
            r,
            f"{value:.0%}\nn = {n}" if n else "n = 0",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if value > 0.6 else "black",
        )
    ax.set_xticks(range(3), ["left", "centre", "right"])
    ax.set_yticks(range(3), ["top", "middle", "bottom"])
    ax.set(title="position: recall", xlabel="where the box's centre is", ylabel="in the photo")


def outcome_bars(objects: pd.DataFrame, most: int = 15) -> Figure:
    """What became of the annotated objects, by size and by class (the ``most`` frequent ones)."""
    if not len(objects):
        return note("Nothing to show: no object is annotated.")
    classes = objects["class"].value_counts().index[:most]
    figure = Figure(figsize=(11, 1.9 + 0.28 * len(classes)), layout="constrained")
    axes = figure.subplots(1, 2)
    frequent = objects[objects["class"].isin(classes)]
    for ax, keys, order, label in (
        (axes[0], objects["size"].astype(str), objects["size"].cat.categories, "size"),
        (axes[1], frequent["class"], classes, "class"),
    ):
        outcomes = objects["outcome"].cat.categories
        table = pd.crosstab(keys, objects["outcome"]).reindex(index=order, columns=outcomes, fill_value=0)
        share = table.div(table.sum(axis=1).clip(lower=1), axis=0)
        left = np.zeros(len(share))
        for name in share:
            ax.barh(range(len(share)), share[name], 0.7, left=left, color=COLOURS[name], label=name, edgecolor="white")
            left += share[name].to_numpy()
        ax.set_yticks(range(len(share)), [f"{_plain(key)} (n = {n})" for key, n in zip(order, table.sum(axis=1))])
        ax.set(xlim=(0, 1), xlabel="fraction of the annotated objects", ylabel=label)
        ax.invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def size_curve(table: pd.DataFrame) -> Figure:
    """Recall against sqrt(area); ``table`` as from ``recall_by_size``."""
    if not len(table):
        return note("Nothing to show: no object is annotated.")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    ax = figure.subplots()
    spread = np.abs(np.array([table["recall"] - table["recall_low"], table["recall_high"] - table["recall"]]))
    ax.errorbar(table["side"], table["recall"], yerr=spread, fmt="o-", color="#0072B2", capsize=3)
    for edge, name in ((32, "small | medium"), (96, "medium | large")):
        ax.axvline(edge, color="black", linestyle=":", linewidth=1)
        ax.annotate(name, (edge, 1.03), xycoords=("data", "axes fraction"), ha="center", fontsize=9)
    ticks = [
        t
        for t in (4, 8, 16, 32, 64, 96, 128, 256, 512, 1024)
        if table["side"].min() / 2 <= t <= table["side"].max() * 2
    ]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set(
        ylim=(0, 1.02),
        xlabel="sqrt(area) of the object, pixels of the original photo (log scale)",
        ylabel="recall, 95 % interval",
    )
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def pair_bars(pairs: pd.DataFrame, most: int = 12) -> Figure:
    """The ``most`` frequent confusions; ``pairs`` as from ``confused_pairs``."""
    if not len(pairs):
        return note("Nothing to show: no object was taken for another class.")
    pairs = pairs.head(most)
    figure = Figure(figsize=(9, 1.2 + 0.3 * len(pairs)), layout="constrained")
    ax = figure.subplots()
    names = [f"{_plain(a)} taken for {_plain(b)}" for a, b in zip(pairs["class"], pairs["predicted_class"])]
    bars = ax.barh(names, pairs["errors"], color=COLOURS["classification"])
    texts = [f"{n}  (mean score {s:.2f})" for n, s in zip(pairs["errors"], pairs["mean_score"])]
    ax.bar_label(bars, texts, padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.set(
        xlabel="classification errors at the threshold",
        ylabel="annotated and predicted class",
        xlim=(0, float(pairs["errors"].max()) * 1.3),
    )
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def schematic(gt: dict, detections: list[dict], errors: pd.DataFrame) -> Figure:
    """A small COCO document drawn on white: annotations in solid green, detections in dashed red with their type."""
    image, names = gt["images"][0], {c["id"]: c["name"] for c in gt["categories"]}
    types = dict(zip(errors["detection"], errors["type"]))
    missed = set(errors.loc[errors["type"] == "missed", "annotation_id"])
    figure = Figure(figsize=(9, 9 * image["height"] / image["width"]), layout="constrained")
    ax = figure.subplots()
    for a in gt["annotations"]:
        x, y, w, h = a["bbox"]
        ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="#008C3C", linewidth=2.5))
        text = f"{names[a['category_id']]}: missed" if a["id"] in missed else names[a["category_id"]]
        ax.text(
            x, y + h + 12, text, color="#00702F", va="top", fontsize=10
        )  # below the edge of a box that is a little lower
    for k, d in enumerate(detections):
        x, y, w, h = d["bbox"]
        free = all(abs(x - other["bbox"][0]) + abs(y - other["bbox"][1]) > 50 for other in detections[:k])
        ax.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="#D50000", linewidth=2, linestyle="--"))
        ax.text(
            x + 2,
            y - 3 if free else y + 3,
            f"{names[d['category_id']]} {d['score']:.1f}\n{types.get(k, 'correct')}",
            color="#B00000",
            va="bottom" if free else "top",
            fontsize=10,
        )
    ax.set(xlim=(0, image["width"]), ylim=(image["height"], 0), xlabel="x, pixels", ylabel="y, pixels", aspect="equal")
    return figure
