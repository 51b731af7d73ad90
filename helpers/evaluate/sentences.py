"""What the evaluation says, in sentences: each number and conclusion is computed. Markdown; names are escaped."""

import html
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.evaluate.comparison import SIZES, Result, difference, object_counts
from helpers.evaluate.curves import Operating
from helpers.metrics import Detections

UNTRAINED = 0.01  # an AP below it is that of a detector that has learnt nothing
KNOWS = 0.05  # an AP from which on the start is a detector of these classes in these pictures
FEW = 20  # objects: the AP of a class with fewer, or the recall of a group, says little


def escaped(text: str) -> str:
    """A name comes from a file: no HTML and no Markdown of its own."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", html.escape(text))


def boxes(name: str, detections: Sequence[dict], gt: dict) -> str:
    """How many boxes a checkpoint gives, and how many of them it believes in."""
    photos, given = len(gt["images"]), Detections.of(detections)
    if not len(given):
        return f"Checkpoint {escaped(name)} gives no box at all."
    without = photos - len(np.unique(given.image_id))
    none = f"; {without:,} of {photos:,} photos have none" if without else ""
    return (
        f"Checkpoint {escaped(name)} gives {len(given) / max(photos, 1):.1f} boxes a photo{none}. Half of them have "
        f"a score under {np.median(given.score):.2f}, and {(given.score >= 0.5).mean():.0%} have 0.5 or more."
    )


def unequal_boxes(start: Detections, found: Detections) -> str:
    """Why recall may seem to grow: a head of many classes spends its boxes on all of them; empty where it does not."""
    before, after = len(Detections.of(start)), len(Detections.of(found))
    if before >= 0.8 * after:
        return ""
    return (
        f"The start gives {before / after:.0%} as many: it spends its boxes on all classes of its head, of which "
        "only ours are kept. Part of what recall gains is that; `checkpoint=remapped` compares a head with its like."
    )


def agreement(reference: dict, result: Result) -> str:
    """How far the two engines are apart: ``reference`` is pycocotools' ``coco_metrics``."""
    stats, classes = reference["stats"], len(reference["per_class"])
    apart = max(abs(value - result.stats[name]) for name, value in stats.items())
    same = "they agree to the last bit" if not apart else f"they differ by up to {apart:.1e}"
    return f"{len(stats)} numbers and a table of {classes} classes from two programs: {same}."


def collapse(start: Result, result: Result) -> str:
    """Why the result cannot be right: a trained AP near zero from a start that could detect; empty where it can."""
    before, after = start.stats["mAP"], result.stats["mAP"]
    if not before >= UNTRAINED > after:
        return ""
    return (
        f"mAP fell from {before:.3f} to {after:.4f}: that is an all but untrained detector, not a bad one. The usual "
        "causes are class indices that do not belong to the categories (02: the encode and decode check), boxes "
        "relative to the padded batch instead of the photo, a class head that was newly initialised and hardly trained "
        "(class_head=reset, lr_head), and a learning rate that destroys the pretrained weights (lr; see losses.csv)."
    )


def expectation(start: Result) -> str:
    """What training can change, judged by what the start finds already (docs/recipe.md has the measurements)."""
    before = start.stats["mAP"]
    if before < 0:
        return ""
    if before < KNOWS:
        return (
            f"**What to expect.** The start finds next to nothing in these photos (mAP {before:.3f}): it was trained "
            "on other pictures. Nearly everything is to be won, and a few hundred photos win little of it."
        )
    return (
        f"**What to expect.** The start is a detector of these classes already (mAP {before:.3f}). More photos of the "
        "kind that it was trained on change hundredths; another image size than its own is where training wins more, "
        "and a recipe that is wrong for it loses tenths."
    )


def headline(start: Result, result: Result) -> str:
    """mAP before and after, and whether the difference is more than chance."""
    if result.stats["mAP"] < 0:
        return "These photos have **no ground truth**, so nothing can be said about the detector."
    after = f"**mAP {result.stats['mAP']:.3f}**{_range(result.interval('mAP'))} and mAP50 {result.stats['mAP50']:.3f}"
    name = escaped(result.name)
    if not result.detections:
        return f"Checkpoint {name} made **no detections at all**: {after}."
    if start is result:
        return f"The untouched start checkpoint has {after}."
    gain = difference(start, result, "mAP")
    if not gain["value"]:
        return f"Checkpoint {name} has {after}, exactly as the start has."
    certain = f"{'better' if gain['value'] > 0 else 'worse'}, and significantly so by the paired bootstrap"
    verdict = certain if gain["significant"] else "a difference that may be chance in so few photos"
    return (
        f"Checkpoint {name} has {after}; the start had mAP {start.stats['mAP']:.3f}. Training changed mAP by "
        f"**{gain['value']:+.3f}**{_range(gain['interval'], '+.3f')}: {verdict}."
    )


def by_size(result: Result, gt: dict) -> str:
    """Which sizes are found, and how much of the validation set they are."""
    counts = object_counts(gt)
    known = {size: result.stats[f"mAP_{size}"] for size in SIZES if counts[size] >= FEW}
    rare = [f"{counts[size]} {size}" for size in SIZES if 0 < counts[size] < FEW]
    text = f" With {' and '.join(rare)} objects, AP of that size says little." if rare else ""
    if len(known) < 2 or max(known.values()) <= 0:
        return "There is nothing to compare by object size." + text
    best, worst = max(known, key=known.get), min(known, key=known.get)
    return (
        f"AP is highest for **{best}** objects ({known[best]:.3f}, {counts[best]:,} objects) and lowest for "
        f"**{worst}** ones ({known[worst]:.3f}, {counts[worst]:,} of all {counts['all']:,}).{text}"
    )


def classes(table: pd.DataFrame) -> str:
    """Best and worst class, and how certain their order is; ``table`` of ``per_class_table``."""
    known = table[table["AP"] >= 0]
    enough = known[known["instances"] >= FEW].sort_values("AP", ascending=False)
    nowhere, rare, text = len(table) - len(known), len(known) - len(enough), ""
    if nowhere:
        text += f" Classes without ground truth ({nowhere} of {len(table)}) count nowhere."
    if rare:
        text += f" Classes with fewer than {FEW} objects ({rare} of {len(known)}) are too rare for this comparison."
    if not len(known) or known["AP"].max() <= 0:
        return "No class is detected at all." + text
    if len(enough) < 2:
        return "There are no two classes to compare." + text
    best, worst = enough.iloc[0], enough.iloc[-1]
    order = "their intervals do not overlap"
    if worst["AP_high"] >= best["AP_low"]:
        order = "their intervals overlap, so another sample could turn the order round"
    return (
        f"Best is **{escaped(best['class'])}** (AP {best['AP']:.3f}, {best['instances']:,} objects), worst "
        f"**{escaped(worst['class'])}** ({worst['AP']:.3f}, {worst['instances']:,} objects); {order}." + text
    )


def curve_ends(result: Result) -> str:
    """The class whose curve ends first: what no threshold can bring back."""
    matches = result.matches
    objects = matches.truth.sum(axis=0)
    found = np.array([matches.right[0, matches.of_class(k)].sum() for k in range(len(objects))])
    enough = np.flatnonzero(objects >= FEW)
    if not objects.sum() or not len(enough):
        return "There are too few objects of any class to say where a curve ends."
    first = enough[(found[enough] / objects[enough]).argmin()]
    return (
        f"Down to the weakest box, {found.sum() / objects.sum():.0%} of all objects are found at IoU 0.5. The curve "
        f"that ends first is that of **{escaped(matches.classes[first])}**: {1 - found[first] / objects[first]:.0%} "
        f"of its {objects[first]:,} objects are found at no score."
    )


def threshold(curves: pd.DataFrame, best: Operating) -> str:
    """What showing only confident boxes gains and costs."""
    if best.f1 <= 0:
        return "No detection is right at any score threshold, so no threshold beats another; 0.50 is used below."
    half = curves.iloc[int(np.argmin(np.abs(curves["threshold"] - 0.5)))]
    text = (
        f"F1 is best (**{best.f1:.2f}**) when boxes with a score of **{best.threshold:.2f}** or more are shown: "
        f"{best.precision:.0%} of them are right, and {best.recall:.0%} of the objects are found. The customary 0.50 "
    )
    if np.isnan(half["precision"]):
        return text.replace("The customary", "At the customary") + "nothing would be shown."
    return text + f"would give F1 {half['F1']:.2f} ({half['precision']:.0%} and {half['recall']:.0%})."


def class_thresholds(table: pd.DataFrame, best: Operating) -> str:
    """Whether one threshold suits all classes; ``table`` of ``per_class_table``."""
    known = table[(table["instances"] >= FEW) & (table["F1"] > 0)]
    if len(known) < 2:
        return "There are no two classes whose thresholds could be compared."
    low, high = known.loc[known["best_threshold"].idxmin()], known.loc[known["best_threshold"].idxmax()]
    near = int(((known["best_threshold"] - best.threshold).abs() <= 0.05).sum())
    return (
        f"The best thresholds go from {low['best_threshold']:.2f} (**{escaped(low['class'])}**) to "
        f"{high['best_threshold']:.2f} (**{escaped(high['class'])}**); {near} of {len(known)} classes are within "
        f"0.05 of the common {best.threshold:.2f}."
    )


def calibration(bins: pd.DataFrame, error: float) -> str:
    """Whether scores promise too much or too little."""
    count = bins["count"].sum()
    if not count:
        return "There are no detections whose scores could be calibrated."
    gap = float(((bins["confidence"] - bins["accuracy"]) * bins["count"]).sum() / count)
    lowest = bins["count"].iloc[0] / count
    lean = "about right" if abs(gap) < 0.01 else "too confident" if gap > 0 else "too modest"
    text = f"The expected calibration error is **{error:.3f}**; on average scores are {lean} "
    text += f"(mean score minus accuracy {gap:+.3f})."
    if lowest > 0.5:
        text += f" {lowest:.0%} of all detections have a score under {bins['high'].iloc[0]:.1f} and dominate that mean."
    confident = bins[bins["low"] >= 0.49]
    if many := confident["count"].sum():
        right, score = ((confident[name] * confident["count"]).sum() / many for name in ("accuracy", "confidence"))
        text += f" Detections with 0.5 or more say {score:.2f} and are right in {right:.0%}."
    return text


def confusions(matrix: pd.DataFrame) -> str:
    """Where predictions go that are not right."""
    counts = matrix.to_numpy()
    objects, right = counts[:-1].sum(), np.trace(counts[:-1, :-1])
    if not objects:
        return "There are no objects that could be confused."
    taken = counts[:-1, :-1] * ~np.eye(len(counts) - 1, dtype=bool)  # for another class
    wrong_class, missed, background = taken.sum(), counts[:-1, -1].sum(), counts[-1].sum()
    text = (
        f"Of {objects:,} objects {right / objects:.0%} are found with the right class, {wrong_class / objects:.0%} "
        f"with a wrong one and {missed / objects:.0%} are missed; {background:,} boxes have no object of their own."
    )
    if times := taken.max():
        truth, predicted = (escaped(matrix.index[k]) for k in np.unravel_index(taken.argmax(), taken.shape))
        often = "once" if times == 1 else f"{times:,} times"
        text += f" Most often **{truth}** is taken for **{predicted}** ({often})."
    return text


def photos(table: pd.DataFrame) -> str:
    """How even the quality is over photos; ``table`` of ``photo_table``."""
    f1 = table.loc[table["objects"] > 0, "f1"]
    if not len(f1):
        return "No photo has an object to be found."
    return (
        f"Half of the {len(f1):,} photos with objects have an F1 of {f1.median():.2f} or more; in "
        f"{(f1 == 1).sum():,} everything is right, in {(f1 == 0).sum():,} nothing is."
    )


def other_runs(results: list[Result], base: Result) -> str:
    """Which of the other checkpoints differ from ``base`` by more than chance."""
    gains = [difference(base, result, "mAP") for result in results if result is not base]
    if not gains:
        return "There is no other checkpoint to compare with."
    better, worse = (sum(gain["significant"] and sign * gain["value"] > 0 for gain in gains) for sign in (1, -1))
    return (
        f"{len(gains)} other checkpoint{'s' * (len(gains) > 1)}: {better} significantly better than "
        f"{escaped(base.name)}, {worse} significantly worse, {len(gains) - better - worse} that cannot be told from it."
    )


def pair(a: Result, b: Result) -> str:
    """Which of two checkpoints is the better one, if that can be said."""
    gain = difference(a, b, "mAP")
    if gain["interval"] is None or not gain["value"]:
        return f"Nothing tells {escaped(a.name)} and {escaped(b.name)} apart."
    first, second = (b, a) if gain["value"] > 0 else (a, b)
    return (
        f"**{escaped(first.name)}** has {abs(gain['value']):.3f} mAP more than {escaped(second.name)}: "
        f"{'significant' if gain['significant'] else 'within what chance can do'} by the paired bootstrap."
    )


def learnt(start: Result, result: Result, parts: list[str], cost: str) -> str:
    """The closing words: the headline, the sentences of the sections, and what to read next, as a list."""
    half, strict = result.stats["mAP50"], result.stats["mAP75"]
    loose = "boxes are found but not tight; " if half - strict > 0.25 else ""
    last = f"mAP50 is {half:.3f} and mAP75 {strict:.3f}: {loose}05 says which errors that is, and what would gain most."
    return "\n".join(f"- {line}" for line in [headline(start, result), *parts, cost, last])


def _range(bounds: tuple[float, float] | None, form: str = ".3f") -> str:
    return f" (95 %: {bounds[0]:{form}} to {bounds[1]:{form}})" if bounds else ""
