"""What the evaluation says, in sentences: every number and every conclusion is computed. Markdown; names are escaped."""
from __future__ import annotations

import html

import numpy as np
import pandas as pd

from helpers.comparison import Result, difference, object_counts
from helpers.curves import Operating, most_confused

UNTRAINED = 0.01  # an AP below it is that of a detector that has learnt nothing
FEW = 20  # objects: the AP of a class with fewer says little


def collapse(start: Result, result: Result) -> str:
    """Why the result cannot be right, or an empty string: a trained AP near zero from a start that could already detect."""
    before, after = start.stats["mAP"], result.stats["mAP"]
    if not before >= UNTRAINED > after:
        return ""
    return (f"mAP fell from {before:.3f} to {after:.4f}: that is an all but untrained detector, not a bad one. The usual causes are "
            "class indices that do not belong to the categories (02: the encode and decode check), boxes relative to the padded batch "
            "instead of the photo, a class head that was newly initialised and hardly trained (class_head=reset, lr_head), and a "
            "learning rate that destroys the pretrained weights (lr; see losses.csv).")


def headline(start: Result, result: Result) -> str:
    """mAP before and after, and whether the difference is more than chance."""
    if result.stats["mAP"] < 0:
        return "These photos have **no ground truth**, so nothing can be said about the detector."
    after = f"**mAP {result.stats['mAP']:.3f}**{_range(result.interval('mAP'))} and mAP50 {result.stats['mAP50']:.3f}"
    name = html.escape(result.name)
    if not result.detections:
        return f"Checkpoint {name} made **no detections at all**: {after}."
    if start is result:
        return f"The untouched start checkpoint has {after}."
    gain = difference(start, result, "mAP")
    if not gain["value"]:
        return f"Checkpoint {name} has {after}, exactly as the start has."
    verdict = ("the paired bootstrap finds the difference significant" if gain["significant"]
               else "a difference that may be chance in so few photos")
    return (f"Checkpoint {name} has {after}; the start had mAP {start.stats['mAP']:.3f}. Training changed mAP by "
            f"**{gain['value']:+.3f}**{_range(gain['interval'], '+.3f')}: {verdict}.")


def by_size(result: Result, gt: dict) -> str:
    """Which sizes are found, and how much of the validation set they are."""
    counts = object_counts(gt)
    known = {size: result.stats[f"mAP_{size}"] for size in ("small", "medium", "large") if result.stats[f"mAP_{size}"] >= 0}
    if len(known) < 2 or max(known.values()) <= 0:
        return "There is nothing to compare by object size."
    best, worst = max(known, key=known.get), min(known, key=known.get)
    return (f"AP is highest for **{best}** objects ({known[best]:.3f}, {counts[best]:,} objects) and lowest for **{worst}** ones "
            f"({known[worst]:.3f}, {counts[worst]:,} of all {counts['all']:,}).")


def classes(table: pd.DataFrame) -> str:
    """Best and worst class, and how certain their order is; ``table`` of ``per_class_table``."""
    known = table[table["AP"] >= 0]
    enough = known[known["instances"] >= FEW].sort_values("AP", ascending=False)
    text = ""
    if len(known) < len(table):
        text += f" Classes without ground truth ({len(table) - len(known)} of {len(table)}) count nowhere."
    if len(enough) < len(known):
        text += (f" Classes with fewer than {FEW} objects ({len(known) - len(enough)} of {len(known)}) are too rare for this "
                 "comparison.")
    if not len(known) or known["AP"].max() <= 0:
        return "No class is detected at all." + text
    if len(enough) < 2:
        return "There are no two classes to compare." + text
    best, worst = enough.iloc[0], enough.iloc[-1]
    overlap = worst["AP_high"] >= best["AP_low"]
    order = ("their intervals overlap, so another sample could turn the order round" if overlap
             else "their intervals do not overlap")
    return (f"Best is **{html.escape(best['class'])}** (AP {best['AP']:.3f}, {best['instances']:,} objects), worst "
            f"**{html.escape(worst['class'])}** ({worst['AP']:.3f}, {worst['instances']:,} objects); {order}." + text)


def threshold(curves: pd.DataFrame, best: Operating) -> str:
    """What showing only confident boxes gains and costs."""
    if best.f1 <= 0:
        return "No detection is right at any score threshold, so no threshold is better than another; 0.50 is used below."
    half = curves.iloc[int(np.argmin(np.abs(curves["threshold"] - 0.5)))]
    text = (f"F1 is best (**{best.f1:.2f}**) when boxes with a score of **{best.threshold:.2f}** or more are shown: "
            f"{best.precision:.0%} of them are right, and {best.recall:.0%} of the objects are found. ")
    if np.isnan(half["precision"]):
        return text + "At the customary 0.50 nothing would be shown."
    return text + f"The customary 0.50 would give F1 {half['F1']:.2f} ({half['precision']:.0%} and {half['recall']:.0%})."


def calibration(bins: pd.DataFrame, error: float) -> str:
    """Whether scores promise too much or too little."""
    count = bins["count"].sum()
    if not count:
        return "There are no detections whose scores could be calibrated."
    gap = float(((bins["confidence"] - bins["accuracy"]) * bins["count"]).sum() / count)
    lowest = bins["count"].iloc[0] / count
    lean = "about right" if abs(gap) < 0.01 else "too confident" if gap > 0 else "too modest"
    confident = bins[bins["low"] >= 0.49]
    text = (f"The expected calibration error is **{error:.3f}**; on average scores are {lean} (mean score minus accuracy "
            f"{gap:+.3f}).")
    if lowest > 0.5:
        text += f" {lowest:.0%} of all detections have a score under {bins['high'].iloc[0]:.1f} and dominate that mean."
    if confident["count"].sum():
        right = (confident["accuracy"] * confident["count"]).sum() / confident["count"].sum()
        score = (confident["confidence"] * confident["count"]).sum() / confident["count"].sum()
        text += f" Detections with 0.5 or more say {score:.2f} and are right in {right:.0%}."
    return text


def confusions(matrix: pd.DataFrame) -> str:
    """Where predictions go that are not right."""
    counts = matrix.to_numpy()
    objects, right = counts[:-1].sum(), int(np.trace(counts[:-1, :-1]))
    if not objects:
        return "There are no objects that could be confused."
    truth, predicted, times = most_confused(matrix)
    wrong_class, missed, background = counts[:-1, :-1].sum() - right, counts[:-1, -1].sum(), counts[-1].sum()
    text = (f"Of {objects:,} objects {right / objects:.0%} are found with the right class, {wrong_class / objects:.0%} with a wrong "
            f"one and {missed / objects:.0%} are missed; {background:,} boxes are on background.")
    if times:
        often = "once" if times == 1 else f"{times:,} times"
        text += f" Most often **{html.escape(truth)}** is taken for **{html.escape(predicted)}** ({often})."
    return text


def learnt(start: Result, result: Result, parts: list[str], cost: str) -> str:
    """The closing words: the headline, the sentences of the sections, and what to read next, as a list."""
    short = result.stats["mAP50"] - result.stats["mAP75"]
    next_ = (f"mAP50 is {result.stats['mAP50']:.3f} and mAP75 {result.stats['mAP75']:.3f}: "
             + ("boxes are found but not tight; " if short > 0.25 else "") + "05 says which errors that is, and what would gain most.")
    return "\n".join(f"- {line}" for line in [headline(start, result), *parts, cost, next_])


def _range(bounds: tuple[float, float] | None, form: str = ".3f") -> str:
    return f" (95 %: {bounds[0]:{form}} to {bounds[1]:{form}})" if bounds else ""
