"""Figures of the evaluation; each function returns a matplotlib figure."""

import io

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from helpers.evaluate.bootstrap import RECALLS
from helpers.evaluate.comparison import Result
from helpers.evaluate.curves import Operating, precision_recall
from helpers.pictures.charts import chart, heat_map, panels, plain
from helpers.pictures.colours import BLUE, GREEN, GREY, VERMILLION
from helpers.pictures.grids import sheet, tile

PANELS = 12  # classes with a panel or row of their own; more would not be legible
UNIT = {"xlim": (0, 1), "ylim": (0, 1.03)}  # of fractions


def pr_figure(start: Result, result: Result) -> Figure:
    """Precision against recall at IoU 0.5, a panel per class (the most frequent): start dashed, result solid."""
    counts = result.matches.truth.sum(axis=0)
    classes = sorted(np.argsort(-counts, kind="stable")[:PANELS].tolist())
    columns = min(4, len(classes))
    rows = -(-len(classes) // columns)
    figure, axes = panels(11, 2.5 * rows + 0.7, rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax, k in zip(axes.flat, classes):
        for each, style, colour, width in ((start, "--", GREY, 1.4), (result, "-", BLUE, 2.0)):
            ax.plot(RECALLS, precision_recall(each.matches, k), style, color=colour, linewidth=width, label=each.name)
        numbers = f"AP50 {start.per_class['AP50'][k]:.2f} → {result.per_class['AP50'][k]:.2f}"
        numbers = numbers if counts[k] else "no ground truth"
        ax.set_title(f"{plain(result.matches.classes[k])} ({counts[k]:,})\n{numbers}", fontsize=10)
        ax.set(**UNIT)
        ax.grid(alpha=0.3)
    for ax in axes.flat[len(classes) :]:
        ax.axis("off")
    for ax in axes.flat[max(len(classes) - columns, 0) : len(classes)]:  # the lowest panel of each column
        ax.tick_params(labelbottom=True)
    figure.supxlabel("recall", fontsize=11)
    figure.supylabel("precision", fontsize=11)
    hidden = len(counts) - len(classes)
    rest = f"; {hidden} rarer classes are not shown" if hidden else ""
    figure.suptitle(f"Precision and recall at IoU 0.5, by class (number of objects){rest}", fontsize=12)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=10)
    return figure


def class_ap_figure(table: pd.DataFrame, start: str, name: str) -> Figure:
    """AP of each class before (ring) and after (dot with its 95 % interval); ``table`` of ``per_class_table``."""
    shown = table[table["AP"] >= 0].sort_values("AP").tail(40)
    figure, ax = chart(9, 1.3 + 0.32 * max(len(shown), 2), ylim=(-0.6, max(len(shown), 1) - 0.4))
    at = np.arange(len(shown))
    ax.hlines(at, shown["AP_low"], shown["AP_high"], color=BLUE, linewidth=2)
    ax.plot(shown["AP"], at, "o", color=BLUE, label=f"{name}, with its 95 % interval")
    ax.plot(shown["AP_start"], at, "o", markerfacecolor="none", markeredgecolor=VERMILLION, markersize=8, label=start)
    rows = zip(shown["class"], shown["instances"], shown["photos"])
    ax.set_yticks(at, [f"{plain(name)} ({objects:,} in {photos:,})" for name, objects, photos in rows])
    ax.set(xlabel="AP (mean of IoU 0.50 to 0.95)", ylabel="class (objects in photos)", xlim=(0, None))
    ax.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def score_figure(curves: pd.DataFrame, best: Operating) -> Figure:
    """Precision, recall and F1 against the score threshold, the best one marked; of ``score_curves``."""
    words = {"xlabel": "score threshold: boxes with a lower score are not shown"}
    figure, ax = chart(9, 3.8, ylabel="fraction (all classes, IoU 0.5)", **words, **UNIT)
    for name, style, colour in (("precision", "-", BLUE), ("recall", "--", VERMILLION), ("F1", "-.", GREEN)):
        ax.plot(curves["threshold"], curves[name], style, color=colour, linewidth=2, label=name)
    ax.axvline(best.threshold, color=GREY, linewidth=1)
    ax.plot(best.threshold, best.f1, "o", color="black")
    point = f"best F1 {best.f1:.2f} at a score of {best.threshold:.2f}"
    ax.set_title(f"{point}: precision {best.precision:.2f}, recall {best.recall:.2f}", fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def reliability_figure(bins: pd.DataFrame, error: float) -> Figure:
    """Accuracy against confidence, and how many detections each score bin holds; of ``reliability``."""
    figure, (left, right) = panels(9, 3.8, 1, 2)
    filled, width = bins[bins["count"] > 0], bins["high"] - bins["low"]
    left.plot([0, 1], [0, 1], "--", color=GREY, label="perfectly calibrated")
    blue = {"color": BLUE, "alpha": 0.35, "edgecolor": BLUE}
    left.bar(filled["low"], filled["accuracy"], width=width[filled.index], align="edge", **blue)
    left.plot(filled["confidence"], filled["accuracy"], "o-", color=BLUE, label="this detector")
    left.set(xlabel="mean score of the bin", ylabel="fraction that is right (IoU 0.5)", **UNIT)
    left.set_title(f"expected calibration error {error:.3f}")
    left.legend(loc="upper left")
    right.bar(bins["low"], bins["count"], width=width, align="edge", color=GREY, edgecolor="white")
    right.set(yscale="log" if len(filled) else "linear", xlim=(0, 1), ylim=(0.7, None))
    right.set(xlabel="score", ylabel="detections (logarithmic)", title="how many detections each bin holds")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    return figure


def confusion_figure(matrix: pd.DataFrame, threshold: float) -> Figure:
    """The confusion matrix of ``confusion``: colour is the part of the row, the number is the count (up to 15 classes).

    Of many classes the 20 most frequent are shown, the others together.
    """
    matrix = _largest(matrix, 20)
    counts, n = matrix.to_numpy(), len(matrix)
    side = min(4.2 + 0.45 * n, 12)
    figure, ax = panels(side + 0.8, side)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = heat_map(ax, share, lambda i, j: f"{counts[i, j]:,}" if n <= 16 and counts[i, j] else "", aspect="equal")
    names = [plain(name) for name in matrix.index[:-1]]
    ax.set_xticks(range(n), [*names, "(missed)"], rotation=60, ha="right", rotation_mode="anchor", fontsize=10)
    ax.set_yticks(range(n), [*names, "(no object left)"], fontsize=10)
    ax.axhline(n - 1.5, color="black", linewidth=1)
    ax.axvline(n - 1.5, color="black", linewidth=1)
    ax.set(xlabel="predicted", ylabel="ground truth")
    ax.set_title(f"predictions with a score of {threshold:.2f} or more, IoU 0.5")
    figure.colorbar(image, label="part of the row", shrink=0.7)
    return figure


def _largest(matrix: pd.DataFrame, most: int) -> pd.DataFrame:
    """The ``most`` classes with the largest rows and background; the rest summed as "other classes"."""
    k = len(matrix) - 1
    if k <= most + 1:
        return matrix
    counts = matrix.to_numpy()
    keep = np.sort(np.argsort(-counts[:k].sum(axis=1), kind="stable")[:most])
    group = np.full(k + 1, most)
    group[keep], group[k] = np.arange(most), most + 1
    total = np.zeros((most + 2, most + 2), dtype=counts.dtype)
    np.add.at(total, (group[:, None], group[None, :]), counts)
    names = [*matrix.index[keep], "other classes", matrix.index[k]]
    return pd.DataFrame(total, index=names, columns=names)


def price_figure(table: pd.DataFrame) -> Figure:
    """mAP against time and against size, a dot per run; ``table`` of ``price_table``. Filled: worth their time."""
    figure, axes = panels(11, 4.2, 1, 2, sharey=True)
    for ax, column, label in zip(axes, ("ms", "parameters"), ("milliseconds a photo", "million parameters")):
        for run, row in table.iterrows():
            ax.plot(row[column], row["mAP"], "o", color=BLUE, markersize=8, fillstyle="full" if row["best"] else "none")
            ax.annotate(plain(run), (row[column], row["mAP"]), xytext=(7, 5), textcoords="offset points", fontsize=9)
        ax.set_xlim(0, table[column].max() * 1.35)
        ax.set_xlabel(label)
        ax.grid(alpha=0.3)
    axes[0].set(ylabel="mAP", ylim=(0, max(table["mAP"].max() * 1.15, 0.01)))
    figure.suptitle("What AP costs: filled dots are runs that no other one beats in less time", fontsize=12)
    return figure


def contact_sheet(pictures: list[tuple[str, bytes]]) -> Figure:
    """Pictures (caption, JPEG), two in a line: what the exported page shows in place of a slider."""
    tiles = []
    for text, data in pictures:
        photo = Image.open(io.BytesIO(data))
        photo.thumbnail((540, 540), Image.Resampling.LANCZOS)
        tiles.append(tile(photo, text, 540, 13))
    return sheet(tiles, columns=2)
