"""Every conversion between box formats, for NumPy arrays and torch tensors alike.

``boxes_xyxy``    left, top, right, bottom in pixels
``bbox``          COCO's left, top, width, height in pixels
``boxes_cxcywh``  centre, width, height as fractions of the image *without* padding (what DETR predicts)
"""

import numpy as np


def _stack(like, columns):
    if isinstance(like, np.ndarray):
        return np.stack(columns, axis=-1)
    import torch

    return torch.stack(columns, dim=-1)


def xywh_to_xyxy(bbox):
    """COCO ``bbox`` [..., 4] to ``boxes_xyxy`` [..., 4], pixels."""
    x, y, w, h = (bbox[..., i] for i in range(4))
    return _stack(bbox, (x, y, x + w, y + h))


def xyxy_to_xywh(boxes_xyxy):
    """``boxes_xyxy`` [..., 4] to COCO ``bbox`` [..., 4], pixels."""
    x0, y0, x1, y1 = (boxes_xyxy[..., i] for i in range(4))
    return _stack(boxes_xyxy, (x0, y0, x1 - x0, y1 - y0))


def xyxy_to_cxcywh(boxes_xyxy, height: int, width: int):
    """Pixels to fractions of an image of ``height`` x ``width`` pixels, [..., 4] to [..., 4]."""
    x0, y0, x1, y1 = (boxes_xyxy[..., i] for i in range(4))
    return _stack(boxes_xyxy, ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height))


def cxcywh_to_xyxy(boxes_cxcywh, height: int, width: int):
    """Fractions of an image of ``height`` x ``width`` pixels to pixels, [..., 4] to [..., 4]."""
    cx, cy, w, h = (boxes_cxcywh[..., i] for i in range(4))
    corners = (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
    return _stack(boxes_cxcywh, corners)


def box_area(boxes_xyxy: np.ndarray) -> np.ndarray:
    return np.prod(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], axis=-1)


def intersection(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Area that every pair has in common: [n, 4] and [m, 4] to [n, m]."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # [n, m, 2]
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(axis=-1)


def box_iou(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: [n, 4] and [m, 4] to [n, m]; 0 where the union is empty."""
    both = intersection(a_xyxy, b_xyxy)
    union = box_area(a_xyxy)[:, None] + box_area(b_xyxy)[None, :] - both
    return np.divide(both, union, out=np.zeros_like(union, dtype=float), where=union > 0)
