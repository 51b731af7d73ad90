"""Figures of notebook 03. Each function returns a matplotlib figure."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from helpers.pictures.charts import chart, panels
from helpers.pictures.colours import BLUE, GREY, ORANGE, PREDICTED, PURPLE, SKY


def schedule(steps: np.ndarray, rates: dict[str, np.ndarray]) -> Figure:
    """Learning rates over the optimizer steps, a line per parameter group."""
    figure, axis = chart(8, 2.8, xlabel="optimizer step", ylabel="learning rate", yscale="log")
    for (name, values), colour, style in zip(rates.items(), (BLUE, ORANGE, PURPLE), ("-", "--", ":")):
        axis.plot(steps, values, color=colour, linestyle=style, linewidth=2, label=name)
    axis.set_ylim(max(max(v.max() for v in rates.values()) * 1e-4, 1e-9))
    axis.legend()
    return figure


def loss_curves(losses: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    """Loss parts over the steps (smoothed; log scale), validation's at the ends of epochs, and AP over epochs."""
    figure, (left, right) = panels(10, 3.6, 1, 2, width_ratios=(3, 2))
    parts = [name for name in losses if name.startswith("loss") and losses[name].any()]  # not those switched off
    window = max(1, len(losses) // 30)
    smooth = losses[parts].rolling(window, min_periods=1).mean()
    for name, colour in zip(parts, ("black", BLUE, ORANGE, SKY, PURPLE, GREY)):
        label = name.removeprefix("loss_") if name != "loss" else "total"
        left.plot(losses["step"], smooth[name], color=colour, linewidth=1.6, label=label)
        if name not in ("loss", "loss_auxiliary") and f"val_{name}" in epochs:  # no denoising in validation
            left.plot(epochs["step"], epochs[f"val_{name}"], "o", color=colour, markersize=5, markeredgecolor="white")
    steps = f"optimizer step (mean of {window}; dots: validation)"
    left.set(yscale="log", xlabel=steps, ylabel="weighted loss")
    left.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False, "fontsize": 8}  # never on a curve
    left.legend(ncols=6, columnspacing=1.2, **above)
    if len(epochs):
        right.plot(epochs["epoch"], epochs["mAP50"], "s--", color=ORANGE, label="AP50")
        right.plot(epochs["epoch"], epochs["mAP"], "o-", color=BLUE, label="AP")
        right.set_ylim(0, min(1, max(0.05, epochs["mAP50"].max() * 1.15)))
        right.xaxis.get_major_locator().set_params(integer=True)
        right.legend(ncols=2, **above)
    right.set(xlabel="epoch", ylabel="validation average precision")
    return figure


def step_breakdown(breakdown: pd.DataFrame) -> Figure:
    """Milliseconds of a training step by named range, from :mod:`helpers.train.profiling`."""
    figure, axis = chart(8, 0.42 * len(breakdown) + 0.9, xlabel="milliseconds per step")
    bars = axis.barh(breakdown["range"], breakdown["ms"], color=BLUE)
    words = [f"{ms:.0f} ms, {share:.0%}" for ms, share in zip(breakdown["ms"], breakdown["share"])]
    axis.bar_label(bars, words, fontsize=8, padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.18)
    return figure


def attention(image: np.ndarray, queries: list, classes: tuple[str, ...]) -> Figure:
    """Where queries look (:mod:`helpers.train.attention`): a column each, first decoder layer above, last one below.

    Bright is much attention: a map over the whole photo, or dots where the model reads single points.
    """
    height, width = image.shape[:2]
    whole = {"extent": (0, width, height, 0)}
    columns = max(1, len(queries))
    figure, axes = panels(3.4 * columns, 6.5 * height / width + 0.4, 2, columns, squeeze=False)
    dim = 30 + image.mean(axis=2) * 0.6  # grey and dark, so that the marks are seen
    for k, query in enumerate(queries):
        for layer, axis in enumerate(axes[:, k]):
            axis.imshow(dim, cmap="gray", vmin=0, vmax=255, **whole)
            strength = query.weights[layer] / max(query.weights[layer].max(), 1e-12)
            if query.grid:
                heat = strength.reshape(query.grid)
                axis.imshow(heat, cmap="inferno", alpha=np.sqrt(heat) * 0.75, interpolation="nearest", **whole)
            else:
                rising = strength.argsort()  # the strongest on top
                x, y = (query.points[layer][rising] * (width, height)).T
                strength = strength[rising]
                axis.scatter(x, y, s=4 + 70 * strength, c=strength, cmap="plasma", vmin=0, vmax=1, linewidths=0)
            x0, y0, x1, y1 = query.box_xyxy * (width, height, width, height)
            for colour, style, line in (("white", "-", 0.8), (PREDICTED, "--", 1.8)):  # red dashes on a thin white line
                look = {"fill": False, "color": colour, "linestyle": style, "linewidth": line}
                axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **look))
            axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axes[0, k].set_title(f"{classes[query.label]} {query.score:.2f}", fontsize=10, parse_math=False)
    for axis, name in zip(axes[:, 0], ("first decoder layer", "last decoder layer")):
        axis.set_ylabel(name, fontsize=10)
    return figure
