"""Matching, bootstrap, curves and conclusions: everything that stands behind the numbers of notebook 04."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import InterpolationMode

from helpers.download.coco import read_index
from helpers.evaluate import comparison, figures, sentences
from helpers.evaluate.bootstrap import class_ap, draw_weights, replicates_for
from helpers.evaluate.comparison import (
    SIZES,
    assess,
    difference,
    interval,
    per_class_table,
    run_table,
    saved_runs,
    styled,
    twelve_numbers,
    unknown_ids,
)
from helpers.evaluate.cost import PUBLISHED, cost_sentence, cost_table, price_sentence, price_table
from helpers.evaluate.curves import (
    best_operating_point,
    confusion,
    photo_table,
    precision_recall,
    reliability,
    score_curves,
)
from helpers.evaluate.examples import pick_examples, write_examples
from helpers.evaluate.matching import match
from helpers.files import ROOT, write_json
from helpers.index import CocoIndex
from helpers.metrics import STATS, Detections, coco_metrics, evaluator, ground_truth

PHOTOS = 60


def jittered(gt: dict, seed: int, noise: float, ties: bool = False) -> list[dict]:
    """Detections like a detector's: the truth moved about, some classes wrong, boxes on nothing; none in every
    seventh photo.
    """
    random = np.random.default_rng(seed)
    categories = [c["id"] for c in gt["categories"]]
    truth: dict[int, list[dict]] = {}
    for record in gt["annotations"]:
        truth.setdefault(record["image_id"], []).append(record)
    found = []
    for number, image in enumerate(gt["images"]):
        if number % 7 == 3:
            continue
        for record in truth.get(image["id"], []) * 2:
            bbox = np.array(record["bbox"]) + random.normal(0, noise, 4) * np.tile(record["bbox"][2:], 2)
            category = record["category_id"] if random.random() < 0.85 else random.choice(categories)
            found.append((image["id"], category, bbox, random.beta(4, 2)))
        for _ in range(15):
            bbox = np.array(
                [*random.uniform(0, 0.8, 2) * (image["width"], image["height"]), *np.exp(random.uniform(2, 5, 2))]
            )
            found.append((image["id"], random.choice(categories), bbox, random.beta(1, 5)))
    return [
        {
            "image_id": int(i),
            "category_id": int(c),
            "bbox": [*b[:2].tolist(), *np.maximum(b[2:], 1).tolist()],
            "score": float(np.round(s, 1) if ties else s),
        }
        for i, c, b, s in found
    ]


@pytest.fixture(scope="module")
def index(coco_source) -> CocoIndex:
    whole = read_index(coco_source / "annotations" / "instances_val2017.json", coco_source / "images" / "val2017")
    crowded = [i for i in range(len(whole)) if whole.iscrowd[whole.rows(i)].any()]
    rest = [i for i in range(len(whole)) if i not in set(crowded)]
    return whole.take(np.sort((crowded[:15] + rest)[:PHOTOS]))


@pytest.fixture(scope="module")
def gt(index) -> dict:
    """Real annotations with crowds, over the ten most frequent classes and one that is nowhere; the last photo is
    empty.
    """
    document = ground_truth(index)
    counts = pd.Series([a["category_id"] for a in document["annotations"]]).value_counts()
    kept = set(counts.index[:10]) | {next(c["id"] for c in document["categories"] if c["id"] not in counts.index)}
    document["categories"] = [c for c in document["categories"] if c["id"] in kept]
    last = document["images"][-1]["id"]
    document["annotations"] = [a for a in document["annotations"] if a["category_id"] in kept and a["image_id"] != last]
    assert any(a["iscrowd"] for a in document["annotations"])
    return document


@pytest.fixture(scope="module")
def hard(gt) -> list[dict]:
    """What trips evaluators: equal scores, more than 100 boxes of a class and photo, boxes on crowds, exact copies."""
    detections = jittered(gt, 0, 0.1, ties=True)
    a = next(a for a in gt["annotations"] if not a["iscrowd"])
    random = np.random.default_rng(1)
    for k in range(160):
        bbox = np.array(a["bbox"]) + random.normal(0, 0.08 * (k % 5), 4) * np.tile(a["bbox"][2:], 2)
        detections.append(
            {
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": [*bbox[:2].tolist(), *np.maximum(bbox[2:], 1).tolist()],
                "score": round(random.random(), 1),
            }
        )
    for crowd in [a for a in gt["annotations"] if a["iscrowd"]]:
        x, y, w, h = crowd["bbox"]
        detections += [
            {
                "image_id": crowd["image_id"],
                "category_id": crowd["category_id"],
                "bbox": [x + w * f, y, w / 4, h / 2],
                "score": 0.9,
            }
            for f in (0, 0.25, 0.5)
        ]
    return detections


@pytest.fixture(scope="module")
def results(gt) -> tuple:
    return assess("start", gt, jittered(gt, 2, 0.2)), assess("best", gt, jittered(gt, 3, 0.08))


def two_boxes() -> tuple[dict, list[dict]]:
    """Photo 1: a cat and a dog; photo 2: a cat, and a crowd of dogs. Everything below can be counted by hand."""
    box = {"cat": [10, 10, 40, 40], "dog": [100, 10, 40, 40]}
    gt = {
        "images": [{"id": 1, "width": 200, "height": 100}, {"id": 2, "width": 200, "height": 100}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 4, "bbox": box["cat"], "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 9, "bbox": box["dog"], "area": 1600, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 4, "bbox": box["cat"], "area": 1600, "iscrowd": 0},
            {"id": 4, "image_id": 2, "category_id": 9, "bbox": box["dog"], "area": 1600, "iscrowd": 1},
        ],
    }
    rows = [
        (1, 4, box["cat"], 0.95),  # right
        (1, 4, box["dog"], 0.85),  # a dog taken for a cat
        (1, 4, [12, 10, 40, 40], 0.25),  # the first cat again
        (2, 9, [105, 15, 20, 20], 0.75),  # in the crowd: neither right nor wrong
        (2, 9, [150, 60, 20, 20], 0.35),
    ]  # on nothing
    return gt, [{"image_id": i, "category_id": c, "bbox": b, "score": s} for i, c, b, s in rows]


def test_fast_engine_equals_pycocotools_to_the_bit(gt, hard):
    """A metric library that is nearly right: with crowds, empty photos, ties and over 100 boxes the last bit must
    agree.
    """
    fast, reference = coco_metrics(gt, hard), coco_metrics(gt, hard, engine="pycocotools")
    assert fast["stats"] == reference["stats"]
    pd.testing.assert_frame_equal(fast["per_class"], reference["per_class"], check_exact=True)
    assert 0.1 < fast["stats"]["mAP"] < 0.9  # a comparison of zeros would prove nothing


def test_matches_are_those_of_pycocotools(gt, hard):
    """The vectorised matching must make each single decision of COCO's loop, at every IoU threshold."""
    ours = match(gt, hard)
    decisions = {
        (t, int(row)): (bool(ours.right[t, d]), bool(ours.ignored[t, d]))
        for t in range(10)
        for d, row in enumerate(ours.row)
    }
    run = evaluator(gt, hard, "pycocotools")
    seen = 0
    for entry in run.evalImgs:
        if entry is None or entry["aRng"] != run.params.areaRng[0]:
            continue
        for (t, d), matched in np.ndenumerate(entry["dtMatches"]):
            ignored = bool(entry["dtIgnore"][t, d])
            assert decisions[t, entry["dtIds"][d] - 1] == (matched > 0 and not ignored, ignored)
            seen += 1
    assert seen == len(decisions)
    assert ours.ignored.any()


def test_ids_are_found_whatever_they_are():
    """Ids outside of the table: a negative one counts from its end, a large one is an error or another photo's."""
    values = np.array([5, 3, -1, -7, 4, 6, 10**12, 0])
    for far in (0, 10**10):  # small ones, and such that no table of all ids would fit into the memory
        known = [{"id": key + far, "name": str(key)} for key in (5, 0, 3)]
        gt = {"images": known, "categories": known[::-1], "annotations": []}
        ids = [(key + far, 3 + far) for key in values] + [(3 + far, key + far) for key in values]
        found = match(gt, [{"image_id": i, "category_id": c, "bbox": [0, 0, 9, 9], "score": 1.0} for i, c in ids])
        assert sorted(found.row) == [0, 1, 7, 8, 9, 15]
        assert [found.image[found.row == row][0] for row in (0, 1, 7)] == [2, 1, 0]
        assert [set(found.row[found.of_class(k)]) for k in range(3)] == [{0, 1, 7, 9}, {15}, {8}]


def test_equal_overlaps_go_to_the_later_object():
    """A box halfway between two objects: COCO gives it the later one, and that decides what the next box can have."""
    boxes, found = (
        [[0, 0, 60, 60], [20, 0, 60, 60], [200, 0, 60, 60], [220, 0, 60, 60]],
        [[10, 0], [0, 0], [210, 0], [220, 0]],
    )
    gt = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": b, "area": 3600, "iscrowd": 0}
            for k, b in enumerate(boxes)
        ],
    }
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": [*xy, 60, 60], "score": 0.9 - k / 10} for k, xy in enumerate(found)
    ]
    entry = evaluator(gt, detections, "pycocotools").evalImgs[0]
    assert np.array_equal(match(gt, detections).right, entry["dtMatches"] > 0)
    assert entry["dtMatches"][5].tolist() == [0, 1, 0, 4] and entry["dtMatches"][3].tolist() == [2, 1, 4, 0]


def test_weights_of_one_give_the_published_number(gt, hard):
    """An interval around another number than the table's would be worse than none."""
    metrics = coco_metrics(gt, hard)
    ap = class_ap(match(gt, hard), np.ones((1, len(gt["images"])), dtype=np.int32))[0]
    assert np.allclose(np.nan_to_num(ap.mean(axis=1), nan=-1), metrics["per_class"]["AP"], atol=1e-12)
    assert np.nanmean(ap) == pytest.approx(metrics["stats"]["mAP"], abs=1e-12)
    assert np.nanmean(ap[:, 0]) == pytest.approx(metrics["stats"]["mAP50"], abs=1e-12)
    assert np.isnan(ap).all(axis=1).sum() == 1  # the class that is nowhere


def test_sizes_are_those_of_pycocotools(gt, hard):
    """Trap: an object of another size counts as missed, a detection on it as wrong: AP by size is too low."""
    stats = coco_metrics(gt, hard, engine="pycocotools")["stats"]
    for size, areas in SIZES.items():
        ap = class_ap(match(gt, hard, areas), np.ones((1, len(gt["images"])), dtype=np.int32))[0]
        ap = np.nanmean(ap[~np.isnan(ap).all(axis=1)])
        assert ap == pytest.approx(stats[f"mAP_{size}"], abs=1e-12), size


@pytest.mark.parametrize("crowded", [False, True])
def test_a_photo_drawn_twice_counts_twice(gt, crowded):
    """A replicate must be what COCO gives on the drawn photos, evaluated anew as if they were a data set."""
    detections = jittered(gt, 4, 0.1)
    if crowded:  # runs of right detections go on over those in crowds, and end where the threshold's last one is
        crowds = [a for a in gt["annotations"] if a["iscrowd"]]
        boxes = [(a, [*a["bbox"][:2], a["bbox"][2] / part, a["bbox"][3]]) for a in crowds for part in (1.1, 2, 3)]
        found = [{"image_id": a["image_id"], "category_id": a["category_id"], "bbox": box} for a, box in boxes]
        detections += [{**row, "score": (k * 0.37) % 1} for k, row in enumerate(found)]
        assert match(gt, detections).ignored.any(axis=1).all()
    weights = draw_weights(len(gt["images"]), 3, seed=7)
    ours = class_ap(match(gt, detections), weights)
    assert weights.max() > 1 and (weights == 0).any()
    order = np.argsort([image["id"] for image in gt["images"]])
    for weight, ap in zip(weights, ours):
        drawn = {"images": [], "categories": gt["categories"], "annotations": []}
        found = []
        for place, times in zip(order, weight):
            image = gt["images"][place]
            for copy_number in range(times):
                key = image["id"] * 100 + copy_number
                drawn["images"].append({**image, "id": key})
                drawn["annotations"] += [
                    {**a, "image_id": key} for a in gt["annotations"] if a["image_id"] == image["id"]
                ]
                found += [{**d, "image_id": key} for d in detections if d["image_id"] == image["id"]]
        for number, record in enumerate(drawn["annotations"]):
            record["id"] = number + 1
        expected = coco_metrics(drawn, found)
        assert np.nanmean(ap) == pytest.approx(expected["stats"]["mAP"], abs=1e-9)
        for thresholds, column in ((slice(None), "AP"), (slice(1), "AP50")):
            each = np.nan_to_num(ap[:, thresholds].mean(axis=1), nan=-1)
            assert np.allclose(each, expected["per_class"][column], rtol=0, atol=1e-12), column


def test_standard_error_is_the_spread_over_other_photos():
    """What the interval promises, and what a bootstrap that counts a photo drawn twice only once gets a quarter too
    small:
    the standard error from one sample of photos is the spread of the AP over many samples."""
    random = np.random.default_rng(0)
    estimates, errors = [], []
    for sample in range(60):
        gt = {"images": [{"id": i} for i in range(60)], "categories": [{"id": 1, "name": "thing"}], "annotations": []}
        found = []
        for i in range(60):
            quality = random.uniform(0.02, 0.3)  # of a photo: its boxes are good or bad together
            for k in range(random.integers(1, 5)):
                gt["annotations"].append(
                    {
                        "id": len(gt["annotations"]) + 1,
                        "image_id": i,
                        "category_id": 1,
                        "bbox": [100 * k, 0, 50, 50],
                        "area": 2500,
                        "iscrowd": 0,
                    }
                )
                x, y = random.normal(0, 50 * quality, 2)
                found.append(
                    {
                        "image_id": i,
                        "category_id": 1,
                        "bbox": [100 * k + x, y, 50, 50],
                        "score": 1 - quality * random.random(),
                    }
                )
        matches = match(gt, found)
        estimates.append(np.nanmean(class_ap(matches, np.ones((1, 60), dtype=np.int32))))
        errors.append(class_ap(matches, draw_weights(60, 200, sample)).mean(axis=(1, 2)).std())
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.2)


def test_interval_is_seeded_and_around_the_number(gt, results):
    start, best = results
    again = assess("best", gt, best.detections)
    assert again.interval("mAP") == best.interval("mAP")
    assert assess("best", gt, best.detections, seed=5).interval("mAP") != best.interval("mAP")
    for metric in comparison.METRICS:
        low, high = best.interval(metric)
        assert 0 <= low < best.stats[metric] < high <= 1
    assert interval(0.5, np.array([0.4, 0.5, 0.6, np.nan])) == pytest.approx((0.5 - 1.96 * 0.1, 0.5 + 1.96 * 0.1))
    assert interval(-1.0, np.array([np.nan, np.nan])) is None


def test_fewer_replicates_for_many_photos_and_never_none():
    assert [replicates_for(n) for n in (0, 1, 300, 500, 5000, 100_000)] == [1000, 1000, 1000, 1000, 100, 100]


def test_paired_difference(gt, results):
    """Unpaired intervals overlap for checkpoints that differ clearly; equal checkpoints must never differ."""
    start, best = results
    gain = difference(start, best, "mAP")
    assert gain["significant"] and gain["interval"][0] < best.stats["mAP"] - start.stats["mAP"] < gain["interval"][1]
    assert ": better, and significantly so" in sentences.headline(start, best)
    assert ": worse, and significantly so" in sentences.headline(best, start)
    same = difference(best, assess("copy", gt, best.detections), "mAP")
    assert same == {"value": 0.0, "interval": (0.0, 0.0), "significant": False}
    assert (best.draws("mAP") - start.draws("mAP")).std() < np.hypot(
        best.draws("mAP").std(), start.draws("mAP").std()
    ) * 1.1


def test_twelve_numbers_with_their_counts(gt, results):
    start, best = results
    table = twelve_numbers(start, best, gt)
    assert list(table.index) == list(STATS)
    assert table["objects"]["mAP"] == sum(not a["iscrowd"] for a in gt["annotations"])
    small = sum(not a["iscrowd"] and a["area"] <= 32**2 for a in gt["annotations"])
    assert table["objects"]["mAP_small"] == table["objects"]["AR_small"] == small
    assert table["significant"]["mAP"] == "yes"
    assert "a small sample" in comparison.caption(best)
    assert (
        list(twelve_numbers(best, best, gt).columns).count("best") == 1
    )  # checkpoint=start compares a thing with itself


def test_what_to_expect_is_said_by_what_the_start_finds(results):
    """From drawings everything is to be won on photos, from COCO hundredths: one sentence for both would be false."""
    start, best = results
    knows = sentences.expectation(best)
    assert "a detector of these classes already" in knows and f"{best.stats['mAP']:.3f}" in knows
    blank = replace(start, stats=start.stats | {"mAP": 0.003})
    assert "next to nothing" in sentences.expectation(blank) and "0.003" in sentences.expectation(blank)
    assert not sentences.expectation(replace(start, stats=start.stats | {"mAP": -1.0}))


def test_a_start_with_fewer_boxes_says_why(results):
    """A whole head's hundred boxes go to all of its classes: the recall that training "gains" is partly that."""
    found = results[1].detections
    text = sentences.unequal_boxes(found[: len(found) // 2], found)
    assert "gives 50%" in text and "remapped" in text and not sentences.unequal_boxes(found, found)


def test_no_detections_give_zeros_and_sentences(gt, index, tmp_path):
    """pycocotools raises IndexError on an empty list; a detector that finds nothing must still get a page."""
    empty = assess("best", gt, [])
    assert set(empty.stats.values()) == {0.0}
    assert empty.interval("mAP") == (0.0, 0.0)
    table, curves = per_class_table(empty, empty), score_curves(empty.matches)
    best, (bins, error) = best_operating_point(curves), reliability(empty.matches)
    assert (best.threshold, best.f1, error, bins["count"].sum()) == (0.5, 0.0, 0.0, 0)
    matrix = confusion(gt, [], empty.matches, best.threshold)
    assert matrix["background"].sum() == table["instances"].sum() == matrix.to_numpy().sum()
    assert "no detections" in sentences.headline(empty, empty)
    for text in (
        sentences.by_size(empty, gt),
        sentences.classes(table),
        sentences.threshold(curves, best),
        sentences.calibration(bins, error),
        sentences.confusions(matrix),
        comparison.caption(empty),
        sentences.boxes("best", [], gt),
        sentences.curve_ends(empty),
        sentences.class_thresholds(table, best),
        sentences.photos(photo_table(empty.matches, 0.5)),
        sentences.other_runs([empty], empty),
        sentences.pair(empty, empty),
    ):
        assert text and "nan" not in text
    for figure in (
        figures.pr_figure(empty, empty),
        figures.class_ap_figure(table, "start", "best"),
        figures.score_figure(curves, best),
        figures.reliability_figure(bins, error),
        figures.confusion_figure(matrix, best.threshold),
    ):
        figure.savefig(io.BytesIO())
    write_json(tmp_path / "metrics.json", comparison.metrics_summary(empty, empty, best.threshold))


def test_no_ground_truth_is_minus_one_and_not_zero(gt):
    """-1 is COCO's word for "nothing to count"; a zero would be a verdict."""
    nothing = {**gt, "annotations": []}
    result = assess("best", nothing, jittered(gt, 5, 0.1)[:50])
    assert set(result.stats.values()) == {-1.0} and result.interval("mAP") is None
    assert "no ground truth" in sentences.headline(result, result)
    assert "–" in styled(twelve_numbers(result, result, nothing)).to_html()
    assert not np.isfinite(precision_recall(result.matches, 0)).any()
    assert confusion(nothing, result.detections, result.matches, 0.0).to_numpy()[:-1].sum() == 0
    write = per_class_table(result, result)
    assert not write.isna().any().any() and (write["AP_low"] == -1).all()  # per_class.csv holds finite numbers only


def test_curve_area_is_ap50(gt, hard):
    """A curve that is not COCO's would contradict the number in its own title."""
    matches, table = match(gt, hard), coco_metrics(gt, hard)["per_class"]
    area = [precision_recall(matches, k).mean() for k in range(len(table))]
    assert np.allclose(np.nan_to_num(area, nan=-1), table["AP50"], atol=1e-12)


def test_score_threshold_by_hand():
    gt, detections = two_boxes()
    curves = score_curves(match(gt, detections))
    row = curves.set_index("threshold").loc
    assert row[0.9].tolist() == pytest.approx([1, 1 / 3, 0.5])  # one of one right, of three objects
    assert row[0.8].tolist() == pytest.approx([1 / 2, 1 / 3, 0.4])
    assert row[0.0].tolist() == pytest.approx([1 / 4, 1 / 3, 2 / 7])  # the box in the crowd counts nowhere
    assert np.isnan(row[1.0]["precision"]) and row[1.0]["recall"] == 0
    best = best_operating_point(curves)
    assert (best.threshold, best.f1) == (0.95, 0.5)  # of equal F1, the highest threshold


def test_a_modest_detector_is_no_nan():
    """Focal-loss detectors seldom say more than 0.5; at that threshold precision is nothing over nothing."""
    gt, detections = two_boxes()
    matches = match(gt, [{**d, "score": d["score"] / 3} for d in detections])
    curves = score_curves(matches)
    best, (bins, error) = best_operating_point(curves), reliability(matches)
    text = sentences.threshold(curves, best) + sentences.calibration(bins, error)
    assert best.threshold == 0.31 and "nothing would be shown" in text and "nan" not in text


def test_calibration_by_hand():
    """Crowd boxes and unmatched ones: 0.95 is right, 0.85, 0.25 and 0.35 are not, 0.75 is nothing."""
    gt, detections = two_boxes()
    bins, error = reliability(match(gt, detections))
    assert bins["count"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 1, 1]
    assert error == pytest.approx((0.05 + 0.85 + 0.25 + 0.35) / 4)


def test_confusion_by_hand():
    gt, detections = two_boxes()
    matrix = confusion(gt, detections, match(gt, detections), 0.3)
    names = ["dog", "cat", "background"]
    expected = pd.DataFrame([[0, 1, 0], [0, 1, 1], [1, 0, 0]], index=names, columns=names)
    pd.testing.assert_frame_equal(matrix, expected)
    assert "**dog** is taken for **cat** (once)" in sentences.confusions(matrix)


def test_confusion_rows_add_up_to_the_objects(gt, hard):
    """Classes sorted by id here and by name there would put numbers into the wrong rows."""
    matches = match(gt, hard)
    for threshold in (0.0, 0.5, 1.0):
        matrix = confusion(gt, hard, matches, threshold)
        assert matrix.iloc[:-1].sum(axis=1).tolist() == matches.truth.sum(axis=0).tolist()
    names = {c["id"]: c["name"] for c in gt["categories"]}
    objects = pd.Series([names[a["category_id"]] for a in gt["annotations"] if not a["iscrowd"]]).value_counts()
    for name, count in objects.items():
        assert matrix.loc[name].sum() == count


def test_photos_by_hand():
    gt, detections = two_boxes()
    photos = photo_table(match(gt, detections), 0.3)
    assert photos["image_id"].tolist() == [1, 2]  # best first
    photos = photos.set_index("image_id")
    assert photos.loc[1].tolist() == [2, 1, 1, 1, 0, pytest.approx(0.5)]
    assert photos.loc[2].tolist() == [1, 0, 1, 1, 1, 0]  # one in the crowd


def test_collapsed_training_is_called_out(results):
    """The 0.006 trap: a run that destroyed its checkpoint was handed in as a result."""
    start, best = results
    ruined = types.SimpleNamespace(stats={**best.stats, "mAP": 0.0059})
    strong = types.SimpleNamespace(stats={**start.stats, "mAP": 0.42})
    assert "0.0059" in sentences.collapse(strong, ruined) and "lr" in sentences.collapse(strong, ruined)
    assert sentences.collapse(strong, best) == ""
    assert sentences.collapse(types.SimpleNamespace(stats={"mAP": 0.004}), ruined) == ""  # it never could


def test_unknown_ids_are_named(gt):
    """COCOeval drops detections of unknown photos and categories without a word: the numbers just get worse."""
    good = jittered(gt, 6, 0.1)[:20]
    assert unknown_ids(gt, good) == ""
    assert "category_id 7777" in unknown_ids(gt, [*good, {**good[0], "category_id": 7777}])
    assert "image_id -5" in unknown_ids(gt, [*good, {**good[0], "image_id": -5}])
    strange = [*good, {**good[0], "category_id": 7777, "score": 1.0}]
    assert len(match(gt, strange).row) == len(good)


def test_sentences_of_04_say_what_the_tables_say(gt, results):
    """Prose whose numbers are another checkpoint's, or "better" and "worse" the wrong way round."""
    start, best = results
    assert f"gives {len(best.detections) / len(gt['images']):.1f} boxes a photo" in sentences.boxes(
        "best", best.detections, gt
    )
    assert "1 significantly better than start, 0 significantly worse" in sentences.other_runs([start, best], start)
    assert "0 significantly better than best, 1 significantly worse" in sentences.other_runs([start, best], best)
    assert sentences.pair(start, best) == sentences.pair(best, start)
    assert sentences.pair(start, best).startswith("**best** has")
    same, apart = (
        {"stats": dict(best.stats), "per_class": best.per_class},
        {**best.stats, "mAP50": best.stats["mAP50"] + 0.25},
    )
    assert "to the last bit" in sentences.agreement(same, best)
    assert "differ by up to 2.5e-01" in sentences.agreement({**same, "stats": apart}, best)
    photos = photo_table(best.matches, 0.5)
    perfect = ((photos["f1"] == 1) & (photos["objects"] > 0)).sum()
    assert f"in {perfect} everything is right" in sentences.photos(photos)
    lost = best.matches.truth.sum() - best.matches.right[0].sum()
    assert f"{1 - lost / best.matches.truth.sum():.0%} of all objects" in sentences.curve_ends(best)


def test_rare_sizes_are_not_compared(gt, results):
    """An AP of ten large objects sold as the detector's weak side."""
    few = {
        **gt,
        "annotations": [
            {**a, "area": 20000.0 if k < 5 else 2000.0 if k % 2 else 500.0}
            for k, a in enumerate(a for a in gt["annotations"] if not a["iscrowd"])
        ],
    }
    text = sentences.by_size(types.SimpleNamespace(stats={"mAP_small": 0.3, "mAP_medium": 0.4, "mAP_large": 0.0}), few)
    assert "lowest for **small**" in text and "With 5 large objects" in text


def test_detections_read_like_the_list_they_were_made_of(gt):
    """Numbers that became NumPy's cannot be written as JSON; a row that is another one's shows the wrong box."""
    found = jittered(gt, 9, 0.1)
    arrays = Detections.of(found)
    assert list(arrays) == found and arrays[3] == found[3] and arrays[-1] == found[-1] and len(arrays) == len(found)
    assert json.loads(json.dumps(list(arrays))) == found
    assert Detections.of(arrays) is arrays and not Detections.of([])
    assert arrays.rows(np.array([2])).table()[0].tolist() == [
        found[2]["image_id"],
        *found[2]["bbox"],
        found[2]["score"],
        found[2]["category_id"],
    ]


def test_runs_of_other_data_are_not_compared(gt, results, tmp_path):
    start, best = results
    write_json(tmp_path / "one" / "detections_val2017.json", best.detections)
    write_json(tmp_path / "one" / "detections_val2017_start.json", start.detections)
    write_json(tmp_path / "alien" / "detections_val2017.json", [{**best.detections[0], "image_id": -1}])
    write_json(tmp_path / "one" / "detections_val2017_epoch_1.json", start.detections)
    runs = saved_runs(tmp_path, gt)
    assert list(runs) == ["one", "one (epoch_1)", "one (start)"]
    write_json(tmp_path / "one" / "detections_val2017_last.json", best.detections)
    assert list(saved_runs(tmp_path, gt)) == ["one (epoch_1)", "one (last)", "one (start)"], "the last one only once"
    table = run_table([assess(name, gt, found) for name, found in runs.items()] + [best], best)
    assert table["mAP"].is_monotonic_decreasing and table.loc["one (start)", "significant"] == "yes"


def test_names_are_escaped_and_formulas_are_not_read(gt, results):
    """COCO's files hold names: one may be markup for the page, or a dollar sign for matplotlib."""
    hostile = copy.deepcopy(gt)
    for category in hostile["categories"]:
        category["name"] = f"<script>alert({category['id']})</script> $\\frac{{"
    start, best = (assess(r.name, hostile, r.detections) for r in results)
    table, matrix = per_class_table(start, best), confusion(hostile, best.detections, best.matches, 0.5)
    page = styled(table.set_index("class")).to_html() + styled(matrix).to_html() + styled(table[["class"]]).to_html()
    assert "<script" not in page + sentences.classes(table) + sentences.confusions(matrix)
    for figure in (
        figures.pr_figure(start, best),
        figures.class_ap_figure(table, "a", "b"),
        figures.confusion_figure(matrix, 0.5),
    ):
        figure.savefig(io.BytesIO())


def test_many_classes_stay_legible(gt, results):
    names = [f"class {k}" for k in range(80)] + ["background"]
    counts = np.diag(np.arange(81)) + 1
    figure = figures.confusion_figure(pd.DataFrame(counts, index=names, columns=names), 0.5)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 22 and labels[-2:] == ["other classes", "(no object left)"] and "class 79" in labels


def test_examples_are_twelve_different_photos(gt, index, results, tmp_path):
    """Pictures of an earlier run among those of this one would show another detector."""
    photos = photo_table(results[1].matches, 0.5)
    assert len({image_id for _, image_id in pick_examples(photos)}) == min(12, len(photos))
    assert len(pick_examples(photos.head(2))) == 2 and pick_examples(photos.head(0)) == []
    (tmp_path / "best_00_000000000001.jpg").write_bytes(b"old")
    (tmp_path / "mine.jpg").write_bytes(b"somebody's")
    pictures = write_examples(tmp_path, index, results[1].detections, photos, 0.5)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == len(pictures) + 1 and "mine.jpg" in names
    assert {text.split(":")[0] for text, _ in pictures} == {"best", "typical", "worst"}
    figures.contact_sheet(pictures[:3]).savefig(io.BytesIO())


def test_examples_begin_with_the_best_and_the_worst_of_the_one_ranking(results):
    """04's pictures and 05's "worst photos" named different ones; an empty photo with no box is no best example."""
    photos = photo_table(results[1].matches, 0.5)
    assert (photos["objects"] + photos["false"] == 0).any()
    some = photos.loc[photos["objects"] + photos["false"] > 0, "image_id"].tolist()
    picked = pick_examples(photos)
    assert [image_id for kind, image_id in picked if kind == "worst"] == some[::-1][:4]
    assert [image_id for kind, image_id in picked if kind == "best"] == some[:4]


class OneConvolution(nn.Module):
    """A detector so small that its arithmetic can be counted by hand: one 3 x 3 convolution, 3 to 4 channels."""

    def __init__(self):
        super().__init__()
        self.convolution, self.graphs = nn.Conv2d(3, 4, 3, padding=1), 0

    def to(self, device):
        """Copies the weights, as a move to a GPU does."""
        super().to(torch.float64)
        return super().to(device, torch.float32)

    def forward(self, pixel_values, pixel_mask=None):
        features = self.convolution(pixel_values).mean(dim=(2, 3))[:, None]  # [B, 1, 4]
        self.graphs += features.requires_grad
        return types.SimpleNamespace(logits=features[..., :3], pred_boxes=features)


def test_cost_by_hand():
    """FLOPs are twice the multiply-adds: 3 x 3 x 3 of them for each of 4 x 20 x 30 outputs."""
    from helpers.collator import Preprocess
    from helpers.model import Detector

    preprocess = Preprocess(30, True, 1 / 255, (0.5,) * 3, (0.5,) * 3, InterpolationMode.BILINEAR)
    photos = [
        {
            "image": np.zeros((h, w, 3), np.uint8),
            "boxes_xyxy": np.zeros((0, 4), np.float32),
            "image_id": k,
            "class_labels": np.zeros(0, np.int64),
            "orig_size": (h, w),
        }
        for k, (h, w) in enumerate([(20, 30), (30, 30)])
    ]
    batches = [preprocess.collate(photos[:1]), preprocess.collate(photos)]
    processor = types.SimpleNamespace(post_process_object_detection=lambda output, **_: output)
    detector = Detector(OneConvolution(), processor, preprocess)
    detector.model.convolution.bias.requires_grad_(False)
    table = cost_table(detector, batches, contextlib.nullcontext)["value"]
    assert table["parameters"] * 1e6 == pytest.approx(4 * 27 + 4) and table["of them trained"] * 1e6 == pytest.approx(
        4 * 27
    )
    assert table["arithmetic, 1 photo"] * 1e9 == 2 * 27 * 4 * 20 * 30
    assert table["time per photo, batch 2, median"] <= table["time per photo, batch 2, 95th percentile"]
    assert "in batches of 2" in cost_sentence(table.to_frame())
    assert not torch.is_inference_mode_enabled()
    assert not detector.model.graphs, "a pass kept its activations, which the peak of memory then holds"
    assert [p.requires_grad for p in detector.model.parameters()] == [True, False]


def test_published_figures_are_those_of_the_page():
    page = (ROOT / "docs" / "families.md").read_text()
    rows = re.findall(r"^\|[^`|]*`([^`]+)`[^|]*\| [\d.]+ \| [^|]+ \| ([\d.]+) \|", page, re.MULTILINE)
    assert {name: float(ap) for name, ap in rows} == PUBLISHED


def test_what_ap_costs(tmp_path):
    """A run that another one beats in less time is not worth its own, whatever its AP; names are escaped."""
    measured = {
        "slow": (0.5, 40.0, 200.0),
        "worse_*": (0.4, 10.0, 300.0),
        "fast": (0.3, 2.0, 20.0),
        "same": (0.5, 9.0, 250.0),
    }
    for run, (ap, parameters, ms) in measured.items():
        cost = {"parameters": parameters, "time per photo, batch 1, median": ms}
        write_json(tmp_path / run / "metrics.json", {"stats": {"mAP": ap}, "cost": cost})
    write_json(tmp_path / "old" / "metrics.json", {"stats": {"mAP": 0.9}})
    write_json(tmp_path / "slow" / "config.json", {"model": "facebook/detr-resnet-50"})
    write_json(tmp_path / "fast" / "config.json", {"model": "data/pretrained"})
    table = price_table(tmp_path, [*measured, "old", "nowhere"])
    assert table.index.tolist() == ["slow", "same", "worse_*", "fast"]
    assert table["best"].tolist() == [True, False, False, True]
    assert table["published"]["slow"] == 0.42 and table["published"].isna().sum() == 3
    text = price_sentence(table)
    assert "**slow**" in text and "**fast**" in text and "worse" not in text
    assert "worse\\_\\*" in price_sentence(table.assign(best=True))
    assert "Other runs" in price_sentence(table.head(1))
    assert "published" not in price_table(tmp_path, ["fast", "same"])
    figures.price_figure(table).savefig(tmp_path / "prices.png")
