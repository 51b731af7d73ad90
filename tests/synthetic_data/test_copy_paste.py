"""Copy-paste: the labels are what is seen, the pixels are where the labels say, and a seed is a picture."""

from __future__ import annotations

import hashlib
import json

import cv2
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from helpers.dataset import read_image
from helpers.download.coco import read_index
from helpers.files import UserError
from helpers.scenes.compositor import Canvas, Layer
from helpers.synthetic_data.copy_paste import MIN_SIDE, MIN_VISIBLE, Context, CopyPaste
from helpers.synthetic_data.objects import Segmentations, cut_out, cut_pool
from helpers.synthetic_data.offline import annotations, make_synthetic, write_synthetic


@pytest.fixture(scope="module")
def copy_paste(split) -> CopyPaste:
    segmentations = Segmentations.read(*split)
    return CopyPaste(segmentations, cut_pool(segmentations, seed=0), objects=4)


def digest(image: np.ndarray) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def masks(copy_paste, made) -> list[np.ndarray]:
    """What is seen of every pasted thing, whole pictures."""
    return [layer.whole_mask(*made.pasted.image.shape[:2]) for layer in made.pasted.layers]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 2**40), st.integers(0, 60), st.sampled_from(["random", "context"]), st.integers(1, 12))
def test_boxes_are_the_tight_boxes_of_what_is_seen(copy_paste, seed, number, places, objects):
    """Trap: the box of the whole sprite where another one lies over it, or of a thing that nobody can see any more."""
    recipe = CopyPaste(copy_paste.segmentations, copy_paste.pool, objects, places)
    made = make_synthetic(recipe, seed, number)
    height, width = made.pasted.image.shape[:2]
    seen = np.zeros((height, width), bool)
    for layer, mask in zip(made.pasted.layers, masks(recipe, made)):
        ys, xs = np.nonzero(mask)
        assert len(xs), "a box without a visible pixel"
        assert layer.bbox == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
        assert min(layer.bbox[2:]) >= MIN_SIDE and len(xs) >= MIN_VISIBLE * layer.area
        assert (
            layer.left >= 0 and layer.left + layer.mask.shape[1] <= width and layer.top + layer.mask.shape[0] <= height
        )
        assert not (seen & mask).any(), "two things are seen at one pixel"
        seen |= mask
    for layer in made.pasted.changed.values():
        if layer is not None:
            assert not (layer.whole_mask(height, width) & seen).any(), "what is covered still counts as seen"
    index = recipe.segmentations.index
    crowds = [row for row in index.rows(made.background) if index.iscrowd[row]]
    assert not set(crowds) & set(made.pasted.changed), "a crowd region was covered"
    assert all(layer.label.base[0] != made.background for layer in made.pasted.layers), "an object of the photo itself"


def test_pixels_change_where_the_masks_are(copy_paste):
    """Trap: picture and labels shifted against each other; or paint where nothing is labelled. One sprite a photo."""
    index, recipe = copy_paste.segmentations.index, CopyPaste(copy_paste.segmentations, copy_paste.pool, objects=1)
    for number in range(20):
        made = make_synthetic(recipe, 3, number)
        before = read_image(index.path(made.background), *made.pasted.image.shape[:2])
        painted, (mask,) = (made.pasted.image != before).any(axis=2), masks(recipe, made)
        assert painted[mask].mean() > 0.9  # a pixel may happen to have the same colour
        wider = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0  # soft edges
        assert (painted & ~wider).sum() <= 0.02 * mask.sum()  # less than half opaque: a hair, a spoke


def test_nothing_pasted_nothing_changed(copy_paste):
    """Trap: boxes that are rounded, or objects that are dropped, in photos that nothing was done to."""
    index = copy_paste.segmentations.index
    step = copy_paste.in_loader
    for i in range(10):
        rows = index.rows(i, crowd=False)
        image = np.random.default_rng(i).integers(0, 255, (96, 128, 3), dtype=np.uint8)
        boxes = index.boxes_xyxy[rows] * np.tile([128 / index.widths[i], 96 / index.heights[i]], 2).astype(np.float32)
        out = step(image.copy(), boxes, i, rows, seed=i, most_objects=0)
        assert np.array_equal(out[0], image) and np.array_equal(out[1], boxes)
        assert np.array_equal(out[2], index.labels[rows]) and out[1].dtype == np.float32 and out[2].dtype == np.int64


def test_same_seed_same_picture(copy_paste):
    """Trap: a hidden source of randomness, or a picture that depends on those before it."""
    one, two = (make_synthetic(copy_paste, 5, 7) for _ in range(2))
    make_synthetic(copy_paste, 5, 6)
    third = make_synthetic(copy_paste, 5, 7)
    assert digest(one.pasted.image) == digest(two.pasted.image) == digest(third.pasted.image)
    assert [layer.bbox for layer in one.pasted.layers] == [layer.bbox for layer in third.pasted.layers]
    others = {digest(make_synthetic(copy_paste, seed, 7).pasted.image) for seed in range(5)}
    assert len(others) > 1


def test_on_the_fly_at_another_size(copy_paste):
    """The loader pastes onto the resized photo: boxes in its pixels, inside of it, the labels their classes."""
    index, step, new = copy_paste.segmentations.index, copy_paste.in_loader, 0
    for i in range(15):
        rows = index.rows(i, crowd=False)
        factor = np.tile([100 / index.widths[i], 80 / index.heights[i]], 2).astype(np.float32)
        image = np.zeros((80, 100, 3), np.uint8)
        image, boxes, labels = step(image, index.boxes_xyxy[rows] * factor, i, rows, seed=i)
        assert image.shape == (80, 100, 3) and len(boxes) == len(labels)
        assert (boxes >= -1e-3).all() and (boxes <= np.array([100, 80, 100, 80]) + 1e-3).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and labels.max(initial=0) < len(index.classes)
        new += max(0, len(boxes) - len(rows))
        most = len(rows) + 1
        assert len(step(np.zeros((80, 100, 3), np.uint8), index.boxes_xyxy[rows] * factor, i, rows, i, most)[1]) <= most
    assert new > 5


def test_covered_objects_shrink_and_go():
    """By hand: a box is cut in half, another one disappears, a crowd region keeps the sprite out."""
    canvas = Canvas(np.zeros((40, 60, 3), np.uint8), 0.3, 2, dropping=True)
    half = Layer(0, 200, np.ones((10, 20), bool), 0, 0)
    gone = Layer(1, 16, np.ones((4, 4), bool), 14, 2)
    crowd = Layer(2, 100, np.ones((10, 10), bool), 50, 30, protected=True)
    canvas.layers = [half, gone, crowd]
    patch = np.full((12, 12, 4), 255, np.uint8)
    assert not canvas.paste(patch, 45, 25, "sprite") and not canvas.image.any() and canvas.layers == [half, gone, crowd]
    assert canvas.paste(patch, 10, 0, "sprite")
    assert [layer.label for layer in canvas.layers] == [0, 2, "sprite"]
    assert canvas.layers[0].bbox == (0, 0, 10, 10) and canvas.layers[0].visible == 100
    assert canvas.image[:12, 10:22].all() and canvas.image.sum() == 255 * 3 * 144


def test_rare_classes_come_as_often(copy_paste):
    """Each class that has sprites is drawn alike, however rare it is in the photos."""
    drawn = [layer.label.name for n in range(120) for layer in make_synthetic(copy_paste, 1, n).pasted.layers]
    counts = np.array([drawn.count(copy_paste.segmentations.index.classes[k]) for k in copy_paste.pool.classes])
    photos = np.bincount(copy_paste.segmentations.index.labels)[copy_paste.pool.classes]
    assert counts.max() / max(counts.min(), 1) < photos.max() / photos.min() / 2, (counts, photos)
    assert 2.5 < len(drawn) / 120 < 5.5, "four a photo were asked for"


def test_context_stands_where_the_class_stands(copy_paste):
    """Heights of pasted things follow those of their class more closely in context than at random places."""
    index = copy_paste.segmentations.index
    context = Context.of(index)
    for k, heights in enumerate(context.heights):
        assert len(heights) == ((index.labels == k) & ~index.iscrowd).sum()
        assert not len(heights) or context.together[k, k] == 1
    apart = {}
    for places in ("random", "context"):
        recipe = CopyPaste(copy_paste.segmentations, copy_paste.pool, 5, places)
        off = []
        for number in range(60):
            made = make_synthetic(recipe, 2, number)
            for layer in made.pasted.layers:
                y = (layer.bbox[1] + layer.bbox[3] / 2) / made.pasted.image.shape[0]
                off.append(abs(y - np.median(context.heights[index.classes.index(layer.label.name)])))
        apart[places] = np.mean(off)
    assert apart["context"] < 0.85 * apart["random"], apart


def test_only_what_has_a_mask_is_cut_out(copy_paste):
    """No crowd region, no bare box; cut-outs are opaque inside, clear outside, soft between."""
    segmentations, pool = copy_paste.segmentations, copy_paste.pool
    for sprite in pool.sprites:
        _, row = sprite.base
        assert segmentations.there[row] and not segmentations.index.iscrowd[row]
        assert sprite.name == segmentations.index.classes[segmentations.index.labels[row]]
        alpha = sprite.rgba[..., 3]
        assert alpha.max() > 200 and (alpha > 127).any(axis=0)[[0, -1]].all(), "not cropped"
    values = np.concatenate([sprite.rgba[..., 3].ravel() for sprite in pool.sprites])
    assert ((values > 20) & (values < 235)).mean() > 0.005, "edges are hard"


def test_a_split_without_masks_is_refused(split):
    segmentations = Segmentations.read(*split)
    bare = Segmentations(segmentations.index, np.zeros(0, np.uint8), np.zeros_like(segmentations.starts))
    with pytest.raises(UserError, match="segmentation"):
        cut_pool(bare, 0)


def test_nan_in_a_field_that_nobody_needs(split, tmp_path):
    """Trap: 01 takes such a file, as pycocotools does, and 06 says that 01 should be run again."""
    (index, file), odd = split, tmp_path / "instances_train2017.json"
    document = orjson.loads(file.read_bytes())
    document["annotations"][0] |= {"score": float("nan"), "name": "\ud800"}
    odd.write_text(json.dumps(document))
    assert len(read_index(odd, index.image_dir).bbox) == len(index.bbox)
    one, other = Segmentations.read(index, file), Segmentations.read(index, odd)
    assert [one.of(row) for row in range(len(index.bbox))] == [other.of(row) for row in range(len(index.bbox))]
    for damaged in (odd.read_text()[:-50], "[]", '{"annotations": [{"id": NaN}, {}]}'):
        odd.write_text(damaged)
        with pytest.raises(UserError, match="run notebook 01_download again"):
            Segmentations.read(index, odd)


def test_masks_are_those_of_pycocotools(split):
    """In the window of their box."""
    index, file = split
    segmentations, coco = Segmentations.read(index, file), COCO(str(file))
    owner, compared = np.repeat(np.arange(len(index)), np.diff(index.starts)), 0
    for row in np.flatnonzero(segmentations.there)[:150]:
        i = int(owner[row])
        height, width = int(index.heights[i]), int(index.widths[i])
        layer = segmentations.layer(int(row), i, height, width)
        whole = coco.annToMask(coco.anns[int(index.annotation_ids[row])]).astype(bool)
        part = np.zeros_like(whole)
        part[layer.top : layer.top + layer.mask.shape[0], layer.left : layer.left + layer.mask.shape[1]] = True
        if whole[part].any():
            assert np.array_equal(layer.whole_mask(height, width), whole & part)
            assert (whole & ~part).sum() <= 0.02 * whole.sum() + 60  # COCO's boxes lie on the masks, nearly
            compared += 1
    assert compared > 50


def test_offline_set_is_plain_coco(copy_paste, tmp_path):
    """pycocotools reads it, the masks decode to the pixels that were drawn, ids are COCO's and nobody else's."""
    index = copy_paste.segmentations.index
    manifest = write_synthetic(tmp_path / "set", copy_paste, 8, seed=4, first_id=5_000_000)
    coco = COCO(str(tmp_path / "set" / "annotations" / "instances_train2017.json"))
    assert sorted(coco.imgs) == list(range(5_000_000, 5_000_008)) and manifest["photos"] == 8
    assert [c["id"] for c in coco.dataset["categories"]] == list(index.category_ids)
    for number in range(8):
        made = make_synthetic(copy_paste, 4, number)
        records = coco.imgToAnns[5_000_000 + number]
        assert (tmp_path / "set" / "images" / "train2017" / coco.imgs[5_000_000 + number]["file_name"]).is_file()
        new = [record for record in records if "source_annotation_id" in record]
        assert len(new) == len(made.pasted.layers)
        for record, mask in zip(new, masks(copy_paste, made)):
            assert np.array_equal(coco.annToMask(record).astype(bool), mask) and record["area"] == mask.sum()
            assert coco_mask.toBbox(coco.annToRLE(record)).tolist() == [float(v) for v in record["bbox"]]
            row = int(np.flatnonzero(index.annotation_ids == record["source_annotation_id"])[0])
            assert record["category_id"] == index.category_ids[index.labels[row]]
        kept = [row for row in index.rows(made.background) if made.pasted.changed.get(row, True) is not None]
        assert len(records) - len(new) == len(kept)
    assert sum(manifest["pasted"].values()) == sum("source_annotation_id" in r for r in coco.anns.values())
    source = manifest["sources"][3]
    assert source["background_image_id"] == coco.imgs[source["image_id"]]["background_image_id"]


def test_untouched_annotations_stay_as_published(copy_paste):
    for number in range(20):
        made = make_synthetic(copy_paste, 9, number)
        index, records = copy_paste.segmentations.index, annotations(copy_paste, made)
        rows = [row for row in index.rows(made.background) if made.pasted.changed.get(row, True) is not None]
        for row, record in zip(rows, records):
            if row not in made.pasted.changed:
                assert record["bbox"] == index.bbox[row].tolist() and record["area"] == index.areas[row]
            else:
                assert record["area"] < index.areas[row] * 1.05 + 1


def test_same_arguments_same_bytes(copy_paste, tmp_path):
    """And a set that is there is not made again, but one of another request is; a stranger's folder is left alone."""
    for name in ("a", "b"):
        write_synthetic(tmp_path / name, copy_paste, 5, seed=4)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))}
        for name in ("a", "b")
    )
    assert first == second and len(first) == 7
    photo = next((tmp_path / "a").rglob("*.jpg"))
    made = photo.stat().st_mtime_ns
    write_synthetic(tmp_path / "a", copy_paste, 5, seed=4)
    assert photo.stat().st_mtime_ns == made
    write_synthetic(tmp_path / "a", copy_paste, 3, seed=4)
    assert len(list((tmp_path / "a").rglob("*.jpg"))) == 3
    (tmp_path / "a" / "manifest.json").write_bytes(orjson.dumps({"source": "demo"}))
    with pytest.raises(UserError, match="another data set"):
        write_synthetic(tmp_path / "a", copy_paste, 3, seed=4)


def test_sprites_are_cut_with_their_edge(split):
    """The blur makes the edge soft within the margin of the cut-out, whose colours are the photo's."""
    index, file = split
    segmentations = Segmentations.read(index, file)
    row = int(np.flatnonzero(segmentations.there & ~index.iscrowd)[0])
    i = int(np.searchsorted(index.starts, row, side="right") - 1)
    image = np.full((int(index.heights[i]), int(index.widths[i]), 3), 200, np.uint8)
    rgba = cut_out(image, segmentations, row, i)
    layer = segmentations.layer(row, i, *image.shape[:2])
    assert abs(rgba.shape[0] - layer.bbox[3]) <= 2 and abs(rgba.shape[1] - layer.bbox[2]) <= 2
    assert (rgba[rgba[..., 3] == 255][:, :3] == 200).all() and (rgba[..., :3] <= rgba[..., 3:]).all()
