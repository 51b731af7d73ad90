"""One checkpoint's numbers with their uncertainty, and two checkpoints side by side."""

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pandas as pd

from helpers.evaluate.bootstrap import METRICS, class_ap, draw_weights, mean_of_classes, replicates_for
from helpers.evaluate.curves import best_operating_point, score_curves
from helpers.evaluate.matching import Matches, match
from helpers.metrics import STATS, Annotations, Detections, coco_metrics, load_detections

CONFIDENCE, STANDARD_ERRORS = 0.95, 1.96  # a normal distribution has 95 % within so many standard errors
SMALL_SAMPLE = 5000  # photos: COCO's own val2017, the sample that published numbers come from
MEANING = {
    "mAP": "AP, mean of IoU 0.50 to 0.95",
    "mAP50": "AP at IoU 0.50",
    "mAP75": "AP at IoU 0.75",
    "mAP_small": "AP of objects under 32² pixels",
    "mAP_medium": "AP of 32² to 96²",
    "mAP_large": "AP of 96² and over",
    "AR1": "recall with 1 box a photo and class",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "AR_small": "recall (100), small",
    "AR_medium": "recall (100), medium",
    "AR_large": "recall (100), large",
}
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # square pixels, COCO's


@dataclass(frozen=True)
class Result:
    """A checkpoint's detections with what was computed from them."""

    name: str
    detections: Sequence[dict]
    stats: dict[str, float]
    per_class: pd.DataFrame
    matches: Matches
    replicates: np.ndarray  # [R, K, T]: AP on made-up validation sets

    def draws(self, metric: str) -> np.ndarray:
        """The metric of every made-up validation set, [R]; classes without objects there are left out, as in COCO."""
        return mean_of_classes(self.replicates[:, :, METRICS[metric]].mean(axis=2))

    def interval(self, metric: str) -> tuple[float, float] | None:
        return interval(self.stats[metric], self.draws(metric))


def assess(name: str, gt: dict, detections: Sequence[dict], metrics: dict | None = None, seed: int = 0) -> Result:
    """Match and bootstrap; ``metrics`` is :func:`coco_metrics` of the same detections, computed where it is missing."""
    metrics = metrics or coco_metrics(gt, detections)
    matches = match(gt, detections)
    photos = len(matches.image_ids)
    replicates = class_ap(matches, draw_weights(photos, replicates_for(photos), seed))
    return Result(name, detections, metrics["stats"], metrics["per_class"], matches, replicates)


def interval(value: float, draws: np.ndarray, lowest: float = 0.0) -> tuple[float, float] | None:
    """``value`` plus and minus 1.96 standard errors, the standard deviation of the bootstrap ``draws`` [R].

    The percentiles of the draws would lie too high: a photo drawn twice repeats its right boxes next to each other, and
    interpolated precision likes that. None where there is nothing to count.
    """
    draws = draws[~np.isnan(draws)]
    if value == -1 or len(draws) < 2:
        return None
    error = STANDARD_ERRORS * float(draws.std(ddof=1))
    return max(value - error, lowest), min(value + error, 1.0)


def difference(a: Result, b: Result, metric: str) -> dict:
    """``b`` minus ``a`` on the same photos: ``value``, paired bootstrap's ``interval``, ``significant`` (0 outside)."""
    value = b.stats[metric] - a.stats[metric]
    bounds = interval(value, b.draws(metric) - a.draws(metric), lowest=-1.0)
    return {"value": value, "interval": bounds, "significant": bool(bounds and (bounds[0] > 0 or bounds[1] < 0))}


def twelve_numbers(a: Result, b: Result, gt: dict) -> pd.DataFrame:
    """COCO's twelve numbers of two checkpoints side by side: a row each, -1 where there is no such object."""
    counts = object_counts(gt)
    rows = []
    for name in STATS:
        row = {"metric": name, "meaning": MEANING[name], "objects": counts.get(name.split("_")[-1], counts["all"])}
        gain = difference(a, b, name) if name in METRICS else {"value": b.stats[name] - a.stats[name], "interval": None}
        for each in (a, b):
            row |= {each.name: each.stats[name], f"{each.name}, 95 %": each.interval(name) if name in METRICS else None}
        rows.append(row | _columns(gain, "difference"))
    return pd.DataFrame(rows).set_index("metric")


def _columns(gain: dict, name: str) -> dict:
    """A :func:`difference` as cells of a table."""
    certain = {True: "yes", False: "no" if gain["interval"] else "", None: None}[gain.get("significant")]
    return {name: gain["value"], "difference, 95 %": gain["interval"], "significant": certain}


def object_counts(gt: dict) -> dict[str, int]:
    """Objects without crowd regions: ``all``, and by COCO's sizes, where one on the border counts on both sides."""
    truth = Annotations.of(gt["annotations"])
    area = truth.area[truth.iscrowd == 0]
    sizes = {name: int(((area >= low) & (area <= high)).sum()) for name, (low, high) in SIZES.items()}
    return {"all": len(area)} | sizes


def per_class_table(start: Result, result: Result) -> pd.DataFrame:
    """A row per class: counts, AP, AP50, AR100, AP's interval (-1 without truth), the start's AP, best threshold."""
    table = result.per_class.copy()
    table.insert(1, "photos", (result.matches.truth > 0).sum(axis=0))
    bounds = [interval(ap, result.replicates[:, k].mean(axis=1)) or (-1.0, -1.0) for k, ap in enumerate(table["AP"])]
    table[["AP_low", "AP_high"]] = bounds
    table["AP_start"], table["AP50_start"] = start.per_class["AP"], start.per_class["AP50"]
    best = [best_operating_point(score_curves(result.matches, k)) for k in range(len(table))]
    table[["best_threshold", "precision", "recall", "F1"]] = best
    return table


def saved_runs(output_dir: Path, gt: dict) -> dict[str, Detections]:
    """Detections of what 04 has evaluated on these very photos and classes: ``run``, ``run (epoch_1)``, ...

    The last evaluation of a run is there a second time, under its checkpoint's name: one of the two is enough.
    """
    found = {}
    for path in sorted(output_dir.glob("*/detections_val2017*.json")):
        named = [file for file in path.parent.glob(f"{path.stem}_*.json") if filecmp.cmp(file, path, shallow=False)]
        detections = [] if named else Detections.of(load_detections(path))
        if detections and not unknown_ids(gt, detections):
            checkpoint = path.stem.removeprefix("detections_val2017").removeprefix("_")
            found[path.parent.name + (f" ({checkpoint})" if checkpoint else "")] = detections
    return found


def run_table(results: list[Result], base: Result) -> pd.DataFrame:
    """A row per checkpoint, best first: mAP with its interval, and the paired difference to ``base``."""
    rows = []
    for each in sorted(results, key=lambda r: -r.stats["mAP"]):
        row = {"run": each.name, "mAP": each.stats["mAP"], "95 %": each.interval("mAP"), "mAP50": each.stats["mAP50"]}
        gain = {} if each is base else _columns(difference(base, each, "mAP"), f"mAP minus {base.name}")
        rows.append(row | gain)
    return pd.DataFrame(rows).set_index("run")


def unknown_ids(gt: dict, detections: Sequence[dict]) -> str:
    """A sentence about detections of photos or categories that ``gt`` does not have; empty if all are known."""
    given = Detections.of(detections)
    known = np.isin(given.image_id, [image["id"] for image in gt["images"]])
    known &= np.isin(given.category_id, [c["id"] for c in gt["categories"]])
    if known.all():
        return ""
    first = detections[int(known.argmin())]
    return (
        f"{(~known).sum()} of {len(known)} detections belong to no photo or category of the validation set, the first "
        f"to image_id {first['image_id']}, category_id {first['category_id']}."
    )


def metrics_summary(start: Result, result: Result, threshold: float, **more) -> dict:
    """What metrics.json holds: both checkpoints' twelve numbers, intervals and differences, the score threshold."""
    return {
        "checkpoint": result.name,
        "stats": result.stats,
        **{r.name: {"stats": r.stats, "detections": len(r.detections)} for r in (start, result)},
        "images": len(result.matches.image_ids),
        "intervals": {r.name: {metric: r.interval(metric) for metric in METRICS} for r in (start, result)},
        "difference": {metric: difference(start, result, metric) for metric in METRICS},
        "confidence": CONFIDENCE,
        "replicates": len(result.replicates),
        "score_threshold": threshold,
        **more,
    }


def caption(result: Result) -> str:
    """What the intervals of a table are, and how far to trust them."""
    photos, bounds = len(result.matches.image_ids), result.interval("mAP")
    text = f"Intervals: 95 %, from {len(result.replicates):,} bootstrap samples of the {photos:,} photos."
    if bounds and photos < SMALL_SAMPLE and bounds[1] - bounds[0] > 0.001:
        text += f" {photos:,} photos are a small sample: with {photos:,} others, mAP could as well be "
        text += f"{bounds[0]:.3f} or {bounds[1]:.3f}."
    return text


def styled(table: pd.DataFrame, text: str = ""):
    """A table for the notebook: three decimals, a dash where there is no number, ``text`` above; names are escaped."""

    def cell(value) -> str:
        if isinstance(value, tuple):
            return f"{value[0]:.3f}\u00a0to\u00a0{value[1]:.3f}"  # not to be broken in two lines
        if value is None or isinstance(value, float) and (np.isnan(value) or value == -1):
            return "–"
        if isinstance(value, float):
            return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
        return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)

    texts = [name for name in table if table[name].map(lambda value: isinstance(value, str)).all()]
    above = "caption-side: top; text-align: left; max-width: 60em; white-space: normal"
    page = table.map(cell).rename_axis(index=None, columns=None).style
    page.set_properties(subset=texts, **{"text-align": "left"}).format(escape="html")
    page.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    return page.set_caption(text).set_table_styles([{"selector": "caption", "props": above}])


def ap_by_sprites(annotation_file: Path, detections: list[dict]) -> pd.DataFrame:
    """COCO's AP and AP50 on validation objects whose sprite training draws too, and on those that it never draws.

    A row each: objects, mAP, mAP50. A detection on an object of the other kind counts neither as right nor as wrong.
    """
    gt, rows = orjson.loads(Path(annotation_file).read_bytes()), {}
    for name, unseen in (("sprites that training draws", False), ("sprites that training never draws", True)):
        records = [{**record, "iscrowd": int(record["unseen_sprite"] != unseen)} for record in gt["annotations"]]
        stats = coco_metrics({**gt, "annotations": records}, detections)["stats"]
        rows[name] = {"objects": sum(not r["iscrowd"] for r in records), "mAP": stats["mAP"], "mAP50": stats["mAP50"]}
    return pd.DataFrame.from_dict(rows, orient="index")
