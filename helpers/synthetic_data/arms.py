"""The arms of the experiment: what each learns from, as a data set on the disk and a config of its own."""

from __future__ import annotations

import itertools
import math
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from helpers.config import Config
from helpers.download.coco import read_index
from helpers.files import UserError, link_or_copy, write_atomic, write_json
from helpers.index import CocoIndex, open_split
from helpers.metrics import ground_truth
from helpers.synthetic_data.copy_paste import recipe
from helpers.synthetic_data.objects import Segmentations
from helpers.synthetic_data.offline import SPLIT, published, write_photos

EPOCH_STEPS = 250  # after so many, at most, an arm validates and saves a checkpoint that it can go on from
VALIDATE = 32  # photos; the arms are compared on all of them, once, at their end


@dataclass(frozen=True)
class Arm:
    """``real``: the share of an epoch's photos that are real; the others are synthetic, with objects at ``places``."""

    title: str
    real: float
    places: str = "random"
    on_the_fly: bool = False


ARMS = {
    "real": Arm("real photos only", 1.0),
    "synthetic": Arm("synthetic photos only", 0.0),
    "offline": Arm("real and synthetic photos", 0.5),
    "context": Arm("real and synthetic photos, objects in context", 0.5, "context"),
    "on_the_fly": Arm("real photos, copy-paste on the fly", 1.0, on_the_fly=True),
}


def plan(cfg: Config) -> Iterator[tuple[float, int, str]]:
    """(share of the real photos, seed, arm) of every run, the cheap shares last."""
    return itertools.product(sorted(cfg.real_share, reverse=True), cfg.arm_seeds, cfg.arms)


def arm_config(cfg: Config, share: float, seed: int, arm: str) -> Config:
    """The ordinary config of one arm's run: the recipe of ``cfg``, its own data, name and seed.

    All arms have the same number of epochs, of as many photos each, so the same steps, schedule and validations.
    """
    kind, name = ARMS[arm], f"{100 * share:g}-s{seed}"
    data = "real" if kind.real == 1 else f"{round(100 * kind.real)}_{kind.places}"  # arms may share it
    return cfg.with_(
        run_name=f"{cfg.run_name}-{arm}-{name}",
        data_dir=synthetic_dir(cfg) / "arms" / f"{data}-{name}",
        epochs=math.ceil(cfg.arm_steps / EPOCH_STEPS),
        seed=seed,
        arms=(arm,),  # of the experiment, this run is one point: another list later leaves it what it is
        real_share=(share,),
        arm_seeds=(seed,),
        processes=1,  # an arm's steps are counted in batches, and copy-paste trains in one process
        copy_paste=kind.places if kind.on_the_fly else "none",
        checkpoint="last",
        profile=False,
    )


def synthetic_dir(cfg: Config) -> Path:
    return cfg.data_dir.with_name(f"{cfg.data_dir.name}_synthetic")


def photos_per_epoch(cfg: Config) -> int:
    """Of an arm."""
    steps = round(cfg.arm_steps / math.ceil(cfg.arm_steps / EPOCH_STEPS))
    return steps * cfg.batch_size * cfg.grad_accumulation


def prepare_arm(cfg: Config, share: float, seed: int, arm: str) -> dict:
    """Write the data set of an arm, unless it is there; its manifest.

    The real photos are a random ``share``, the same for all arms of a seed and part of those of a larger share.
    Synthetic ones are made from these alone. Where an epoch is longer than there are photos, they come again under new
    ids, so that each is augmented in another way; where it is shorter, it is their beginning in a random order.
    """
    ours, kind = arm_config(cfg, share, seed, arm), ARMS[arm]
    index = real_part(open_split(cfg, SPLIT), share, seed)
    count = photos_per_epoch(cfg)
    request = {
        "photos": count,
        "real": index.image_ids.tolist(),
        "classes": list(index.classes),
        "files": [cfg.annotation_file(split).stat().st_size for split in (SPLIT, "val2017")],
        "objects": cfg.paste_objects,
        "places": kind.places,
        "seed": seed,
    }
    file = ours.data_dir / "manifest.json"
    if file.is_file() and (manifest := orjson.loads(file.read_bytes()))["request"] == request:
        return manifest
    shutil.rmtree(ours.data_dir, ignore_errors=True)
    photos = _real(cfg, index, round(kind.real * count))
    if len(photos) < count:
        photos += _synthetic(cfg, index, ours, kind.places, count - len(photos))
    different = _write(ours, index, photos)
    _write_validation(cfg, ours)
    manifest = {"kind": "arm", "photos": len(photos), "different_photos": different, "real_photos": len(index)}
    write_json(file, manifest | {"request": request})
    return manifest


def real_part(index: CocoIndex, share: float, seed: int) -> CocoIndex:
    """A random ``share`` of a split's photos, at least two; a larger share of the same seed begins with it."""
    order = np.random.default_rng((seed, 4)).permutation(len(index))
    return index.take(order[: max(2, round(share * len(index)))])


def _real(cfg: Config, index: CocoIndex, count: int) -> list[dict]:
    """``count`` photos, over and over in the order of ``index``: image record, file and annotations of each."""
    segmentations = Segmentations.read(index, cfg.annotation_file(SPLIT))
    photos = []
    for i, image in enumerate(ground_truth(index)["images"][:count]):
        records = [published(segmentations, row) for row in index.rows(i).tolist()]
        photos.append({"image": image, "path": index.path(i), "records": records})
    return list(itertools.islice(itertools.cycle(photos), count))


def _synthetic(cfg: Config, index: CocoIndex, ours: Config, places: str, count: int) -> list[dict]:
    """``count`` synthetic photos, all of them different unless a background cannot be read."""
    folder, copy_paste = ours.data_dir / ".synthetic", recipe(ours.with_(data_dir=cfg.data_dir), index, places)
    photos = write_photos(folder, copy_paste, count, ours.seed, first_free_id(cfg))
    photos = [photo for photo in photos if photo]
    if not photos:
        raise UserError(f"No photo of {ours.run_name} can be read to paste objects onto: see notebook 02_sanity.")
    return list(itertools.islice(itertools.cycle(photos), count))


def first_free_id(cfg: Config) -> int:
    """Image ids from here on are no photo's of the data set, and annotation ids made from them no annotation's."""
    indices = [open_split(cfg, split) for split in (SPLIT, "val2017")]
    return 1 + max(int(ids.max(initial=0)) for index in indices for ids in (index.image_ids, index.annotation_ids))


def _write(ours: Config, index: CocoIndex, photos: list[dict]) -> int:
    """Photos and annotations of an arm; how many of the photos are different. What comes again gets new ids."""
    images, annotations, seen = [], [], Counter()
    ids = [photo["image"]["id"] for photo in photos] + [r["id"] for photo in photos for r in photo["records"]]
    fresh = itertools.count(max(ids) + 1)
    for photo in photos:
        image, again = dict(photo["image"]), seen[photo["image"]["id"]]
        seen[image["id"]] += 1
        if again:  # a photo under two ids would be refused, so a copy has a name of its own too
            name = f"again_{again}/{image['file_name']}"
            image |= {"id": next(fresh), "copy_of": image["id"], "file_name": name}
        link_or_copy(photo["path"].resolve(), ours.image_dir(SPLIT) / image["file_name"])
        images.append(image)
        for record in photo["records"]:
            annotations.append(record | {"id": next(fresh) if again else record["id"], "image_id": image["id"]})
    document = {"categories": ground_truth(index)["categories"], "images": images, "annotations": annotations}
    file = write_atomic(ours.annotation_file(SPLIT), orjson.dumps(document))
    read_index(file, ours.image_dir(SPLIT)).save(file)
    return len(seen)


def _write_validation(cfg: Config, ours: Config) -> None:
    """What the loop of an arm validates with, a few of the data set's photos: its curves need no more."""
    whole, file = open_split(cfg, "val2017"), ours.annotation_file("val2017")
    index = whole.take(np.arange(min(VALIDATE, len(whole))))
    truth = ground_truth(index)
    write_atomic(file, orjson.dumps({**truth, "annotations": list(truth["annotations"])}))
    for i, name in enumerate(index.file_names.tolist()):
        link_or_copy(index.path(i).resolve(), ours.image_dir("val2017") / name)
    index.save(file)
