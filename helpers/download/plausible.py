"""Boxes and areas that are numbers like COCO's and mean something else: told from what all of a split look like."""

import numpy as np

from helpers.files import UserError
from helpers.index import CocoIndex

OUT = 2  # pixels; COCO's own boxes reach out of their photos by a fraction of one


def check_boxes(index: CocoIndex, split: str) -> list[str]:
    """Sentences about boxes that reach out of their photos and about areas that do not fit.

    Raises UserError where the boxes cannot be COCO's x, y, width, height in pixels.
    """
    if not len(index.bbox):
        return []
    size = np.repeat(np.stack([index.widths, index.heights], axis=1), np.diff(index.starts), axis=0)  # [M, 2]
    unit = (np.abs(index.bbox) <= 1.001).all(axis=1) & (size > 4).all(axis=1)
    small = f"Boxes of {split} that are smaller than a pixel: {unit.sum()} of {len(unit)}, {_first(index, unit)}"
    if 2 * unit.sum() > len(unit):
        raise UserError(
            f"{small}. bbox looks like fractions of the photo; COCO's are pixels: multiply by the photo's width and "
            "height."
        )
    far = index.bbox[:, :2] + index.bbox[:, 2:]
    if len(far) >= 10 and size.min() > 200 and 80 < far.max() <= 100.5:
        raise UserError(
            f"All {len(far)} boxes of {split} lie within the first 100 pixels of photos that are larger, "
            f"{_first(index, far.max(axis=1) == far.max())}: bbox looks like percent of the photo; COCO's are pixels."
        )
    reaches = np.maximum(far - size, -index.bbox[:, :2])  # [M, 2] pixels
    reach, notes = reaches.max(axis=1), []
    out = reach > OUT
    if out.any():
        worst = reach == reach.max()
        text = f"Boxes of {split} that reach out of their photo: {out.sum()} of {len(out)}, farthest "
        text += f"{_first(index, worst)}, by {reach.max():.0f} pixels"
        far_out = (reaches / index.bbox[:, 2:]).max() > 0.25  # of a box's side: no hand slips that far
        for name, boxes_xyxy in _readings(index.bbox, size, out.mean() > 0.2) if far_out else ():
            inside = (boxes_xyxy >= -1).all() and (boxes_xyxy[:, 2:] <= size + 1).all()
            if inside and (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all():
                raise UserError(f"{text}. All fit if bbox holds {name}; COCO's is x, y, width, height in pixels.")
        notes.append(f"{text}. Were they drawn in another size of the photos? COCO's bbox is x, y, width, height.")
    if unit.any():
        notes.append(f"{small}.")
    return [*notes, *filter(None, [area_doubt(index, split)])]


def area_doubt(index: CocoIndex, split: str) -> str:
    """A sentence where ``area`` is not that of objects inside of these boxes, else nothing."""
    single = ~index.iscrowd
    area, box = index.areas[single], index.bbox[single, 2:].prod(axis=1)
    if not len(area):
        return ""
    above = area > 1.05 * box + 10
    if above.mean() > 0.05:
        what, where = f"above the box's in {above.sum()} of {len(area)} objects", above
    elif np.median(area / box) < 0.02:
        what, where = "far below the boxes'", area / box < 0.02
    elif len(area) > 1 and np.ptp(area) == 0 and box.max() > 2 * box.min():
        what, where = "the same everywhere", area == area
    else:
        return ""
    k = np.flatnonzero(single)[where.argmax()]
    return (
        f"The area of {split} is {what} (annotation {index.annotation_ids[k]}: area {index.areas[k]:g}, its box has "
        f"{index.bbox[k, 2:].prod():g}): small, medium and large mean nothing here. Where the annotation file has no "
        "area, the box's is taken."
    )


def _readings(bbox: np.ndarray, size: np.ndarray, many_out: bool):
    """What four numbers could be that are not x, y, width, height: name, boxes_xyxy [M, 4] in pixels."""
    at, by, sides = bbox[:, :2], bbox[:, 2:], np.tile(size, 2)
    yield "corners x0, y0, x1, y1", bbox
    yield "the centre, width and height", np.concatenate([at - by / 2, at + by / 2], axis=1)
    yield "y before x", np.concatenate([at, at + by], axis=1)[:, [1, 0, 3, 2]]
    yield "corners y0, x0, y1, x1", bbox[:, [1, 0, 3, 2]]
    if many_out:  # else they would fit any boxes in photos of less than a thousand pixels
        yield "thousandths of the photo", np.concatenate([at, at + by], axis=1) * sides / 1000
        yield "corners in thousandths of the photo", bbox * sides / 1000


def _first(index: CocoIndex, where: np.ndarray) -> str:
    k = int(where.argmax())
    photo = index.file_names[np.searchsorted(index.starts, k, side="right") - 1]
    return f"annotation {index.annotation_ids[k]} ({photo}, bbox {[round(v, 4) for v in index.bbox[k].tolist()]})"
