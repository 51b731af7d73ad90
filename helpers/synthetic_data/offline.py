"""Synthetic photos as a plain COCO data set in a folder, which every notebook reads with ``data_source=folder``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import orjson
from joblib import cpu_count
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from helpers.dataset import read_image
from helpers.download.coco import read_index
from helpers.files import UserError, write_atomic, write_json
from helpers.index import CocoIndex
from helpers.synthetic_data.copy_paste import CopyPaste, Pasted
from helpers.synthetic_data.objects import Segmentations, encoded

SPLIT = "train2017"
MOST_IN_PHOTO = 1000  # annotation ids are a photo's number times this, and on


@dataclass(frozen=True)
class Synthetic:
    """Number ``number`` of a set: photo ``background`` of the index with things pasted onto it."""

    number: int
    background: int
    pasted: Pasted


def make_synthetic(copy_paste: CopyPaste, seed: int, number: int) -> Synthetic:
    """A synthetic photo by itself, at the size of its background; a function of its arguments.

    Raises OSError where the background cannot be read.
    """
    index = copy_paste.segmentations.index
    i = background(len(index), seed, number)
    image = read_image(index.path(i), int(index.heights[i]), int(index.widths[i]))
    return Synthetic(number, i, copy_paste(image, i, (seed, 3, number)))


def background(photos: int, seed: int, number: int) -> int:
    """Which of the photos number ``number`` is painted on: in a random order, each once before one comes again."""
    turn, place = divmod(number, photos)
    return int(np.random.default_rng((seed, 2, turn)).permutation(photos)[place])


def write_synthetic(folder: Path, copy_paste: CopyPaste, count: int, seed: int, first_id: int = 1) -> dict:
    """Write ``count`` photos with their annotations and a manifest under ``folder``; returns the manifest.

    The same arguments give the same bytes. Image ids are ``first_id`` and on, category ids COCO's. The manifest comes
    last: where it is, the set is whole. One that answers the same request is left as it is. Raises UserError when the
    folder holds something else.
    """
    request, images = _request(copy_paste, count, seed, first_id), folder / "images" / SPLIT
    if manifest := _finished(folder, request, len(list(images.glob("*.jpg")))):
        return manifest
    (folder / "manifest.json").unlink(missing_ok=True)
    for old in images.glob("synthetic_*.jpg"):
        old.unlink()
    written = write_photos(images, copy_paste, count, seed, first_id)
    index = copy_paste.segmentations.index
    document = {
        "info": {"description": f"Copy-paste, seed {seed}; photos and masks of the split that it was made from"},
        "categories": [{"id": key, "name": name} for key, name in zip(index.category_ids, index.classes)],
        "images": [part["image"] for part in written if part],
        "annotations": [record for part in written if part for record in part["records"]],
    }
    write_atomic(folder / "annotations" / f"instances_{SPLIT}.json", orjson.dumps(document))
    manifest = _manifest(copy_paste, written) | {"request": request}
    write_json(folder / "manifest.json", manifest)
    return manifest


def _finished(folder: Path, request: dict, photos: int) -> dict | None:
    """The manifest of a set that answers ``request`` and is whole. UserError: the folder is no synthetic set."""
    try:
        manifest = orjson.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    if manifest.get("kind") != "copy-paste":
        raise UserError(f"{folder} holds another data set, which is not written over: move it away.")
    return manifest if manifest["request"] == request and manifest["photos"] == photos else None


def open_synthetic(folder: Path) -> CocoIndex:
    """The index of a set of :func:`write_synthetic`."""
    return read_index(folder / "annotations" / f"instances_{SPLIT}.json", folder / "images" / SPLIT)


def _request(copy_paste: CopyPaste, count: int, seed: int, first_id: int) -> dict:
    index = copy_paste.segmentations.index
    return {
        "photos": count,
        "seed": seed,
        "objects": copy_paste.objects,
        "places": copy_paste.places,
        "first_id": first_id,
        "sources": index.image_ids.tolist(),
        "source_annotations": int(index.annotation_ids.sum()),
        "classes": list(index.classes),
        "sprites": len(copy_paste.pool.sprites),
    }


def write_photos(folder: Path, copy_paste: CopyPaste, count: int, seed: int, first_id: int) -> list[dict | None]:
    """Make and write ``count`` photos: the image record, path and annotations of each, and what was counted; None where
    its background cannot be read.
    """
    write = partial(_write, folder, copy_paste, seed, first_id)
    bar = {"tqdm_class": tqdm, "desc": "synthetic photos", "unit": "photo", "leave": False, "ncols": 100}
    return thread_map(write, range(count), max_workers=cpu_count(), **bar)  # OpenCV lets other threads run


def _write(folder: Path, copy_paste: CopyPaste, seed: int, first_id: int, number: int) -> dict | None:
    try:
        made = make_synthetic(copy_paste, seed, number)
    except OSError:
        return None
    index, image_id = copy_paste.segmentations.index, first_id + number
    height, width = made.pasted.image.shape[:2]
    jpeg = cv2.imencode(".jpg", made.pasted.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    name = f"synthetic_{image_id:012d}.jpg"
    path = write_atomic(folder / name, jpeg.tobytes())
    image = {"id": image_id, "file_name": name, "height": height, "width": width}
    image["background_image_id"] = int(index.image_ids[made.background])
    records = annotations(copy_paste, made)
    for k, record in enumerate(records):
        record |= {"id": image_id * MOST_IN_PHOTO + k, "image_id": image_id}
    counted = {"refused": made.pasted.refused, "changed": made.pasted.changed}
    return {"image": image, "path": path, "records": records, **counted}


def annotations(copy_paste: CopyPaste, made: Synthetic) -> list[dict]:
    """COCO annotations of a synthetic photo, which get new ids: what was there and is still seen, then what was pasted,
    with ``source_annotation_id``.

    What nothing covers is as it was published. What is covered in part, and what was pasted, has the RLE, tight box and
    area of its visible pixels; something without a mask stays without one.
    """
    index, (height, width) = copy_paste.segmentations.index, made.pasted.image.shape[:2]
    records = []
    for row, layer in made.pasted.seen(index.rows(made.background)).items():
        record = published(copy_paste.segmentations, row)
        if layer:
            masked = bool(record["segmentation"])
            whole = layer.visible if masked else record["area"] * layer.visible / layer.area  # a part of what was told
            record |= {"bbox": list(layer.bbox), "area": whole}
            record |= {"segmentation": encoded(layer.whole_mask(height, width))} if masked else {}
        records.append(record)
    for layer in made.pasted.layers:
        records.append(
            {
                "category_id": index.category_ids[index.classes.index(layer.label.name)],
                "bbox": list(layer.bbox),
                "area": layer.visible,
                "iscrowd": 0,
                "segmentation": encoded(layer.whole_mask(height, width)),
                "source_annotation_id": int(index.annotation_ids[layer.label.base[1]]),
            }
        )
    return records


def published(segmentations: Segmentations, row: int) -> dict:
    """An annotation as COCO has it, but for its photo's id."""
    index = segmentations.index
    return {
        "category_id": index.category_ids[index.labels[row]],
        "bbox": index.bbox[row].tolist(),
        "area": float(index.areas[row]),
        "iscrowd": int(index.iscrowd[row]),
        "segmentation": segmentations.of(row) or [],
        "id": int(index.annotation_ids[row]),
    }


def _manifest(copy_paste: CopyPaste, written: list[dict | None]) -> dict:
    parts, index = [part for part in written if part], copy_paste.segmentations.index
    covered = [layer is not None for part in parts for layer in part["changed"].values()]  # in part, else hidden
    pasted, sources = Counter(), []
    for part in parts:
        new = [record for record in part["records"] if "source_annotation_id" in record]
        pasted.update(record["category_id"] for record in new)
        ids = {"image_id": part["image"]["id"], "background_image_id": part["image"]["background_image_id"]}
        sources.append(ids | {"annotation_ids": [record["source_annotation_id"] for record in new]})
    return {
        "kind": "copy-paste",
        "photos": len(parts),
        "unreadable": len(written) - len(parts),
        "annotations": sum(len(part["records"]) for part in parts),
        "pasted": {name: pasted[key] for key, name in zip(index.category_ids, index.classes)},
        "refused": sum(part["refused"] for part in parts),
        "partly_covered": sum(covered),
        "hidden": len(covered) - sum(covered),
        "not_cut_out": copy_paste.pool.left_out,
        "sources": sources,
    }
