"""What notebook 06 says, in sentences: every number and every conclusion is computed. Markdown; names are escaped."""

from __future__ import annotations

import numpy as np
import pandas as pd

from helpers.evaluate.sentences import escaped
from helpers.index import CocoIndex
from helpers.synthetic_data.arms import ARMS
from helpers.synthetic_data.probe import Probe

SEEDS = 3  # trainings of each arm that it takes to say that one helps


def made(manifest: dict) -> str:
    """What the writer did, and what it had to leave out."""
    pasted = sum(manifest["pasted"].values())
    left_out = ", ".join(f"{n:,} ({reason})" for reason, n in manifest["not_cut_out"].items())
    return (
        f"{manifest['photos']:,} photos with {manifest['annotations']:,} objects, {pasted:,} of them pasted "
        f"({pasted / max(1, manifest['photos']):.1f} a photo). Pasting covered {manifest['partly_covered']:,} "
        f"objects in part, hid {manifest['hidden']:,} so far that they are no longer labelled, and found no place for "
        f"{manifest['refused']:,} more."
        + (f" Not cut out: {left_out}." if left_out else "")
        + (f" {manifest['unreadable']} photos could not be read." if manifest["unreadable"] else "")
    )


def balance(real: CocoIndex, synthetic: CocoIndex) -> str:
    """How the rarest and the most frequent class change, and the objects a photo."""
    counts = [np.bincount(i.labels[~i.iscrowd], minlength=len(i.classes)) for i in (real, synthetic)]
    share = [count / max(1, count.sum()) for count in counts]
    there = np.flatnonzero(counts[0])
    rare, often = there[counts[0][there].argmin()], there[counts[0][there].argmax()]
    a, b = (count.sum() / max(1, len(i)) for count, i in zip(counts, (real, synthetic)))
    small = [np.mean(i.areas[~i.iscrowd] < 32**2) for i in (real, synthetic)]
    name = lambda k: escaped(real.classes[k])
    return (
        f"The rarest class, {name(rare)}, is {share[0][rare]:.1%} of the real objects and {share[1][rare]:.1%} of the "
        f"synthetic ones; the most frequent, {name(often)}, {share[0][often]:.0%} and {share[1][often]:.0%}. A real "
        f"photo has {a:.1f} objects, a synthetic one {b:.1f}; {small[0]:.0%} and {small[1]:.0%} of them are small."
    )


def probe(found: Probe, control: Probe) -> str:
    """Whether the backbone can tell the two apart."""
    low, high = found.interval
    text = (
        f"On photos that it has not learnt from, the probe is right {found.accuracy:.0%} of the time (95 %: {low:.0%} "
        f"to {high:.0%}); telling real photos from real ones it is right {control.accuracy:.0%} of the time."
    )
    if low <= 0.5:
        return f"{text} The backbone cannot be shown to see a difference between real and synthetic photos."
    how = "easily" if low > 0.9 else "often" if low > 0.7 else "a little more often than by chance"
    return f"{text} So the backbone tells synthetic photos from real ones {how}: what it learns there may be the seam."


def arm(row: pd.Series) -> str:
    """One arm against real photos alone, and the conclusion."""
    title = ARMS[row["arm"]].title
    gain = f"{row['value']:+.3f} (95 %: {row['low']:+.3f} to {row['high']:+.3f})"
    return (
        f"**{title[0].upper()}{title[1:]}** ({100 * row['share']:g} % of the real photos): AP "
        f"{row['base'] + row['value']:.3f} against {row['base']:.3f} with real photos only, {gain}: {verdict(row)}."
    )


def verdict(row: pd.Series) -> str:
    if not np.isfinite(row["value"]):
        return "nothing to compare"
    if row["low"] <= 0 <= row["high"]:
        return "no gain that this experiment can show"
    if row["seeds"] < SEEDS:
        of = "one training" if row["seeds"] == 1 else f"{row['seeds']} trainings"
        return f"{'better' if row['value'] > 0 else 'worse'}, but of {of} each, which another seed may turn"
    return "it helps" if row["value"] > 0 else "it hurts"


def groups(effects: pd.DataFrame, names: list[str], what: str) -> str:
    """Which of ``names`` (classes or sizes) an arm helps or hurts; ``what`` says what they are."""
    part = effects[effects["group"].isin(names) & effects["value"].notna()]
    sure = part[(part["low"] > 0) | (part["high"] < 0)]
    if sure.empty:
        return f"Of {len(part)} comparisons by {what} none is sure."
    told = "; ".join(
        f"{escaped(row['group'])} {row['value']:+.3f} ({ARMS[row['arm']].title}, {100 * row['share']:g} %)"
        for _, row in sure.sort_values("value", key=abs, ascending=False).head(6).iterrows()
    )
    return (
        f"Of {len(part)} comparisons by {what} {len(sure)} are sure, about {len(part) * 0.05:.1f} would be by "
        f"chance alone: {told}."
    )


def shares(effects: pd.DataFrame) -> str:
    """At which share of the real photos synthetic data are worth most."""
    part = effects[effects["group"] == "all"].dropna(subset=["value"])
    if part["share"].nunique() < 2:
        return "Whether synthetic data help more where there are fewer real photos was not tried: there is one share."
    best = part.loc[part["value"].idxmax()]
    mean = part.groupby("share")["value"].mean()
    each = ", ".join(f"{value:+.3f} at {100 * share:g} %" for share, value in mean.items())
    return (
        f"Over all arms the difference is {each} of the real photos. The largest, {best['value']:+.3f}, is that of "
        f"{ARMS[best['arm']].title} at {100 * best['share']:g} %: {verdict(best)}."
    )


def learnt(
    effects: pd.DataFrame, table: pd.DataFrame, photos: int, classes: list[str], start: float | None = None
) -> str:
    """The closing list, with what the experiment cannot say; ``start``: the untouched checkpoint's mAP, where known."""
    lines = [arm(row) for _, row in effects[effects["group"] == "all"].iterrows()]
    if lines:
        sizes = groups(effects, ["small", "medium", "large"], "size")
        lines += [sizes, groups(effects, classes, "class"), shares(effects)]
    else:
        lines = ["There is no arm beside real photos only to compare."]
    runs, seeds, steps = len(table), table["seed"].nunique(), int(table["steps"].max())
    if start is not None:
        above = int((table["mAP"] > start).sum())
        ended = f"{above} of {runs} run{'s' * (runs > 1)} ended above the untouched start (mAP {start:.3f})"
        lines.append(ended + ("." if above else ": this training loses more than any of its data wins."))
    sample = f"{runs} runs of {steps:,} steps each, {seeds} seed{'s' * (seeds > 1)}, {photos:,} validation photos."
    if seeds < SEEDS:
        sample += " With so few seeds the intervals tell of other photos, not of other trainings."
    return "\n".join(f"- {line}" for line in [*lines, sample])
