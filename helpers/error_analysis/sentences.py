"""What an error analysis says, in sentences: every number and every conclusion is computed from its tables."""

import pandas as pd
from scipy.stats import chi2_contingency, kruskal

from helpers.error_analysis.analysis import Analysis
from helpers.error_analysis.tide import TYPES
from helpers.error_analysis.traits import confused_pairs, recall_by_size
from helpers.evaluate.sentences import FEW, escaped

ADVICE = {
    "classification": "look at the confused pairs: more examples of the rarer class, and check whether their labels "
    "can be told apart",
    "localization": "train longer or at a larger image size, and give the box losses more weight; second boxes on an "
    "object that is found are as duplicates",
    "both": "look first whether an object without annotation stands on or before a larger one that has one (a cup on a "
    "dining table), and then as for background; else whether the classes can be told apart",
    "duplicate": "a detection transformer should learn not to repeat itself: more training, auxiliary losses on; else "
    "suppress overlapping boxes of a class",
    "background": "look whether the objects are there and not annotated, or of a class that is not asked for; if they "
    "are neither, train on more photos without the class",
    "missed": "look at the sizes of the missed objects: a larger image size for small ones, more examples for rare "
    "classes; where many have a box below the threshold, also longer training",
}
ALIKE = 0.03  # median scores that differ by less are not ranked, however certain the difference is


def at_threshold(a: Analysis) -> str:
    """Which threshold, and what is right and wrong there."""
    objects, predictions = len(a.objects), len(a.verdicts.predictions)
    if not objects:
        return f"**No object is annotated** in these photos, so each of the {predictions:,} predictions is false."
    if not predictions:
        none = "The detector returned **no predictions at all**"
        return f"{none}: all {objects:,} objects are missed, and nothing else can be said."
    if not (a.verdicts.predictions["kind"] == "correct").any():
        return (
            f"**Not one of the {predictions:,} predictions is correct at any score**; what follows looks at the "
            f"{len(a.verdicts.shown(a.threshold)):,} with a score of {a.threshold:.2f} or more. See 02 and 03 before "
            "reading on."
        )
    found, false = int((a.objects["outcome"] == "found").sum()), len(_false(a))
    return (
        f"At a score of **{a.threshold:.2f}** F1 is best ({a.f1:.2f}): {found:,} of {objects:,} objects are found "
        f"({_percent(found, objects)}), and {_percent(false, found + false)} of the {found + false:,} predictions "
        "are false."
    )


def by_type(a: Analysis) -> str:
    """The most frequent and the most expensive type of error."""
    if not len(a.errors):
        return f"There is no error of any type: AP50 is {a.ap50:.3f}."
    counts, of_any_score, gain = (a.counts()[name] for name in ("at the threshold", "any score", "AP50 to gain"))
    if not len(a.shown):
        return f"There is no error at the threshold; {len(a.errors):,} predictions below it are false."
    most, dearest = counts.idxmax(), gain.idxmax()
    text = f"The most frequent type at the threshold is **{most}** ({counts[most]:,} of {len(a.shown):,} errors)"
    if gain[dearest] <= 0:
        return text + "; no single type, mended alone, would raise AP50."
    price = f"{_points(gain[dearest])} of AP50 for its {of_any_score[dearest]:,} errors of any score"
    if dearest == most:
        return f"{text}, and it is also the type that costs most: {price}."
    return f"{text}, but what costs most is **{dearest}**: {price}, against {_points(gain[most])}."


def _false(a: Analysis) -> pd.DataFrame:
    return a.shown[a.shown["type"] != "missed"]


def _correct_scores(a: Analysis) -> pd.Series:
    shown = a.verdicts.shown(a.threshold)
    return shown.loc[shown["kind"] == "correct", "score"]


def scores(a: Analysis) -> str:
    """How sure the detector is when it is wrong, by type of error; types of fewer than FEW errors are left out."""
    correct, false = _correct_scores(a), _false(a)
    if not len(false):
        return "At the threshold no prediction is false."
    right = f"; correct ones have {correct.median():.2f}." if len(correct) else "."
    by_type = {name: part for name, part in false.groupby("type")["score"] if len(part) >= FEW}
    median = pd.Series({name: part.median() for name, part in by_type.items()}).sort_values(ascending=False)
    text = f"Half of the false predictions have a score of {false['score'].median():.2f} or more{right}"
    if len(median) < 2:
        return text
    high, low = median.iloc[0], median.iloc[-1]
    if high - low < ALIKE:
        return f"{text} The types of error hardly differ (medians {low:.2f} to {high:.2f})."
    if kruskal(*by_type.values()).pvalue >= 0.01:
        return f"{text} No type of error is clearly more confident than another."
    return (
        f"False predictions of the type **{median.index[0]}** are the most confident (median score {high:.2f}; "
        f"**{median.index[-1]}** {low:.2f}){right}"
    )


def confident(a: Analysis) -> str:
    """How many errors no threshold would take away without half of what is right."""
    correct, false = _correct_scores(a), _false(a)
    if not len(false) or not len(correct):
        return "There are no correct and false predictions whose scores could be compared."
    sure = false[false["score"] > correct.median()]
    if not len(sure):
        return f"No false prediction is more confident than half of the correct ones ({correct.median():.2f})."
    (first, n), *others = sure["type"].value_counts().items()
    then = f", then {others[0][0]} ({others[0][1]:,})" if others else ""
    return (
        f"{len(sure):,} of {len(false):,} false predictions are more confident than half of the correct ones (score "
        f"over {correct.median():.2f}); the most frequent type among them is **{first}** ({n:,}){then}."
    )


def outcomes(a: Analysis) -> str:
    """What stands in the way of the objects that are not found, and how many errors are about objects that are."""
    lost = a.objects.loc[a.objects["outcome"] != "found", "outcome"].value_counts()
    if not lost.sum():
        return "Every annotated object is found." if len(a.objects) else "No object is annotated."
    missed, named, placed = (_percent(lost[kind], lost.sum()) for kind in ("missed", "classification", "localization"))
    text = (
        f"Of the {lost.sum():,} objects that are not found, {missed} are missed, {named} have a box of another class "
        f"and {placed} a box that lies badly."
    )
    if lost["missed"]:
        ids = a.shown.loc[a.shown["type"] == "missed", "annotation_id"]
        weak = a.verdicts.objects["annotation_id"].isin(ids) & (a.verdicts.objects["found_by"] >= 0)
        share = _percent(weak.sum(), len(ids))
        text += f" {share} of the missed have a correct box, only with a score below the threshold."
    badly = a.shown[a.shown["type"] == "localization"]
    if len(badly):
        found = a.objects.loc[a.objects["outcome"] == "found", "annotation_id"]
        again = _percent(badly["annotation_id"].isin(found).sum(), len(badly))
        text += f" {again} of the {len(badly):,} localization errors are further boxes on objects that are found."
    return text


def by_trait(a: Analysis) -> str:
    """The traits that change recall, the largest difference first, and those whose differences may be chance."""
    certain, chance = {}, []
    for trait, part in a.groups[a.groups["objects"] >= FEW].groupby("trait", sort=False):
        best, worst = part.loc[part["recall"].idxmax()], part.loc[part["recall"].idxmin()]
        gap = best["recall"] - worst["recall"]
        if gap > 0 and chi2_contingency([part["found"], part["objects"] - part["found"]]).pvalue < 0.01:
            groups = [f"{group['group']}: {group['recall']:.0%}" for group in (best, worst)]
            certain[f"by **{trait}** ({', '.join(groups)})"] = gap
        elif gap > 0:
            chance.append(trait)
    text = "No trait makes a difference in recall that this sample could show."
    if certain:
        text = f"Recall differs {_join(sorted(certain, key=certain.get, reverse=True))}."
    if chance:
        text += f" Differences by {_join(chance)} may be chance (chi-squared test, p above 0.01)."
    few = a.groups["objects"].between(1, FEW - 1).any()
    return text + (f" Groups of fewer than {FEW} objects are left out here." if few else "")


def small_objects(a: Analysis) -> str:
    """Recall of small objects against the others, and the size where the detector begins to see."""
    small, found = a.objects["size"] == "small", a.objects["outcome"] == "found"
    if not small.any():
        return "The validation set has no small objects (area below 32² pixels)."
    text = f"The detector finds {_percent(found[small].sum(), small.sum())} of the {small.sum():,} small objects"
    if (~small).any():
        text += f" and {_percent(found[~small].sum(), (~small).sum())} of the larger ones"
    if (~found).any():
        text += f"; {_percent((small & ~found).sum(), (~found).sum())} of what it does not find is small"
    if not found.any():
        return text + "."
    curve = recall_by_size(a.objects)
    best = curve["recall"].max()
    at = int((curve["recall"] >= best / 2).argmax())
    where = f"about {curve['side'][at]:.0f} pixels (median sqrt(area) of the group)"
    if at:
        return f"{text}. Half of the best recall ({best:.0%}) is reached at {where}."
    return f"{text}. Even the group of the smallest objects, {where}, has half of the best recall ({best:.0%})."


def pairs(a: Analysis) -> str:
    """The most frequent confusion, and how concentrated confusions are."""
    table = confused_pairs(a.shown)
    if not len(table):
        return "At the threshold no object is taken for another class."
    first, total = table.iloc[0], int(table["errors"].sum())
    true, predicted = escaped(first["class"]), escaped(first["predicted_class"])
    return (
        f"The most frequent confusion is **{true}** taken for **{predicted}** ({first['errors']} times); the first "
        f"three of {len(table)} pairs hold {_percent(table['errors'].head(3).sum(), total)} of {total:,} "
        "classification errors."
    )


def photos(a: Analysis) -> str:
    """How the errors are spread over photos."""
    n = len(a.photos)
    if not n:
        return "No photo has objects or predictions."
    wrong = (a.photos["false"] + a.photos["missed"]).sort_values(ascending=False)
    perfect, hopeless = (int((a.photos["f1"] == f1).sum()) for f1 in (1, 0))
    text, tenth = f"In {perfect} of {n} photos everything is right, in {hopeless} nothing is.", max(n // 10, 1)
    if not wrong.sum():
        return text
    share = _percent(wrong.head(tenth).sum(), wrong.sum())
    return f"{text} The tenth with most errors ({tenth} of them) holds {share} of all errors."


def candidates(a: Analysis) -> str:
    """How many errors may be the annotation's."""
    if not len(a.candidates):
        return "By this rule no annotation looks suspicious."
    parts = _join([f"{n:,} times “{question}”" for question, n in a.candidates["question"].value_counts().items()])
    text = (
        f"{len(a.candidates):,} of {len(a.shown):,} errors are worth a second look at the annotation: {parts}. Each "
        "is a question, not a verdict: look at the pictures."
    )
    if (a.candidates["question"] == "not annotated?").any():
        text += (
            " What belongs to a class that was not asked for has no annotation here: a truck taken for a car is such."
        )
    return text


def priorities(a: Analysis) -> pd.DataFrame:
    """What would gain the most AP50 if it were mended, best first, and in which class most of it; what to try."""
    counts = a.counts()
    gain = a.ap[list(TYPES.values())].sub(a.ap["AP50"], axis=0).fillna(0.0).set_axis(counts.index, axis=1)
    columns = {
        "AP50 to gain": counts["AP50 to gain"],
        "AP50 then": tide_ap50(a) + counts["AP50 to gain"],
        "errors at the threshold": counts["at the threshold"],
        "most in": gain.idxmax().where(gain.max() > 0, ""),
        "AP50 to gain there": gain.max().clip(lower=0.0),
        "what to try": pd.Series(ADVICE),
    }
    table = pd.DataFrame(columns, counts.index.rename("type of error")).reset_index()
    table = table.sort_values("AP50 to gain", ascending=False, kind="stable", ignore_index=True)
    return table.set_axis(table.index + 1)


def tide_ap50(a: Analysis) -> float:
    """The AP50 that TIDE's gains start from: a class that is predicted but never annotated counts as 0."""
    return float(a.ap["AP50"].mean()) if a.ap["AP50"].notna().any() else 0.0


def conclusions(a: Analysis) -> str:
    """The last section of 05, Markdown: the state, and the ranked list of what to mend."""
    lines = [f"- AP50 is **{a.ap50:.3f}** on {len(a.verdicts.photos):,} photos. {at_threshold(a)}"]
    if not len(a.verdicts.predictions):
        return "\n".join([*lines, "- There is nothing to rank. Train (03), evaluate (04), and come back."])
    correct = a.verdicts.predictions[a.verdicts.predictions["kind"] == "correct"]
    if len(correct):
        half = f"- Half of the correct boxes of any score have an IoU of {correct['iou'].median():.2f} or more."
        lines.append(f"{half} AP50 does not see how tight boxes are; mAP does.")
    lines += [f"- {sentence(a)}" for sentence in (by_trait, small_objects, pairs, photos, candidates)]
    if abs(tide_ap50(a) - a.ap50) > 0.0005:
        unseen = "- Classes that are predicted but never annotated count as 0 in TIDE"
        lines.append(f"{unseen}: its gains start from {tide_ap50(a):.3f}.")
    table = priorities(a)
    table = table[table["AP50 to gain"] >= 0.0005]
    if not len(table):
        return "\n".join([*lines, "", "**No type of error, mended alone, would raise AP50.**"])
    lines += ["", "**What would gain the most AP50, were it mended** (each alone: the gains do not add up):", ""]
    for rank, row in table.iterrows():
        best = f"+{_points(row['AP50 to gain there'])} of its own AP50"
        where = f"; most in {escaped(row['most in'])} ({best})" if row["most in"] else ""
        gain = f"+{_points(row['AP50 to gain'])}, to {row['AP50 then']:.3f}{where}"
        lines.append(f"{rank}. **{row['type of error']}**: {gain}. To try: {row['what to try']}.")
    return "\n".join(lines)


def _percent(part, whole) -> str:
    return f"{part / whole:.0%}" if whole else "0%"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f} points"


def _join(texts: list[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
