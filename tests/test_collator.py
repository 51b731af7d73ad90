"""Resizing, normalising and padding are the checkpoint's own processor's."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import DetrImageProcessor, RTDetrImageProcessor

from helpers.boxes import xyxy_to_xywh
from helpers.families.processors import read_processor
from helpers.files import UserError

PROCESSORS = {
    "detr": DetrImageProcessor(size={"max_height": 160, "max_width": 160}),
    "d-fine": RTDetrImageProcessor(size={"height": 160, "width": 160}),
    "normalised square": RTDetrImageProcessor(
        size={"height": 160, "width": 160}, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.2] * 3
    ),
}


def sample(height: int, width: int, boxes_xyxy: np.ndarray, image_id: int) -> dict:
    image = np.random.default_rng(image_id).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return {
        "image": image,
        "boxes_xyxy": boxes_xyxy.astype(np.float32),
        "class_labels": np.arange(len(boxes_xyxy)),
        "image_id": image_id,
        "orig_size": (height, width),
    }


@pytest.fixture
def photos() -> list[dict]:
    """Portrait, landscape, tiny, and one without any box."""
    return [
        sample(300, 200, np.array([[10, 20, 150, 290], [0, 0, 20, 30]]), 1),
        sample(180, 420, np.array([[100, 50, 400, 170]]), 2),
        sample(31, 57, np.array([[1, 2, 3, 4]]), 3),
        sample(100, 100, np.zeros((0, 4)), 4),
    ]


@pytest.mark.parametrize("kind", PROCESSORS)
def test_single_photos_are_the_processors_own(kind, photos):
    """Another resize, another mean or boxes in another frame would cost AP without an error."""
    processor = PROCESSORS[kind]
    preprocess = read_processor(processor)
    for photo in photos:
        annotations = [
            {"bbox": bbox, "category_id": k, "area": bbox[2] * bbox[3], "iscrowd": 0}
            for k, bbox in enumerate(xyxy_to_xywh(photo["boxes_xyxy"]).tolist())
        ]
        theirs = processor(
            images=photo["image"], annotations={"image_id": 1, "annotations": annotations}, return_tensors="pt"
        )
        image, boxes = preprocess.resize(photo["image"], photo["boxes_xyxy"])
        batch = preprocess.collate([{**photo, "image": image, "boxes_xyxy": boxes}])
        ours = preprocess.to_device(batch)
        assert torch.allclose(ours["pixel_values"], theirs["pixel_values"], atol=1e-5)
        assert torch.allclose(ours["labels"][0]["boxes"], theirs["labels"][0]["boxes"], atol=1e-5)
        assert torch.equal(ours["labels"][0]["class_labels"], theirs["labels"][0]["class_labels"])
        if "pixel_mask" in theirs:
            assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])


def test_padding_changes_neither_boxes_nor_pixels(photos):
    """The library's own batch gives boxes relative to the padded canvas; the checkpoint predicts them relative to the
    photo.
    """
    preprocess = read_processor(PROCESSORS["detr"])
    resized = [
        {**p, **dict(zip(("image", "boxes_xyxy"), preprocess.resize(p["image"], p["boxes_xyxy"])))} for p in photos
    ]
    together = preprocess.to_device(preprocess.collate(resized))
    assert together["pixel_values"].shape == (4, 3, 160, 160)
    for k, one in enumerate(resized):
        alone = preprocess.to_device(preprocess.collate([one]))
        height, width = alone["pixel_values"].shape[2:]
        assert torch.equal(together["labels"][k]["boxes"], alone["labels"][0]["boxes"])
        assert torch.equal(together["pixel_values"][k, :, :height, :width], alone["pixel_values"][0])
        assert together["pixel_mask"][k].sum() == height * width
        assert (together["pixel_values"][k][:, together["pixel_mask"][k] == 0] == 0).all()  # as the processor leaves it


@pytest.mark.parametrize("kind", ["detr", "d-fine"])
def test_batch_from_a_worker_is_the_same(kind, photos):
    """What arrives must be what was made, and of the same types; only the pixels take a file descriptor."""
    preprocess = read_processor(PROCESSORS[kind])
    resized = [
        {**p, **dict(zip(("image", "boxes_xyxy"), preprocess.resize(p["image"], p["boxes_xyxy"])))} for p in photos
    ]
    here = preprocess.collate(resized)
    (there,) = torch.utils.data.DataLoader(resized, batch_size=4, num_workers=1, collate_fn=preprocess.collate)
    assert list(here) == list(there) and torch.equal(here["pixel_values"], there["pixel_values"])
    assert [name for name, value in there.items() if torch.is_tensor(value)] == ["pixel_values"]
    for name in here.keys() - {"pixel_values", "labels"}:
        assert here[name] == there[name], name
    for one, other in zip(here["labels"], there["labels"], strict=True):
        for name in ("class_labels", "boxes"):
            assert one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name])
    inputs = preprocess.to_device(there)
    assert ("pixel_mask" in inputs) == (kind == "detr") and inputs["labels"][0]["boxes"].dtype == torch.float32
    unreadable = [{"image": None, "image_id": key} for key in (5, 6)]
    (nothing,) = torch.utils.data.DataLoader(unreadable, batch_size=2, num_workers=1, collate_fn=preprocess.collate)
    assert nothing == {"pixel_values": None, "unreadable": [5, 6]}


def test_padding_to_a_multiple_is_padding(photos):
    """On a GPU, batches of few different sizes: more padding, the same photos, boxes and masks."""
    plain = read_processor(PROCESSORS["detr"])
    wide = dataclasses.replace(plain, multiple=64)
    batches = []
    for preprocess in (plain, wide):
        resized = []
        for photo in photos:
            image, boxes_xyxy = preprocess.resize(photo["image"], photo["boxes_xyxy"])
            resized.append({**photo, "image": image, "boxes_xyxy": boxes_xyxy})
        batches.append(preprocess.to_device(preprocess.collate(resized)))
    narrow, padded = (batch["pixel_values"].shape[2:] for batch in batches)
    assert narrow == (160, 160) and padded == (192, 192)
    assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"][..., :160, :160])
    assert torch.equal(batches[0]["pixel_mask"], batches[1]["pixel_mask"][:, :160, :160])
    assert batches[1]["pixel_mask"].sum() == batches[0]["pixel_mask"].sum()
    for one, other in zip(batches[0]["labels"], batches[1]["labels"]):
        assert torch.equal(one["boxes"], other["boxes"])


def test_tensors_back_to_pixels(photos):
    """What 02 draws is what the model gets: normalisation undone exactly."""
    preprocess = read_processor(PROCESSORS["detr"])
    image, boxes = preprocess.resize(photos[0]["image"], photos[0]["boxes_xyxy"])
    batch = preprocess.to_device(preprocess.collate([{**photos[0], "image": image, "boxes_xyxy": boxes}]))
    assert np.array_equal(preprocess.to_images(batch["pixel_values"])[0], image)


def test_extreme_shapes_resize_to_something():
    """A panorama of 20,000 x 10 pixels must not become zero pixels high."""
    preprocess = read_processor(PROCESSORS["detr"])
    for height, width in ((10, 20000), (20000, 10), (1, 1)):
        image, boxes = preprocess.resize(
            np.zeros((height, width, 3), np.uint8), np.array([[0, 0, width, height]], np.float32)
        )
        assert min(image.shape[:2]) >= 1 and max(image.shape[:2]) == 160
        assert boxes[0].tolist() == [0, 0, image.shape[1], image.shape[0]]


def test_processor_that_does_something_else_is_refused():
    """A resize that we do not reproduce must not be guessed."""
    with pytest.raises(UserError, match="image processor"):
        read_processor(DetrImageProcessor(size={"shortest_edge": 800, "longest_edge": 1333}))
