"""What notebook 03 says about its loss curves, and the figure that follows the training."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from helpers.train import sentences
from helpers.train.figures import loss_curves


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would get: ("display" or "update", figure) in order."""
    calls = []

    def display(figure, display_id):
        assert display_id is True  # without it, every call leaves one more figure
        calls.append(("display", figure))
        return SimpleNamespace(update=lambda new: calls.append(("update", new)))

    monkeypatch.setattr("IPython.display.display", display)
    return calls


def run_at(step: int, epochs: int = 0) -> SimpleNamespace:
    losses = [{"step": k + 1, "epoch": 1, "loss": 2.0, "loss_bbox": 1.0, "loss_giou": 1.0} for k in range(step)]
    rows = [{"epoch": k + 1, "step": step, "mAP": 0.4, "mAP50": 0.6} for k in range(epochs)]
    return SimpleNamespace(losses=losses, epochs=rows, step=step, total_steps=60)


def test_one_figure_updates_in_place(shown):
    """A figure per flush fills an executed notebook with a hundred pictures; the last one must hold the last epoch."""
    live = sentences.LiveCurves(every_seconds=0.0)
    for step in (20, 40, 60):
        live(run_at(step))
    live(run_at(60, epochs=2))
    assert [what for what, _ in shown] == ["display", "update", "update", "update"]
    drawn = shown[-1][1].axes[1].lines[0]
    assert list(drawn.get_xdata()) == [1, 2]


def test_figure_does_not_slow_the_training_down(shown):
    """A figure takes a fifth of a second: not at every flush, but always at the end."""
    live = sentences.LiveCurves(every_seconds=1000.0)
    live.shown = sentences.time.monotonic()
    live(run_at(20))
    assert shown == []
    live(run_at(60))
    assert len(shown) == 1


def test_a_run_with_nothing_left_to_train_shows_its_curves(shown):
    """``resume`` of a finished run never flushes."""
    sentences.LiveCurves()(run_at(60, epochs=1))
    assert [what for what, _ in shown] == ["display"]


def table(loss: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {"step": np.arange(1, len(loss) + 1), "loss": loss, "loss_bbox": loss * 0.25, "loss_giou": loss * 0.75}
    )


@pytest.mark.parametrize(
    "loss, words",
    [
        (np.r_[np.linspace(9, 1, 20), np.full(80, 1.0)], "from there the curve is flat"),
        (np.linspace(9, 1, 100), "still falling near the end"),
        (np.linspace(1, 9, 100), "does not fall"),
        (np.array([9.0, 8.0, 8.5]), "3 steps are too few"),
        (2.3 + np.r_[0.2, np.zeros(99)] + np.random.default_rng(0).normal(0, 0.2, 100), "within its noise"),
    ],
    ids=["flattens", "falls", "rises", "few", "noise"],
)
def test_where_the_curve_flattens_is_read_from_it(loss, words):
    said = sentences.observations(table(loss), pd.DataFrame())
    assert sum(words in sentence for sentence in said) == 1
    assert ("up" if loss[-1] > loss[0] else "down") in said[0]


def test_ticks_of_the_loss_are_plain_numbers():
    """A loss between 0.4 and 3 had "6 x 10^-1" beside its axis."""
    figure = loss_curves(table(np.geomspace(3, 1.6, 60)), pd.DataFrame())
    figure.savefig(io.BytesIO())
    axis = figure.axes[0].yaxis
    words = {tick.label1.get_text() for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]} - {""}
    assert words >= {"0.5", "1", "2"} and all(float(word) for word in words)


def test_gap_and_best_epoch_are_computed():
    epochs = pd.DataFrame(
        {
            "epoch": [1, 2],
            "train_loss_bbox": [0.5, 0.2],
            "val_loss_bbox": [0.5, 0.3],
            "mAP": [0.4, 0.3],
            "mAP50": [0.6, 0.5],
        }
    )
    text = " ".join(sentences.observations(table(np.linspace(2, 1, 50)), epochs))
    assert "+50%" in text and "fits the training photos better" in text and "best after epoch 1 of 2: 0.400" in text


def test_a_loss_that_is_switched_off_has_no_line():
    """On a logarithmic scale it has none anyway, and a legend that promises one is looked for."""
    losses = pd.DataFrame(run_at(30).losses)
    for value, names in ((0.0, ["total", "bbox", "giou"]), (0.5, ["total", "bbox", "giou", "auxiliary"])):
        figure = loss_curves(losses.assign(loss_auxiliary=value), pd.DataFrame())
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == names
