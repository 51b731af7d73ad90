"""Conversions between box formats."""

import numpy as np
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.boxes import box_iou, cxcywh_to_xyxy, xywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh

side = st.integers(1, 4000)
number = st.floats(0, 1, allow_nan=False)


@st.composite
def boxes_in_image(draw):
    height, width = draw(side), draw(side)
    corners = draw(st.lists(st.tuples(number, number, number, number), min_size=0, max_size=8))
    boxes = np.array(corners, dtype=np.float64).reshape(-1, 4)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    return boxes * [width, height, width, height], height, width


@settings(deadline=None, derandomize=True)
@given(boxes_in_image())
def test_there_and_back(case):
    """Swapped height and width, or a centre taken for a corner, would not come back."""
    boxes_xyxy, height, width = case
    assert np.allclose(xywh_to_xyxy(xyxy_to_xywh(boxes_xyxy)), boxes_xyxy)
    relative = xyxy_to_cxcywh(boxes_xyxy, height, width)
    assert np.all((relative >= 0) & (relative <= 1 + 1e-9))
    assert np.allclose(cxcywh_to_xyxy(relative, height, width), boxes_xyxy, atol=1e-6 * max(height, width))


def test_known_box_in_every_format():
    """A portrait photo of 200 x 100: height and width must not be exchanged."""
    boxes_xyxy = np.array([[10.0, 20.0, 30.0, 60.0]])
    assert xyxy_to_xywh(boxes_xyxy).tolist() == [[10, 20, 20, 40]]
    assert np.allclose(xyxy_to_cxcywh(boxes_xyxy, 200, 100), [[0.2, 0.2, 0.2, 0.2]])
    tensor = torch.from_numpy(boxes_xyxy)
    assert torch.equal(xyxy_to_cxcywh(tensor, 200, 100), torch.from_numpy(xyxy_to_cxcywh(boxes_xyxy, 200, 100)))


@settings(deadline=None, derandomize=True)
@given(boxes_in_image(), boxes_in_image())
def test_iou_is_torchvisions(one, other):
    """An empty box has no overlap with anything, and does not divide by zero."""
    ours = box_iou(one[0], other[0])
    theirs = torchvision.ops.box_iou(torch.from_numpy(one[0]), torch.from_numpy(other[0])).nan_to_num(0).numpy()
    assert ours.shape == (len(one[0]), len(other[0])) and np.allclose(ours, theirs, atol=1e-7)
