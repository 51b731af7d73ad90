"""Where a detector fails: by traits of objects, by photo, by pair of classes; and where the annotation may be wrong."""

import numpy as np
import pandas as pd

from helpers.boxes import box_iou, xywh_to_xyxy
from helpers.error_analysis.tide import BOX, COVERING, Verdicts

OUTCOMES = ("found", "classification", "localization", "missed")
NINTHS = tuple(f"{row} {side}" for row in ("top", "middle", "bottom") for side in ("left", "centre", "right"))
TRAITS = {  # trait: its groups, in the order of figures and tables, and the numbers at which the next ones begin
    "size": (("small", "medium", "large"), (32**2, 96**2)),
    "overlapping objects": (("none", "1 or 2", "3 or more"), (1, 3)),
    "objects in the photo": (("1 to 3", "4 to 9", "10 or more"), (4, 10)),
    "border": (("inside", "at the border"), (1,)),  # false, true
    "shape": (("tall", "balanced", "wide"), (0.5, 2.0)),
    "position": (NINTHS, range(1, 9)),  # 3 · row + column
}
TRAIT_RULES = {
    "size": "area below 32², below 96², or more, in pixels of the original photo: COCO's rule "
    "(a prediction: its box's area)",
    "overlapping objects": "other annotated boxes that overlap its box",
    "objects in the photo": "annotated objects in its photo",
    "border": "a side of the box within 1 % of the photo's edge: the object is probably cut off there",
    "shape": "width / height below 1/2, between, or above 2",
    "position": "the ninth of the photo in which the box's centre lies",
}


def object_table(verdicts: Verdicts, threshold: float) -> pd.DataFrame:
    """A row per annotated object: its traits, and its outcome (one of OUTCOMES) at the score ``threshold``.

    An object that is not found counts under the most confident error about it, or as missed where there is none.
    """
    objects = verdicts.objects
    about = verdicts.shown(threshold)
    about = about[about["kind"].isin(COVERING)].assign(wrong=about["kind"] != "correct")
    about = about.sort_values(["wrong", "score"], ascending=[True, False])  # stable, as sorting by several columns is
    outcome = about.drop_duplicates("object").set_index("object")["kind"].astype(object).replace("correct", "found")
    outcome = outcome.reindex(range(len(objects))).fillna("missed")
    sizes = {"size": objects["area"], "overlapping objects": _overlapping(verdicts)}
    table = objects[["annotation_id", "area", *BOX]].assign(**_traits(verdicts, objects, sizes))
    table["image_id"] = verdicts.photos["image_id"].to_numpy()[objects["photo"]]
    table["class"] = np.array(verdicts.classes, dtype=object)[objects["label"]]
    table["outcome"] = pd.Categorical(outcome, OUTCOMES)
    return table


def _overlapping(verdicts: Verdicts) -> np.ndarray:
    """How many other annotated boxes overlap each object's box."""
    photo, boxes_xyxy = verdicts.objects["photo"].to_numpy(), xywh_to_xyxy(verdicts.objects[BOX].to_numpy(float))
    starts = np.searchsorted(photo, np.arange(len(verdicts.photos) + 1))
    counts = [(box_iou(boxes_xyxy[a:b], boxes_xyxy[a:b]) > 0).sum(axis=1) - 1 for a, b in zip(starts[:-1], starts[1:])]
    return np.concatenate(counts) if counts else np.zeros(0, int)


def _traits(verdicts: Verdicts, rows: pd.DataFrame, numbers: dict) -> dict[str, pd.Categorical]:
    """The traits of ``rows``, which have photo and the bbox columns: those that annotations and predictions share, and
    those whose ``numbers`` are given.
    """
    width, height = (verdicts.photos[side].to_numpy()[rows["photo"]] for side in ("width", "height"))
    x, y, w, h = (rows[side].to_numpy() for side in BOX)
    at_border = (x <= 0.01 * width) | (y <= 0.01 * height) | (x + w >= 0.99 * width) | (y + h >= 0.99 * height)
    column = np.digitize((x + w / 2) / np.maximum(width, 1), (1 / 3, 2 / 3))
    row = np.digitize((y + h / 2) / np.maximum(height, 1), (1 / 3, 2 / 3))
    per_photo = np.bincount(verdicts.objects["photo"], minlength=len(verdicts.photos))
    numbers = {**numbers, "objects in the photo": per_photo[rows["photo"]], "border": at_border}
    numbers |= {"shape": w / np.maximum(h, 1e-9), "position": 3 * row + column}
    codes = {trait: np.digitize(number, TRAITS[trait][1]) for trait, number in numbers.items()}
    return {trait: pd.Categorical.from_codes(code, TRAITS[trait][0], ordered=True) for trait, code in codes.items()}


def group_table(verdicts: Verdicts, objects: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """A row per trait and group: objects, found, recall; predictions, correct, precision; each with its 95 % interval.

    Recall counts annotated objects and precision predictions with ``score >= threshold``, each under its own box's
    group. NaN where a group is empty; how many annotations overlap is known for annotations alone.
    """
    shown = verdicts.shown(threshold)
    shown = shown.assign(**_traits(verdicts, shown, {"size": shown["w"] * shown["h"]}))
    counted = {"objects": objects, "found": objects[objects["outcome"] == "found"]}
    counted |= {"predictions": shown, "correct": shown[shown["kind"] == "correct"]}
    parts = []
    for trait, (groups, _) in TRAITS.items():
        counts = {name: rows[trait].value_counts(sort=False) for name, rows in counted.items() if trait in rows}
        parts.append(pd.DataFrame({"trait": trait, "group": groups, **counts}, index=groups))
    table = pd.concat(parts, ignore_index=True)
    table["recall"], table["precision"] = table["found"] / table["objects"], table["correct"] / table["predictions"]
    table["recall_low"], table["recall_high"] = wilson(table["found"], table["objects"])
    table["precision_low"], table["precision_high"] = wilson(table["correct"], table["predictions"])
    return table


def wilson(hits, total) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % interval of a proportion, Wilson's: it holds for small counts and stays in 0 to 1; NaN for total 0."""
    hits, total = np.asarray(hits, float), np.asarray(total, float)
    z = 1.96
    with np.errstate(divide="ignore", invalid="ignore"):
        p = hits / total
        middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
        half = z / (1 + z**2 / total) * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)


def recall_by_size(objects: pd.DataFrame) -> pd.DataFrame:
    """Recall by sqrt(area), in ten groups of about equally many objects.

    Columns: low, high and side (median) of sqrt(area) in pixels, objects, found, recall and its 95 % interval.
    """
    if objects.empty:
        return pd.DataFrame()
    side = np.sqrt(objects["area"].to_numpy())
    edges = np.unique(np.quantile(side, np.linspace(0, 1, min(10, max(len(side) // 10, 1)) + 1)))
    which = np.clip(np.searchsorted(edges, side, side="right") - 1, 0, max(len(edges) - 2, 0))
    found = (objects["outcome"] == "found").to_numpy()
    parts = {"low": ("side", "min"), "high": ("side", "max"), "side": ("side", "median")}
    parts |= {"objects": ("found", "size"), "found": ("found", "sum")}
    table = pd.DataFrame({"side": side, "found": found}).groupby(which).agg(**parts)
    table["recall"] = table["found"] / table["objects"]
    table["recall_low"], table["recall_high"] = wilson(table["found"], table["objects"])
    return table.reset_index(drop=True)


def confused_pairs(errors: pd.DataFrame) -> pd.DataFrame:
    """Classification errors by class and predicted_class, the most frequent first: errors, mean_score."""
    wrong = errors[errors["type"] == "classification"]
    groups = wrong.groupby(["class", "predicted_class"], as_index=False)
    pairs = groups.agg(errors=("score", "size"), mean_score=("score", "mean"))
    return pairs.sort_values(["errors", "mean_score"], ascending=False, kind="stable", ignore_index=True)


def label_candidates(verdicts: Verdicts, errors: pd.DataFrame, objects: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Errors where the annotation may be what is wrong: ``errors`` with a column ``question``, the most suspect first.

    The rule: false predictions more confident than half of the correct ones at the threshold, either of the types
    background and both ("not annotated?") or with IoU >= 0.7 on an object of another class ("wrong class?"); then
    missed objects, the largest first, that no prediction of any score overlaps by 0.1, of a class and size of which
    most are found ("nothing there?").
    """
    shown = verdicts.shown(threshold)
    scores = shown.loc[shown["kind"] == "correct", "score"]
    confident = errors["score"] > (scores.median() if len(scores) else np.inf)
    recall = (objects["outcome"] == "found").groupby([objects["class"], objects["size"].astype(str)]).transform("mean")
    usually_found = errors["annotation_id"].isin(objects.loc[recall > 0.5, "annotation_id"])
    questions = {
        "not annotated?": confident & errors["type"].isin(["background", "both"]),
        "wrong class?": confident & (errors["type"] == "classification") & (errors["iou"] >= 0.7),
        "nothing there?": (errors["type"] == "missed") & (errors["iou"] < 0.1) & usually_found,
    }
    rows = [errors[mask].assign(question=question) for question, mask in questions.items()]
    return pd.concat(rows).sort_index().reset_index(drop=True)  # errors come sorted: by score, then missed ones by area
