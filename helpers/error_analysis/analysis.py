"""The error analysis of a run: a table with a row per error, the views of it, and the files of ``error_analysis/``."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.config import Config
from helpers.error_analysis import crops, figures, traits
from helpers.error_analysis.tide import BOX, TYPES, Verdicts, gains, judge, oracle_ap
from helpers.evaluate.comparison import styled
from helpers.evaluate.curves import best_operating_point, photo_table, score_curves, with_something
from helpers.evaluate.matching import match
from helpers.files import save_figure, write_atomic, write_json
from helpers.index import CocoIndex
from helpers.metrics import Detections


def error_table(verdicts: Verdicts, threshold: float = -np.inf) -> pd.DataFrame:
    """A row per error among predictions with ``score >= threshold``: the most confident first, then the missed by size.

    Columns: image_id, type (a key of TYPES), class (annotated), predicted_class, iou, score, area, annotation_id,
    detection, x, y, w, h. A missed object has its own box, COCO's area, no score, detection -1, and as iou the best of
    any prediction. Other rows have the predicted box and its area; the annotation is the one that the error is about
    (for background the one that it touches, or -1). A lower threshold adds rows of false predictions and turns missed
    objects into others: what a prediction is never depends on less confident ones.
    """
    objects, predictions = verdicts.objects, verdicts.predictions
    false = predictions[~predictions["kind"].isin(["correct", "ignored"]) & (predictions["score"] >= threshold)]
    label_of, id_of = (np.append(objects[c].to_numpy(), -1)[false["object"]] for c in ("label", "annotation_id"))
    false = false.assign(type=false["kind"].astype(str), truth=label_of, annotation_id=id_of)
    false = false.assign(area=false["w"] * false["h"]).sort_values("score", ascending=False, kind="stable")
    missed = objects[~(objects["covered"] >= threshold) | np.isneginf(objects["covered"])]
    missed = missed.assign(type="missed", truth=missed["label"], iou=missed["best_iou"], detection=-1, score=np.nan)
    missed = missed.assign(label=-1).sort_values("area", ascending=False, kind="stable")
    table = pd.concat([part for part in (false, missed) if len(part)] or [false], ignore_index=True)
    names = np.array([*verdicts.classes, None], dtype=object)  # -1 gives None
    table["image_id"] = verdicts.photos["image_id"].to_numpy()[table["photo"]]
    table["class"], table["predicted_class"] = names[table["truth"]], names[table["label"]]
    columns = ["image_id", "type", "class", "predicted_class", "iou", "score", "area", "annotation_id", "detection"]
    return table[columns + BOX]


@dataclass(frozen=True)
class Analysis:
    """All tables of 05. ``errors`` takes every prediction, as TIDE does; the other tables those at the threshold."""

    verdicts: Verdicts
    detections: Detections  # of the predictions at the threshold
    threshold: float  # the score with the best F1: 04's operating point
    f1: float
    errors: pd.DataFrame  # a row per error of all predictions: what AP, delta_ap and errors.csv are about
    shown: pd.DataFrame  # a row per error at the threshold: what a reader sees
    ap: pd.DataFrame  # AP50 by class, as it is and with one kind of error mended
    delta_ap: dict[str, float]
    objects: pd.DataFrame  # a row per annotated object: traits and outcome
    groups: pd.DataFrame  # recall and precision by trait
    photos: pd.DataFrame  # a row per photo that has objects or predictions, best first: 04's ranking
    candidates: pd.DataFrame  # errors where the annotation may be wrong

    @property
    def ap50(self) -> float:
        """COCO's AP50: the mean over the classes that have objects."""
        present = np.bincount(self.verdicts.objects["label"], minlength=len(self.ap)) > 0
        return float(self.ap["AP50"][present].mean()) if present.any() else 0.0

    def counts(self) -> pd.DataFrame:
        """Errors of each type: at the threshold, and of any score with what AP50 would gain without them."""
        counts = {"at the threshold": count_types(self.shown), "any score": count_types(self.errors)}
        return pd.DataFrame(counts | {"AP50 to gain": [self.delta_ap[s] for s in TYPES.values()]}, index=list(TYPES))


def count_types(errors: pd.DataFrame) -> list[int]:
    """Rows of each type, in the order of TYPES."""
    return [int((errors["type"] == name).sum()) for name in TYPES]


def analyse(gt: dict, detections: list[dict]) -> Analysis:
    """Everything that 05 shows, from a COCO document and a results list; UserError when they do not fit."""
    verdicts, matches = judge(gt, detections), match(gt, detections)
    best = best_operating_point(score_curves(matches))
    errors, shown, ap = error_table(verdicts), error_table(verdicts, best.threshold), oracle_ap(verdicts)
    objects = traits.object_table(verdicts, best.threshold)
    groups = traits.group_table(verdicts, objects, best.threshold)
    photos = with_something(photo_table(matches, best.threshold))
    doubts = traits.label_candidates(verdicts, shown, objects, best.threshold)
    above = verdicts.predictions.loc[verdicts.predictions["score"] >= best.threshold, "detection"]
    tables = (errors, shown, ap, gains(ap), objects, groups, photos, doubts)
    return Analysis(verdicts, Detections.of(detections).rows(above), best.threshold, best.f1, *tables)


def write_error_analysis(cfg: Config, index: CocoIndex, analysis: Analysis, per_type: int = 12) -> dict:
    """Write ``error_analysis/``: tide.json, tables, a folder of pictures per type, figures; return the figures by name.

    The pictures are the ``per_type`` most confident errors of each type (the largest missed objects); what an earlier
    run left in these folders goes.
    """
    folder = cfg.output_dir / "error_analysis"
    counts = dict(zip(TYPES.values(), count_types(analysis.errors)))
    write_json(folder / "tide.json", {"delta_ap": analysis.delta_ap, "counts": counts})
    names = ("errors", "errors_at_threshold", "by_trait", "photos", "label_candidates")
    tables = (analysis.errors, analysis.shown, analysis.groups, analysis.photos, analysis.candidates)
    for name, table in zip(names, tables):
        write_atomic(folder / f"{name}.csv", table.to_csv(index=False))
    for name in TYPES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).glob("*.jpg"):
            old.unlink()
        rows = with_rivals(analysis.verdicts, analysis.shown[analysis.shown["type"] == name].head(per_type))
        for rank, row in enumerate(rows.to_dict("records"), 1):
            write_atomic(folder / name / f"{rank:02d}_{row['image_id']}.jpg", crops.error_jpeg(index, row))
    figures = draw_figures(index, analysis)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return figures


def readable(table: pd.DataFrame):
    """:func:`styled`, with ids as text: a photo's has no thousands, and -1 is none."""
    ids = [name for name in ("image_id", "annotation_id", "detection") if name in table]
    return styled(table.assign(**{name: table[name].astype(str).replace("-1", "–") for name in ids}))


def with_rivals(verdicts: Verdicts, errors: pd.DataFrame) -> pd.DataFrame:
    """``errors`` with a column ``rival``: for a duplicate, the prediction (a dict) that has its annotation already."""
    found_by = verdicts.objects.set_index("annotation_id")["found_by"]
    rivals = [
        verdicts.predictions.iloc[found_by[a]].to_dict() if kind == "duplicate" else None
        for kind, a in zip(errors["type"], errors["annotation_id"])
    ]
    return errors.assign(rival=pd.Series(rivals, index=errors.index, dtype=object))


def draw_figures(index: CocoIndex, analysis: Analysis) -> dict:
    """The figures of 05 by the name of their file; no photo twice among errors of one kind."""
    shown, candidates = analysis.shown, analysis.candidates.drop_duplicates(["question", "image_id"])
    once = shown.drop_duplicates(["type", "image_id"])
    examples = pd.concat([once[once["type"] == name].head(4) for name in TYPES])
    confident = shown[shown["type"] != "missed"].drop_duplicates("image_id").head(12)
    small = shown[(shown["type"] == "missed") & (shown["area"] < 32**2)].drop_duplicates("image_id").head(8)
    worst = analysis.photos[analysis.photos["f1"] < 1].iloc[::-1].head(6)
    best = analysis.photos[analysis.photos["correct"] > 0]
    full = best[best["objects"] >= 3]  # the only object of a photo is soon found
    best = (full if len(full) >= 4 else best).head(4)
    return {
        "error_types": figures.type_bars(analysis.counts()),
        "ap_gain_by_class": figures.gain_by_class(analysis.ap),
        "examples": crops.crop_grid(index, with_rivals(analysis.verdicts, examples)),
        "where_it_fails": figures.trait_panels(analysis.groups),
        "outcomes": figures.outcome_bars(analysis.objects),
        "recall_by_size": figures.size_curve(traits.recall_by_size(analysis.objects)),
        "small_missed": crops.crop_grid(index, small),
        "confused_pairs": figures.pair_bars(traits.confused_pairs(shown)),
        "most_confident": crops.crop_grid(index, with_rivals(analysis.verdicts, confident)),
        "best_photos": crops.photo_grid(index, best, analysis.detections),
        "worst_photos": crops.photo_grid(index, worst, analysis.detections),
        "label_candidates": crops.crop_grid(index, candidates.groupby("question", sort=False).head(4)),
    }
