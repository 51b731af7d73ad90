"""What the charts of several notebooks share."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from helpers.pictures.draw import one_line


def plain(text: object) -> str:
    """A name from a file as a label: one line, and what stands between dollar signs is not a formula."""
    return one_line(str(text), 80).replace("$", r"\$")


def panels(width: float, height: float, rows: int = 1, columns: int = 1, **how) -> tuple[Figure, Axes | np.ndarray]:
    """A figure of so many inches and its axes; ``how`` as in ``Figure.subplots``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **how)


def chart(width: float, height: float, **labels) -> tuple[Figure, Axes]:
    """A figure of one pair of axes without a frame at the top and right; ``labels`` as in ``Axes.set``."""
    figure, ax = panels(width, height)
    open_frame(ax, **labels)
    return figure, ax


def open_frame(ax: Axes, **labels) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.set(**labels)


def note(text: str) -> Figure:
    """A figure that holds one sentence, where there is nothing to show."""
    figure = Figure(figsize=(9, 1.0), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12)
    return figure


def heat_map(ax: Axes, values: np.ndarray, text, most: float = 1.0, aspect: str = "auto") -> AxesImage:
    """``values`` [R, C] from white (0) to dark blue (``most``); ``text(row, column)`` stands in its cell."""
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=most, aspect=aspect)
    for (r, c), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 * most else "black"
        ax.text(c, r, text(r, c), ha="center", va="center", fontsize=9, color=colour)
    return image


def spread(values, low, high) -> np.ndarray:
    """Distances of an interval's ends, [2, n], as matplotlib's error bars want them; 0 where there is no interval."""
    return np.nan_to_num(np.abs(np.array([values - low, high - values], dtype=float)))
