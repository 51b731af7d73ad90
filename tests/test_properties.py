"""Whatever comes in: valid input keeps the invariants, invalid input is refused or dropped and counted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode

from helpers.augment import MIN_SIDE, Augment
from helpers.boxes import box_iou, cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh
from helpers.collator import Preprocess
from helpers.download import reader
from helpers.download.coco import read_index, read_split
from helpers.download.records import check_file_name
from helpers.files import UserError
from helpers.index import CocoIndex

quick = settings(max_examples=60, deadline=None, derandomize=True)
LEVELS = {level: Augment(level) for level in ("light", "full", "strong")}
PREPROCESS = {
    True: Preprocess(48, True, 1 / 255, (0.5,) * 3, (0.25,) * 3, InterpolationMode.BILINEAR),
    False: Preprocess(48, False, 1 / 255, (0.0,) * 3, (1.0,) * 3, InterpolationMode.BILINEAR),
}


@st.composite
def samples(draw, most_boxes: int = 6) -> dict:
    """A photo with boxes that may touch or leave its border, or have no area, as COCO's own do after rounding."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    corner = st.floats(-0.25, 1.25, width=32)
    boxes = np.array(
        draw(st.lists(st.tuples(corner, corner, corner, corner), max_size=most_boxes)), dtype=np.float32
    ).reshape(-1, 4)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    image = np.full((height, width, 3), draw(st.integers(1, 255)), np.uint8)
    return {
        "image": image,
        "boxes_xyxy": boxes * np.array([width, height] * 2, np.float32),
        "class_labels": np.arange(len(boxes)),
        "image_id": draw(st.integers(0, 10**12)),
        "orig_size": (height, width),
    }


# ---- boxes ----


@quick
@given(samples(), st.booleans())
def test_conversions_undo_each_other(sample, as_tensor):
    boxes_xyxy = torch.from_numpy(sample["boxes_xyxy"]).double() if as_tensor else sample["boxes_xyxy"].astype(float)
    height, width = sample["orig_size"]
    for there, back in (
        (xyxy_to_xywh, xywh_to_xyxy),
        (lambda b: xyxy_to_cxcywh(b, height, width), lambda b: cxcywh_to_xyxy(b, height, width)),
    ):
        other = there(boxes_xyxy)
        assert type(other) is type(boxes_xyxy) and other.shape == boxes_xyxy.shape and (other[..., 2:] >= 0).all()
        assert np.allclose(back(other), boxes_xyxy, atol=1e-9 * max(height, width))


@quick
@given(samples(), samples())
def test_overlap_is_symmetric_and_a_fraction(one, other):
    iou = box_iou(one["boxes_xyxy"], other["boxes_xyxy"])
    assert ((iou >= 0) & (iou <= 1 + 1e-6)).all() and np.allclose(
        iou, box_iou(other["boxes_xyxy"], one["boxes_xyxy"]).T
    )
    itself = np.diag(box_iou(one["boxes_xyxy"], one["boxes_xyxy"]))
    area = np.prod(one["boxes_xyxy"][:, 2:] - one["boxes_xyxy"][:, :2], axis=1)
    assert np.allclose(itself[area > 1e-6], 1)


# ---- augmentation ----


@quick
@given(samples(), st.sampled_from(sorted(LEVELS)), st.integers(0, 2**32 - 1), st.booleans())
def test_augmentation(sample, level, seed, keep_aspect):
    """Boxes inside the photo and no thinner than a pixel, each with its own label as a whole number, the same for the
    same seed.
    """
    image, boxes_xyxy = PREPROCESS[keep_aspect].resize(sample["image"], sample["boxes_xyxy"])
    out, boxes, labels = LEVELS[level](image, boxes_xyxy, sample["class_labels"], seed)
    assert out.shape == image.shape and out.dtype == np.uint8
    assert boxes.shape == (len(labels), 4) and boxes.dtype == np.float32 and labels.dtype == np.int64
    assert len(set(labels)) == len(labels) and set(labels) <= set(sample["class_labels"])
    height, width = image.shape[:2]
    assert (boxes >= 0).all() and (boxes <= np.array([width, height] * 2) + 1e-3).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE - 1e-3).all()
    again = LEVELS[level](image, boxes_xyxy, sample["class_labels"], seed)
    assert all(np.array_equal(a, b) for a, b in zip((out, boxes, labels), again))


# ---- collation ----


@quick
@given(
    st.lists(
        st.one_of(samples(), st.integers(0, 10**12).map(lambda key: {"image": None, "image_id": key})),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_collation(batch_of, keep_aspect):
    """The mask counts the photo's pixels, boxes are fractions of the photo without padding, photos that are broken
    are listed.
    """
    preprocess, good = PREPROCESS[keep_aspect], [sample for sample in batch_of if sample["image"] is not None]
    resized = [
        sample
        if sample["image"] is None
        else {**sample, **dict(zip(("image", "boxes_xyxy"), preprocess.resize(sample["image"], sample["boxes_xyxy"])))}
        for sample in batch_of
    ]
    batch = preprocess.collate(resized)
    assert batch["unreadable"] == [sample["image_id"] for sample in batch_of if sample["image"] is None]
    if not good:
        assert batch["pixel_values"] is None
        return
    assert batch["image_ids"] == [sample["image_id"] for sample in good] and batch["pixel_values"].dtype == torch.uint8
    assert batch["orig_sizes"] == [sample["orig_size"] for sample in good]
    inputs = preprocess.to_device(batch)
    assert ("pixel_mask" in inputs) == keep_aspect
    for k, sample in enumerate(sample for sample in resized if sample["image"] is not None):
        height, width = sample["image"].shape[:2]
        pixels, label = batch["pixel_values"][k], inputs["labels"][k]
        assert (pixels[:, :height, :width].permute(1, 2, 0).numpy() == sample["image"]).all()
        assert pixels.count_nonzero() == np.count_nonzero(sample["image"]), "padding is zero"
        if keep_aspect:
            assert max(height, width) in (47, 48)  # transformers cuts 47 * (48 / 47) to 47, and so do we
            mask = inputs["pixel_mask"][k]
            assert mask.sum() == height * width and mask[:height, :width].all()
        assert label["boxes"].dtype == torch.float32 and label["class_labels"].dtype == torch.int64
        assert len(label["boxes"]) == len(label["class_labels"]) == len(sample["class_labels"])
        assert ((label["boxes"] >= 0) & (label["boxes"] <= 1 + 1e-6)).all()
        back = cxcywh_to_xyxy(label["boxes"], height, width).numpy()
        assert np.allclose(back, sample["boxes_xyxy"], atol=1e-3)


# ---- records ----

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 60),
    st.integers(),
    st.just(10**400),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(-5, 60), max_size=5),
)


def mostly(usual: dict):
    """Records with all usual fields; in every other one a field is something else, or is not there."""

    def spoil(record: dict, field: str, value) -> dict:
        return {
            name: value if name == field else kept for name, kept in record.items() if name != field or value != "gone"
        }

    whole = st.fixed_dictionaries(usual)
    return st.one_of(
        whole,
        st.builds(
            spoil, whole, st.sampled_from(sorted(set(usual) - {"file_name"})), st.one_of(anything, st.just("gone"))
        ),
    )


record = mostly(
    {
        "id": st.integers(1, 40),
        "image_id": st.integers(1, 3),
        "category_id": st.integers(2, 3),
        "iscrowd": st.integers(0, 1),
        "area": st.floats(1, 900),
        "bbox": st.lists(st.floats(0, 20), min_size=4, max_size=4),
        "segmentation": st.lists(
            st.lists(st.one_of(st.floats(0, 20), st.floats(), st.just(10**400)), max_size=4), max_size=2
        ),
    }
)
photo = mostly(
    {
        "file_name": st.sampled_from(["1.jpg", "2.jpg", "3.jpg"]),
        "id": st.integers(1, 3),
        "width": st.integers(10, 50),
        "height": st.integers(10, 50),
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("records")
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        (made / name).write_bytes(b"")
    return made


PHOTO = {"file_name": "1.jpg", "id": 1, "width": 40, "height": 30}
PLAIN = {
    "id": 1,
    "image_id": 1,
    "category_id": 2,
    "bbox": [1, 1, 5.5, 5],
    "area": 20,
    "iscrowd": 0,
    "segmentation": [[1, 2, 3.5, 4], [5, 6]],
}


@settings(quick, max_examples=150)
@example(
    images=[PHOTO], annotations=[{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 10**400}]
)
@example(images=[{**PHOTO, "width": 2**40}], annotations=[])
@given(images=st.lists(photo, max_size=4), annotations=st.lists(record, max_size=6))
def test_records_are_kept_or_counted(folder, images, annotations):
    """Any record is usable or in the list of what was dropped, a photo's own with it; what notebook 01 writes of them
    is usable as it stands; nothing ends in a traceback.
    """
    file = folder / "coco.json"
    categories = [{"id": 2, "name": "a"}, {"id": 3, "name": "b"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    index, source = read_index(file, folder), read_split([(file, folder)])
    (folder / "written.json").write_bytes(b"".join(source.document()))
    assert as_lists(read_index(folder / "written.json", folder)) == {**as_lists(index), "dropped": []}
    with_their_photo = sum(int(n) for row in index.dropped for n in re.findall(r"its (\d+) annotations", row["why"]))
    named = {repr(image.get("id")) for image in images}
    assert with_their_photo <= sum(repr(r.get("image_id")) in named for r in annotations)
    assert len(index) + len(index.bbox) + len(index.dropped) + with_their_photo == len(images) + len(annotations)
    assert len(set(index.annotation_ids)) == len(index.annotation_ids) and len(set(index.image_ids)) == len(index)
    for i in range(len(index)):
        for x, y, w, h in index.bbox[index.rows(i)]:
            assert (
                math.isfinite(x + y + w + h)
                and w > 0
                and h > 0
                and x < index.widths[i]
                and y < index.heights[i]
                and x + w > 0
                and y + h > 0
            )
    assert set(index.labels) <= {0, 1} and np.isfinite(index.areas).all()


part = st.sampled_from(["..", ".", "a", "b.jpg", "", "~", "C:", "\\", "/", "//host", "a\\..\\..", "\0", " ", "…", "🐶"])


@settings(quick, max_examples=300)
@given(
    st.one_of(
        st.lists(part, max_size=5).map("/".join),
        st.lists(part, max_size=5).map("\\".join),
        st.text(max_size=12),
        anything,
    )
)
def test_photo_name_that_is_taken_stays_inside(name):
    """However it is spelt, for this system and for Windows: what is not refused lies below the folder."""
    try:
        check_file_name(name, Path("coco.json"))
    except UserError:
        return
    root = Path("/data/images")
    for spelt in (name, name.replace("\\", "/")):
        inside = Path("/data/images", spelt).resolve(strict=False)
        assert inside.is_relative_to(root) and "\0" not in spelt


def as_lists(index: CocoIndex) -> dict:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(index).items()
        if name != "boxes_xyxy"
    }


@settings(quick, max_examples=200)
@example(
    images=[PHOTO],
    annotations=[
        {**PLAIN, "id": k, "segmentation": s}
        for k, s in enumerate(
            (
                [],
                [[1, 2.5], [3]],
                [[1], 2],
                [3, [1]],
                [[1, [2]]],
                [[]],
                [[1], []],
                "x",
                {"counts": [1]},
                None,
                [[1e5]],
                [[True]],
                [[10**300]],
                [["1"]],
                [{"a": [1]}],
                [[1], [2], 3],
                [[[1]]],
                [[-1, 2], [3, 4], [5]],
            )
        )
    ],
    damage=None,
    indent=None,
)
@example(
    images=[PHOTO], annotations=[{**PLAIN, "id": 5}, {**PLAIN, "id": 6}, {**PLAIN, "id": 5}], damage=None, indent=None
)
@example(
    images=[PHOTO],
    annotations=[{**PLAIN, "bbox": [1, 1, 0, 5]}, {**PLAIN, "note": "}, {"}, {**PLAIN, "id": 9, "note": [{}, {}]}],
    damage=None,
    indent=1,
)
@given(
    images=st.lists(photo, max_size=4),
    annotations=st.lists(record, max_size=6),
    indent=st.sampled_from([None, 1]),
    damage=st.one_of(
        st.none(),
        st.tuples(
            st.integers(0, 2000),
            st.sampled_from(['"annotations": [', "},{", "}]", "", "\0", "9" * 400, "e", "[", "NaN"]),
        ),
    ),
)
def test_reading_in_pieces_is_reading_record_by_record(folder, images, annotations, damage, indent):
    """The quick way must find what the slow way finds, in the same words; where it cannot, it must leave the file to
    it.
    """
    file = folder / "pieces.json"
    text = json.dumps(
        {"images": images, "annotations": annotations, "categories": [{"id": 2, "name": "a"}, {"id": 3, "name": "b"}]},
        indent=indent,
    )
    if damage:
        text = text[: damage[0]] + damage[1] + text[damage[0] :]
    file.write_text(text)
    found = []
    for size, plain in ((5000, True), (2, True), (5000, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reader, "PIECE", size)
            if not plain:
                patch.setattr(reader._Judge, "plain", lambda *_: None)
            try:
                found.append(as_lists(read_index(file, folder)))
            except UserError as error:
                found.append(str(error))
    assert repr(found[0]) == repr(found[2]) and repr(found[1]) == repr(found[2])


def test_ordinary_records_are_checked_by_the_column(folder, monkeypatch):
    """Otherwise the test above would compare the slow way with itself."""
    annotations = [{**PLAIN, "id": k, "bbox": [1, 1, 0 if k == 7 else 5, 5]} for k in range(50)]
    (folder / "plain.json").write_text(
        json.dumps({"images": [PHOTO], "annotations": annotations, "categories": [{"id": 2, "name": "a"}]}, indent=1)
    )
    slow, judge = [], reader._Judge.one_by_one
    monkeypatch.setattr(reader, "PIECE", 5)
    monkeypatch.setattr(reader._Judge, "one_by_one", lambda self, texts: slow.append(len(texts)) or judge(self, texts))
    index = read_index(folder / "plain.json", folder)
    assert slow == [5], "only the piece with the unusual record"
    assert index.annotation_ids.tolist() == [k for k in range(50) if k != 7]
    assert index.dropped == [{"file": "1.jpg", "why": "annotation 7: bbox [1, 1, 0, 5] has no area"}]
