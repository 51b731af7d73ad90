"""What the loss curves say, in sentences and live while training goes on."""

import time

import numpy as np
import pandas as pd

from helpers.train.figures import loss_curves
from helpers.train.training import Run

FEW = 20  # steps: the curve of fewer is noise


class LiveCurves:
    """A notebook figure of the losses that updates in place; pass it to ``train`` as ``on_flush``.

    One display is reused, so a headless run keeps only the last figure. Call it once more after training: then it shows
    the last epoch's validation too, which comes after the last flush.
    """

    def __init__(self, every_seconds: float = 5.0):
        self.every_seconds, self.shown, self.handle = every_seconds, 0.0, None

    def __call__(self, run: Run) -> None:
        from IPython.display import display

        if time.monotonic() - self.shown < self.every_seconds and run.step < run.total_steps:
            return
        figure = loss_curves(pd.DataFrame(run.losses), pd.DataFrame(run.epochs))
        if self.handle is None:
            self.handle = display(figure, display_id=True)
        else:
            self.handle.update(figure)
        self.shown = time.monotonic()


def observations(losses: pd.DataFrame, epochs: pd.DataFrame) -> list[str]:
    """What the log says: which part fell most, where the loss flattens, the gap to validation, the best epoch."""
    parts = losses.filter(regex="^loss(_|$)")
    tenth = max(1, len(losses) // 10)
    first, last = parts.head(tenth).mean(), parts.tail(tenth).mean()
    fell = (1 - last / first.where(first > 0)).dropna()
    falling = fell.drop("loss").sort_values()
    sentences = [
        f"The total loss went from {first['loss']:.2f} (mean of the first {tenth} steps) to {last['loss']:.2f} (the "
        f"last {tenth}), {_change(fell['loss'])}.",
        f"Of its parts, {falling.index[-1]} changed most ({_change(falling.iloc[-1])}) and {falling.index[0]} least "
        f"({_change(falling.iloc[0])}).",
        _where_it_flattens(losses["loss"].to_numpy()),
    ]
    if len(epochs):
        row, best = epochs.iloc[-1], epochs.loc[epochs["mAP"].idxmax()]
        gap, verdict = row["val_loss_bbox"] / row["train_loss_bbox"] - 1, "there is no sign of over-fitting in it"
        if gap > 0.15:
            verdict = "the model fits the training photos better than new ones"
        sentences += [
            f"After the last epoch the box loss (L1) is {row['train_loss_bbox']:.3f} in training, augmented, and "
            f"{row['val_loss_bbox']:.3f} in validation ({gap:+.0%}): {verdict}.",
            f"Validation AP was best after epoch {best['epoch']:.0f} of {len(epochs)}: {best['mAP']:.3f} (AP50 "
            f"{best['mAP50']:.3f}).",
        ]
    return sentences


def _change(share: float) -> str:
    return f"down {share:.0%}" if share >= 0 else f"up {-share:.0%}"


def _where_it_flattens(loss: np.ndarray) -> str:
    """The step after which nine tenths of the whole fall are behind, of a smoothed loss, or all but its noise."""
    if len(loss) < FEW:
        return f"{len(loss)} steps are too few to say where the loss flattens."
    window = max(1, len(loss) // 10)
    smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
    if smooth[0] <= smooth.min() * 1.02:
        return "The loss does not fall: lower the learning rate, or look at the data again."
    tenth, noise = 0.1 * (smooth[0] - smooth.min()), np.diff(loss).std() / np.sqrt(2 * window)  # of a window's mean
    reached = int(np.argmax(smooth <= smooth.min() + max(tenth, 2 * noise))) + window
    if reached > 0.9 * len(loss):
        late = f"nine tenths of its fall are reached at step {reached} of {len(loss)} only"
        return f"The loss was still falling near the end: {late}."
    if 2 * noise > tenth:
        return f"From step {reached} of {len(loss)} on the loss moves within its noise: the curve is flat."
    return f"Nine tenths of the fall are behind after step {reached} of {len(loss)}; from there the curve is flat."
