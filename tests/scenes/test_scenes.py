"""Built-in scenes: the labels are what is seen, and validation holds pictures that training never had."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from helpers.evaluate.comparison import ap_by_sprites
from helpers.files import UserError
from helpers.scenes import scenes
from helpers.scenes.compositor import Canvas
from helpers.scenes.scenes import SCENE_CLASSES, make_scene, write_scenes
from helpers.scenes.sprites import CLUTTER, KINDS, load_sprite, rasterize, variants

TOP10 = ("person", "car", "traffic light", "handbag", "bottle", "cup", "bowl", "chair", "dining table", "book")
STREET = ("person", "car", "bicycle", "bus", "truck", "traffic light", "stop sign", "cat", "dog", "chair")
COUNTS = {"train2017": 120, "val2017": 150}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes")
    write_scenes(path, TOP10, COUNTS["train2017"], COUNTS["val2017"], seed=3)
    return path


def _train(name: str) -> list[str]:
    return KINDS[name].first + KINDS[name].later


def sprites_of(scene) -> list:
    return [thing.label for thing in scene[1]]


@pytest.fixture(scope="module")
def coco(root):
    return {split: COCO(root / "annotations" / f"instances_{split}.json") for split in COUNTS}


def test_same_seed_gives_same_bytes(tmp_path):
    """Trap: a hidden source of randomness makes runs with one seed differ, or a scene depend on how many there are."""
    for folder, n in (("a", 4), ("b", 4), ("longer", 6)):
        write_scenes(tmp_path / folder, STREET, n, 2, seed=5, size=128)
    first, second, longer = (
        {p.relative_to(tmp_path / d): p.read_bytes() for p in sorted((tmp_path / d).rglob("*.*"))}
        for d in ("a", "b", "longer")
    )
    assert first == second and len(first) == 8
    assert all(longer[p] == data for p, data in first.items() if p.suffix == ".jpg")
    write_scenes(tmp_path / "c", STREET, 1, 1, seed=6, size=128)
    other = {p.relative_to(tmp_path / "c"): p.read_bytes() for p in (tmp_path / "c").rglob("*.jpg")}
    assert len(other) == 2 and all(first[p] != data for p, data in other.items()), "the seed changes nothing"


def test_boxes_and_masks_are_what_stays_visible(monkeypatch):
    """Trap: the box of the whole sprite is written where another one covers half of it."""
    pasted = []
    paste = Canvas.paste

    def spy(canvas, patch, left, top, label):
        done = paste(canvas, patch, left, top, label)
        if done:
            pasted.append((patch[..., 3] > 127, left, top, label))
        return done

    monkeypatch.setattr(Canvas, "paste", spy)
    hidden = cut = 0
    for index in range(40):
        pasted.clear()
        picture, things = make_scene(TOP10, "val2017", 1, index)
        height, width = picture.shape[:2]
        seen = np.full((height + 800, width + 800), -1)  # a margin wide enough for what the border cuts
        for i, (solid, left, top, _) in enumerate(pasted):
            seen[400 + top : 400 + top + solid.shape[0], 400 + left : 400 + left + solid.shape[1]][solid] = i
        labelled = [i for i, p in enumerate(pasted) if p[3]]
        assert len(labelled) == len(things)
        for i, thing in zip(labelled, things):
            ys, xs = np.nonzero(seen[400 : 400 + height, 400 : 400 + width] == i)
            assert thing.bbox == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
            assert thing.visible == len(xs) and min(thing.bbox[2:]) >= 6
            assert len(xs) >= 0.25 * pasted[i][0].sum(), "a thing that can hardly be seen is labelled"
            hidden += (seen == i).sum() < pasted[i][0].sum()
            cut += (seen == i).sum() > len(xs)
    assert hidden > 20 and cut > 10, "no occlusion, no truncation: the scenes are too easy"


def test_boxes_lie_on_the_picture(monkeypatch):
    """Trap: mask and pixels go through different code; paint and labels may be shifted against each other."""
    paper, add = (1, 254, 3), scenes._add
    monkeypatch.setattr(scenes, "background", lambda rng, h, w: np.full((h, w, 3), paper, np.uint8))
    monkeypatch.setattr(scenes, "photograph", lambda rng, image: image)
    monkeypatch.setattr(scenes, "_add", lambda *a: add(*a) if a[4] else None)  # nothing without a label
    for index in range(15):
        picture, things = make_scene(tuple(KINDS), "train2017", 2, index)
        painted = (picture != paper).any(-1)
        labelled = np.any([thing.whole_mask(*painted.shape) for thing in things], axis=0)
        assert painted[labelled].all()
        wider = cv2.dilate(labelled.astype(np.uint8), np.ones((3, 3))) > 0  # soft edges and steam
        assert (painted & ~wider).sum() < 0.05 * painted.sum()


def test_statistics_of_the_scenes(coco):
    """Trap: a change of the composition makes the data easy (large, alone) or leaves a class out."""
    for split, data in coco.items():
        records = list(data.anns.values())
        counts = [len(data.getAnnIds(imgIds=i)) for i in data.imgs]
        assert len(counts) == COUNTS[split] and min(counts) >= 2 and max(counts) <= 9
        small = np.mean([r["area"] < 32**2 for r in records])
        assert 0.33 < small < 0.5, small
        share = {c["name"]: len(data.getAnnIds(catIds=c["id"])) / len(records) for c in data.cats.values()}
        assert tuple(share) == TOP10 and max(share, key=share.get) == "person" and min(share.values()) > 0.035, share
    sizes = [(i["height"], i["width"]) for i in coco["train2017"].imgs.values()]
    assert all(max(s) == 256 and min(s) >= 176 for s in sizes)
    assert any(h > w for h, w in sizes) and any(w > h for h, w in sizes), "portrait and landscape are both needed"


def test_validation_holds_sprites_that_training_never_saw(coco):
    """Trap: AP on validation measures memory of the very same drawings."""
    unseen = [r["unseen_sprite"] for r in coco["val2017"].anns.values()]
    assert 1 / 3 < np.mean(unseen) < 0.5 and all(isinstance(u, bool) for u in unseen)
    assert all("unseen_sprite" not in r for r in coco["train2017"].anns.values())
    new = []
    for index in range(25):
        for sprite in sprites_of(make_scene(STREET, "train2017", 8, index)):
            assert sprite.base in _train(sprite.name)
            new += [sprite.base in KINDS[sprite.name].later] if KINDS[sprite.name].later else []
        for sprite in sprites_of(make_scene(STREET, "val2017", 8, index)):
            assert sprite.base in KINDS[sprite.name].unseen + _train(sprite.name)
        for split in COUNTS:  # of the shipped checkpoint: neither what is new in training nor what is held back
            for sprite in sprites_of(make_scene(TOP10, split, 8, index, pretraining=True)):
                assert sprite.base in KINDS[sprite.name].first
    assert 0.4 < np.mean(new) < 0.8, (
        "about LATER_SHARE of training is new to the checkpoint, or fine-tuning has nothing to teach"
    )


def test_ap_of_unseen_sprites_is_theirs_alone(root, coco):
    """Trap: a detector that knows only the drawings of training looks bad on both halves, or good on both."""
    file = root / "annotations" / "instances_val2017.json"
    found = [
        {**{k: r[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for r in coco["val2017"].anns.values()
        if not r["unseen_sprite"]
    ]
    table = ap_by_sprites(file, found)
    assert (
        table["mAP"].iloc[0] == 1
        and table["mAP"].iloc[1] < 0.01
        and table["objects"].sum() == len(coco["val2017"].anns)
    )


def test_every_class_has_sprites_on_both_sides():
    """Trap: one drawing under two names stands on both sides, or a code that OpenMoji lacks fails in scene 1,734."""
    assert set(TOP10 + STREET) == set(SCENE_CLASSES) < set(KINDS)
    codes = []
    for name, kind in KINDS.items():
        for side, least in ((kind.first, 3), (kind.later, 0), (kind.unseen, 2)):
            assert len(set(side)) >= least, name
            for base in side:
                found = variants(base, name)
                codes += {code for code, _ in found}
                for code, number in (found[0], found[-1]):
                    rgba = load_sprite(name, base, code, number).rgba
                    assert rgba.shape[2] == 4 and (rgba[..., 3] > 127).mean() > 0.1, base
    codes += CLUTTER
    assert len(codes) == len(set(codes)), "one drawing is used twice"
    assert all(load_sprite("clutter", code, code, 0).rgba.size for code in CLUTTER)


def test_categories_and_ids_are_cocos(coco):
    """Trap: own numbering, with which a COCO checkpoint's classes no longer match; ids that collide over the splits."""
    ids = {
        "person": 1,
        "car": 3,
        "traffic light": 10,
        "handbag": 31,
        "bottle": 44,
        "cup": 47,
        "bowl": 51,
        "chair": 62,
        "dining table": 67,
        "book": 84,
    }
    for data in coco.values():
        assert {c["name"]: c["id"] for c in data.dataset["categories"]} == ids
        assert data.dataset["licenses"][0]["name"] == "CC BY-SA 4.0"
        assert "OpenMoji" in data.dataset["info"]["description"]
    assert not set(coco["train2017"].imgs) & set(coco["val2017"].imgs)
    assert not set(coco["train2017"].anns) & set(coco["val2017"].anns)


def test_segmentation_is_the_visible_mask(coco):
    """Trap: an empty segmentation (IndexError in annToRLE), or an outline half a pixel inside that fills the holes."""
    found = []
    for record in coco["val2017"].anns.values():
        assert record["segmentation"] and record["iscrowd"] == 0
        area = coco["val2017"].annToMask(record).sum()
        found.append(min(area, record["area"]) / max(area, record["area"]))
    assert np.mean(found) > 0.97 and min(found) > 0.75, (np.mean(found), min(found))
    overlaps = []
    for index in range(20):
        (_, things), first = make_scene(TOP10, "val2017", 3, index), 1_000_001 + index
        for number, thing in enumerate(things):
            mask = coco["val2017"].annToMask(coco["val2017"].anns[first * 16 + number]).astype(bool)
            seen = thing.whole_mask(*mask.shape)
            overlaps.append((mask & seen).sum() / (mask | seen).sum())
    assert np.mean(overlaps) > 0.95 and min(overlaps) > 0.7, (np.mean(overlaps), min(overlaps))


@pytest.mark.parametrize("name, near", [("diningtable", "dining table"), ("Cars", "car"), ("<script>", "")])
def test_unknown_class_names_the_nearest(tmp_path, name, near):
    """Trap: a misspelt class gives an empty class or a KeyError deep inside."""
    with pytest.raises(UserError, match=f"nearest is '{near}"):
        write_scenes(tmp_path, ("person", name), 1, 1, seed=0)
    assert not list(tmp_path.iterdir())


def test_scene_does_not_depend_on_the_machines_fonts():
    """Trap: text in a drawing comes out in whatever font is installed, so two machines make different pictures."""
    text = (
        '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/>'
        '<text x="20" y="60" font-size="40">STOP</text></svg>'
    )
    assert rasterize(text).shape[1] < 40, "the text was drawn"


def test_file_is_plain_coco(root):
    """Trap: a record that COCO's tools cannot read, or an image whose size is not the one written."""
    for split in COUNTS:
        data = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        for image in data["images"][:20]:
            pixels = cv2.imread(str(root / "images" / split / image["file_name"]))
            assert pixels.shape[:2] == (image["height"], image["width"])
        for r in data["annotations"]:
            assert {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"} <= set(r)
            assert 0 < r["area"] <= r["bbox"][2] * r["bbox"][3]
