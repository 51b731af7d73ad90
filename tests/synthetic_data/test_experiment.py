"""The experiment: arms differ in what they learn from and in nothing else, and the table says what was measured."""

from __future__ import annotations

import json

import numpy as np
import orjson
import pandas as pd
import pytest
import tiny
from torch.utils.data import DataLoader

from helpers.augment import Augment
from helpers.config import load_config
from helpers.dataset import CocoDetection
from helpers.evaluate.comparison import assess, difference
from helpers.families.loading import load_detector
from helpers.files import UserError
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth, load_detections
from helpers.synthetic_data import arms, figures, sentences
from helpers.synthetic_data.arms import (
    ARMS,
    VALIDATE,
    arm_config,
    photos_per_epoch,
    plan,
    prepare_arm,
    real_part,
    synthetic_dir,
)
from helpers.synthetic_data.copy_paste import paste_step, recipe
from helpers.synthetic_data.experiment import effects, run_arms, scores, start_ap
from helpers.synthetic_data.probe import probe
from helpers.train.training import build

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny_cfg(cfg):
    """The split of ten classes, and a detector that trains in seconds."""
    folder = cfg.output_dir.parent
    model = tiny.dfine(folder / "dfine", backbone="test_efficientnet", channels=(32, 48, 64))
    changes = {"model": str(model), "image_size": 96, "batch_size": 4, "num_workers": 0, "arm_steps": 3, "ema": 0}
    arms = {"arms": ["real", "offline", "on_the_fly"], "arm_seeds": [0, 1], "real_share": [0.5]}
    return cfg.with_(**changes, **arms, overwrite=False, precision="fp32")


@pytest.fixture(scope="module")
def table(tiny_cfg):
    return list(run_arms(tiny_cfg))[-1]


def test_arms_differ_in_their_data_alone(tiny_cfg, table):
    """Trap: one arm trains for longer, sees other validation photos, or starts from something else."""
    assert len(table) == 6 and table["run"].is_unique
    assert set(table["steps"]) == {3} and set(table["photos"]) == {12}
    configs = [json.loads((tiny_cfg.output_dir / run / "config.json").read_text()) for run in table["run"]]
    differ = {name for name in configs[0] if len({str(each[name]) for each in configs}) > 1}
    assert differ == {"data_dir", "run_name", "seed", "copy_paste", "arms", "arm_seeds"}
    for share, seed, arm in plan(tiny_cfg):
        ours = arm_config(tiny_cfg, share, seed, arm)
        assert (ours.copy_paste != "none") == (arm == "on_the_fly")
        truth = [ground_truth(open_split(each, "val2017"))["images"] for each in (ours, tiny_cfg)]
        assert truth[0] == truth[1][:VALIDATE], "the loop validates with other photos"
    written = pd.read_csv(tiny_cfg.output_dir / "synthetic_data" / "arms.csv")
    assert written["mAP"].tolist() == table["mAP"].tolist()
    for row in table.itertuples():
        file = tiny_cfg.output_dir / row.run / "detections_val2017_last.json"
        stats = coco_metrics(ground_truth(open_split(tiny_cfg, "val2017")), load_detections(file))["stats"]
        assert stats["mAP"] == row.mAP


def test_arms_learn_from_their_share_alone(tiny_cfg, table):
    """Trap: synthetic photos made of photos that the arm must not have, or a share that is another one in each arm."""
    train = open_split(tiny_cfg, "train2017")
    for seed in (0, 1):
        mine = set(real_part(train, 0.5, seed).image_ids.tolist())
        assert len(mine) == round(0.5 * len(train)) and mine <= set(real_part(train, 0.9, seed).image_ids.tolist())
        for arm, kind in ARMS.items():
            prepare_arm(tiny_cfg, 0.5, seed, arm)
            ours = arm_config(tiny_cfg, 0.5, seed, arm)
            document = orjson.loads(ours.annotation_file("train2017").read_bytes())
            assert len(document["images"]) == photos_per_epoch(tiny_cfg) == 12
            made = [image for image in document["images"] if "background_image_id" in image]
            real = {image.get("copy_of", image["id"]) for image in document["images"]} - {image["id"] for image in made}
            assert len(made) == round((1 - kind.real) * 12) and real <= mine
            assert {image["background_image_id"] for image in made} <= mine
            theirs = {int(k) for k in train.annotation_ids[np.isin(_owners(train), sorted(mine))]}
            assert {r["source_annotation_id"] for r in document["annotations"] if "source_annotation_id" in r} <= theirs
            assert not open_split(ours, "train2017").dropped


def _owners(index) -> np.ndarray:
    return np.repeat(index.image_ids, np.diff(index.starts))


def test_an_epoch_longer_than_the_photos_repeats_them(tiny_cfg):
    """Under new ids, so that each copy is augmented in another way; nothing of a photo is pasted onto a copy of it."""
    many = tiny_cfg.with_(arm_steps=40, run_name="many")
    manifest = prepare_arm(many, 0.5, 0, "real")
    ours = arm_config(many, 0.5, 0, "real")
    index = open_split(ours, "train2017")
    assert (
        len(index) == manifest["photos"] == 160
        and not index.dropped
        and manifest["different_photos"] == manifest["real_photos"]
    )
    assert len(set(index.image_ids.tolist())) == 160 and len(set(index.annotation_ids.tolist())) == len(index.bbox)
    step = recipe(ours, index, "random")
    bases = [sprite.base[0] for sprite in step.pool.sprites]
    assert len({sprite.base for sprite in step.pool.sprites}) == len(step.pool.sprites)
    assert max(bases) < manifest["different_photos"], "an object is in the pool twice"
    before = ours.annotation_file("train2017").stat().st_mtime_ns
    prepare_arm(many, 0.5, 0, "real")
    assert ours.annotation_file("train2017").stat().st_mtime_ns == before, "made again for nothing"


def test_resume_reads_what_is_done(tiny_cfg, table):
    """Without ``resume`` a run is not written over; with it nothing is trained again, unless the recipe changed."""
    with pytest.raises(UserError, match="resume=auto"):
        next(run_arms(tiny_cfg.with_(lr=0.001)))
    checkpoint = tiny_cfg.output_dir / table["run"][0] / "checkpoint_last" / "model.safetensors"
    before = checkpoint.stat().st_mtime_ns
    again = list(run_arms(tiny_cfg.with_(resume="auto")))[-1]
    assert again.equals(table) and checkpoint.stat().st_mtime_ns == before
    fewer = list(run_arms(tiny_cfg.with_(resume="auto", arm_seeds=[1], arms=["on_the_fly", "real"])))[-1]
    assert checkpoint.stat().st_mtime_ns == before and set(fewer["run"]) < set(table["run"])
    with pytest.raises(UserError, match="made with another lr"):
        next(run_arms(tiny_cfg.with_(resume="auto", lr=0.001)))


def test_the_loader_needs_the_step_that_the_config_asks_for(tiny_cfg):
    """Trap: copy_paste=random in a config, and nothing is pasted."""
    with pytest.raises(UserError, match="paste_step"):
        build(tiny_cfg.with_(copy_paste="random"))
    assert paste_step(tiny_cfg) is None


def test_workers_give_the_same_pictures(tiny_cfg):
    """Trap: a generator that every worker copies: pictures that depend on the number of workers."""
    index, resize = open_split(tiny_cfg, "train2017"), load_detector(tiny_cfg, tuple(TEN)).preprocess.resize
    step = paste_step(tiny_cfg.with_(copy_paste="context"))

    def seen(workers: int, epoch: int) -> list:
        data = CocoDetection(index, resize, Augment("light"), seed=3, epoch=epoch, paste=step)
        loader = DataLoader(data, batch_size=None, sampler=range(16), num_workers=workers, collate_fn=_as_it_is)
        return [(s["image"].tobytes(), s["boxes_xyxy"].tobytes(), s["class_labels"].tobytes()) for s in loader]

    assert seen(0, 0) == seen(2, 0) == seen(3, 0)
    assert seen(0, 1) != seen(0, 0), "every epoch pastes the same"


def _as_it_is(sample: dict) -> dict:
    return sample


TEN = ("person", "car", "traffic light", "handbag", "bottle", "cup", "bowl", "chair", "dining table", "book")


def test_scores_and_effects_are_those_of_the_evaluation(tiny_cfg):
    """Trap: an interval around another number than the table's; pairs of runs with other bootstrap samples."""
    gt = ground_truth(open_split(tiny_cfg, "val2017"))
    random = np.random.default_rng(0)
    good = [
        {**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": random.random()} for a in gt["annotations"]
    ]
    worse = [d for d in good if random.random() < 0.6]
    for name, found in (("a", good), ("b", worse)):
        stats = coco_metrics(gt, found)["stats"]
        ours = scores(gt, found)
        assert ours["all"][0] == pytest.approx(stats["mAP"])
        for size in ("small", "medium", "large"):
            if stats[f"mAP_{size}"] >= 0:
                assert ours[size][0] == pytest.approx(stats[f"mAP_{size}"]), (name, size)
    for run, found in (("x-real", worse), ("x-offline", good)):
        folder = tiny_cfg.output_dir / run
        folder.mkdir(exist_ok=True)
        (folder / "detections_val2017_last.json").write_bytes(orjson.dumps(found))
    table = pd.DataFrame([{"arm": arm, "share": 1.0, "seed": 0, "run": f"x-{arm}"} for arm in ("real", "offline")])
    row = effects(tiny_cfg, table).set_index("group").loc["all"]
    theirs = difference(*(assess(n, gt, found, seed=tiny_cfg.seed) for n, found in (("a", worse), ("b", good))), "mAP")
    assert row["value"] == pytest.approx(theirs["value"])
    assert (row["low"], row["high"]) == pytest.approx(theirs["interval"], abs=1e-9)
    assert sentences.verdict(row).startswith("better")


def test_words_and_pictures_of_the_experiment(tiny_cfg, table):
    """Every figure draws; no gain reads as one; a class name is escaped."""
    compared = effects(tiny_cfg, table)
    assert set(compared["arm"]) == {"offline", "on_the_fly"} and (compared["seeds"] == 2).all()
    for groups in (("all", "small", "medium", "large"), TEN):
        assert figures.effects_figure(compared, groups).axes
    assert figures.shares_figure(table).axes
    text = sentences.learnt(compared, table, 12, list(TEN))
    assert text.count("\n- ") == 5 and "2 seeds" in text and "nan" not in text
    assert "0 of 6 runs ended above the untouched start (mAP 0.900): " in sentences.learnt(
        compared, table, 12, list(TEN), 0.9
    )
    assert start_ap(tiny_cfg) is None, "04 has not been here"
    assert start_ap(tiny_cfg.with_(output_dir=tiny_cfg.output_dir / "none")) is None, "nor has anything else"
    row = pd.Series(
        {"arm": "offline", "share": 1.0, "base": 0.2, "value": 0.01, "low": -0.01, "high": 0.03, "seeds": 3}
    )
    assert sentences.arm(row).endswith("no gain that this experiment can show.")
    assert sentences.verdict(row.replace({0.03: -0.001, 0.01: -0.005})) == "it hurts"
    assert sentences.verdict(row.replace({-0.01: 0.001})) == "it helps"
    assert "one training" in sentences.verdict(row.replace({-0.01: 0.001, 3: 1})), "sure of what one training did"
    odd = compared.assign(group="<b>*", low=0.1, high=0.2, value=0.15)
    assert r"&lt;b&gt;\*" in sentences.groups(odd, ["<b>*"], "class")


def test_probe_sees_what_is_there(tiny_cfg):
    """Photos with a grey bar are told from photos; photos from other photos are not."""
    detector = load_detector(tiny_cfg, tuple(TEN))
    step = recipe(tiny_cfg, open_split(tiny_cfg, "train2017"), "random")
    found, control = probe(detector, step, seed=0, most=30)
    assert len(found.scores) == 60 and found.synthetic.sum() == 30 and len(found.by_look()) == 30
    low, high = found.interval
    assert low < found.accuracy < high and control.accuracy < 0.8
    assert found.by_look()[0][1] == found.scores[found.synthetic].max()
    assert figures.probe_figure(found, control).axes and f"{found.accuracy:.0%}" in sentences.probe(found, control)
    assert not list((synthetic_dir(tiny_cfg)).glob("images")), "the probe writes nothing"


def test_arm_without_a_background_is_a_sentence(monkeypatch, tmp_path):
    """Every photo that objects were to be pasted onto is broken."""
    for name in ("recipe", "first_free_id"):
        monkeypatch.setattr(arms, name, lambda *_: None)
    monkeypatch.setattr(arms, "write_photos", lambda *_: [None, None])
    cfg = load_config("demo", data_dir=tmp_path / "data", output_dir=tmp_path)
    with pytest.raises(UserError, match="No photo of .* can be read to paste objects onto: see notebook 02_sanity"):
        arms._synthetic(cfg, None, cfg, "random", 3)
