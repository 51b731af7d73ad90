"""Records of COCO annotation files: what makes one usable. Whatever is wrong is said in words, nothing is repaired."""

from __future__ import annotations

import math
from pathlib import Path, PurePosixPath, PureWindowsPath

from helpers.files import UserError


def check_file_name(file_name, annotation_file: Path) -> None:
    """Raise UserError for a photo name that is absolute or climbs out of its folder."""
    name = file_name if isinstance(file_name, str) else ""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or ".." in parts or name.startswith("/") or PureWindowsPath(name).anchor or "\0" in name:
        raise UserError(
            f"{annotation_file} names the photo {file_name!r}, which leads out of its folder; this data set is refused."
        )


def check_categories(categories: list[dict], where, once: bool = False) -> None:
    """Raise UserError unless ids and names belong together one to one; ``once``: no category is there twice."""
    name_of, id_of = {}, {}
    for category in categories:
        key, name = category.get("id"), category.get("name")
        if not is_id(key) or not isinstance(name, str) or not name:
            raise UserError(f"{where}: category {category!r} needs a whole number as id and a name.")
        for table, left, right in ((name_of, key, name), (id_of, name, key)):
            if table.setdefault(left, right) != right:
                raise UserError(
                    f"{where}: category {left!r} is both {table[left]!r} and {right!r}; ids and names of "
                    "classes must agree."
                )
    if once and len(name_of) != len(categories):
        raise UserError(f"{where} lists a category twice.")


def image_problem(image: dict) -> str | None:
    """Why the record of a photo cannot be used, or None."""
    if not is_id(image.get("id")):
        return f"image id {image.get('id')!r} is not a whole number"
    if not all(is_id(image.get(side)) and 0 < image[side] < 10**6 for side in ("width", "height")):
        return f"no valid width and height ({image.get('width')!r} x {image.get('height')!r})"
    return None


def annotation_problem(record: dict, image: dict, category_ids) -> str | None:
    """Why an annotation of ``image`` cannot be used, or None.

    A box may stick out of its photo, as COCO's own do by a fraction of a pixel.
    """
    bbox = record.get("bbox")
    if not is_id(record.get("id")):
        return "its id is not a whole number"
    if not is_id(record.get("category_id")) or record["category_id"] not in category_ids:
        return f"unknown category {record.get('category_id')!r}"
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(_is_finite(value) for value in bbox)):
        return f"bbox {bbox!r} is not four finite numbers"
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        return f"bbox {bbox} has no area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return f"bbox {bbox} is outside the photo"
    if width > 2 * image["width"] or height > 2 * image["height"]:
        return f"bbox {bbox} is more than twice as large as the photo"
    return _extras_problem(record)


def _extras_problem(record: dict) -> str | None:
    """A file may leave out area, iscrowd and segmentation; where they are, they must be usable."""
    area, iscrowd, polygons = record.get("area", 0), record.get("iscrowd", 0), record.get("segmentation")
    if not _is_finite(area) or not is_id(iscrowd) or iscrowd not in (0, 1):
        return f"area {area!r} is no number, or iscrowd {iscrowd!r} is not 0 or 1"
    if isinstance(polygons, list) and not all(_is_polygon(polygon) for polygon in polygons):
        return "segmentation holds something that is not a number"
    return None


def is_id(value) -> bool:
    """A whole number that 64 bits hold; True and 1.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e100  # false for NaN too


def _is_polygon(polygon) -> bool:
    try:
        return isinstance(polygon, list) and math.isfinite(sum(polygon))  # NaN and infinity survive a sum
    except (TypeError, OverflowError):
        return False
