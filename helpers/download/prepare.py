"""Three sources, one result: ``images/{train2017,val2017}``, ``annotations/instances_*.json`` and ``manifest.json``.

What an interrupted call left is taken up by the next one.
"""

import contextlib
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import orjson
import pandas as pd

from helpers.config import Config
from helpers.download import zoo
from helpers.download.coco import SPLITS, pick_classes, pick_images, read_split
from helpers.download.photos import check_photos, only_one, place_photos, turn_doubt
from helpers.download.plausible import check_boxes
from helpers.download.records import Records, check_categories
from helpers.files import UserError, sha256, write_atomic, write_json
from helpers.index import open_split
from helpers.scenes.scenes import SCENE_CLASSES, VERSION, write_scenes

UNFINISHED = ".unfinished"  # marks a folder as ours until its manifest is there


def prepare(cfg: Config) -> dict:
    """Bring the data set that ``cfg`` asks for into ``cfg.data_dir`` and return its manifest.

    Nothing is done when it is there already; another request for the same folder rebuilds it. Raises UserError, in one
    sentence, for anything that the user can mend: no network, no mongod, no such class, a damaged annotation file, a
    folder that is in use or that holds something else.
    """
    request = _request(cfg)
    if manifest := _finished(cfg, request):
        return manifest
    with only_one(cfg.data_dir):
        return _finished(cfg, request) or _build(cfg, request)


def manifest_table(manifest: dict) -> pd.DataFrame:
    """A row per split: photos, annotations, crowds and what was dropped."""
    table = pd.DataFrame.from_dict(manifest["splits"], orient="index")
    counts = table[["images", "eligible", "annotations", "crowd"]]
    return counts.assign(dropped=table["dropped"].map(len), megabytes=(table["photo_bytes"] / 1e6).round(1))


def _request(cfg: Config) -> dict:
    """What was asked, so that two calls can be compared; annotation files by their content, no path of this machine."""
    names = ["data_source", "classes", "top_k", "max_train_images", "max_val_images", "background_share", "seed"]
    request = {name: value for name, value in cfg.as_json().items() if name in names}
    if cfg.data_source == "folder":
        files = split_files(cfg.coco_roots).items()
        request["annotation_files"] = {split: [sha256(file) for file, _ in pairs] for split, pairs in files}
    if cfg.data_source == "demo":
        request["scenes"] = VERSION  # other drawings are another data set
    return request


def _finished(cfg: Config, request: dict) -> dict | None:
    """The manifest if it answers ``request`` and what it counted is still there, else None."""
    try:
        manifest = orjson.loads((cfg.data_dir / "manifest.json").read_bytes())
        if manifest["request"] != request:
            return None
        if cfg.data_source == "folder" and any(part["dropped_photos"] for part in manifest["splits"].values()):
            return None  # the folder may have been mended since
        for split, part in manifest["splits"].items():
            sizes = len(open_split(cfg, split)), part["photo_bytes"]  # which also knows its annotation file again
            if _photo_sizes(cfg.image_dir(split)) != sizes:
                return None
        return manifest
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError):  # not there, or not one of ours
        return None


def _photo_sizes(folder: Path) -> tuple[int, int]:
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def _build(cfg: Config, request: dict) -> dict:
    _claim(cfg)
    with contextlib.ExitStack() as stack:
        chosen = _choose(cfg, _open_source(cfg, stack))
        parts = {}
        for split, records in chosen.items():
            broken = _broken_photos(cfg, split, records)
            if len(broken) == len(records.images):
                first = f"{records.images[0]['file_name']}: {broken[0]}"
                raise UserError(f"None of the {len(broken)} photos of {split} can be used; the first: {first}.")
            parts[split] = _write_split(cfg, split, records.without(broken)) | {"dropped_photos": len(broken)}
    categories = chosen["train2017"].categories
    manifest = {"source": cfg.data_source, "seed": cfg.seed, "request": request, "splits": parts}
    manifest["classes"] = [category["name"] for category in categories]
    manifest["category_ids"] = [category["id"] for category in categories]
    write_json(cfg.data_dir / "manifest.json", manifest)
    (cfg.data_dir / UNFINISHED).unlink()
    return manifest


def _open_source(cfg: Config, stack: contextlib.ExitStack) -> dict[str, list[tuple[Path, Path]]]:
    """(annotation file, photo folder) pairs of each split; ``stack`` holds the source until the photos are placed."""
    if cfg.data_source == "fiftyone":
        stack.enter_context(zoo.open_zoo(cfg))
        return zoo.annotation_files(cfg)
    if cfg.data_source == "folder":
        return split_files(cfg.coco_roots)
    root = cfg.data_dir / ".scenes"
    shutil.rmtree(root, ignore_errors=True)
    stack.callback(shutil.rmtree, root, ignore_errors=True)
    write_scenes(root, cfg.classes or SCENE_CLASSES, cfg.max_train_images or 2000, cfg.max_val_images or 300, cfg.seed)
    return split_files([root])


def split_files(roots: list[Path]) -> dict[str, list[tuple[Path, Path]]]:
    """The (annotation file, photo folder) pairs of COCO folders; a folder may lack a split that another one has."""
    files = {split: [] for split in SPLITS}
    for root in roots:
        for split in SPLITS:
            annotation_file = root / "annotations" / f"instances_{split}.json"
            if annotation_file.is_file():
                folder = next((path for path in (root / "images" / split, root / split) if path.is_dir()), None)
                if folder is None:
                    neither = f"annotations of {split}, but neither images/{split} nor {split} with the photos"
                    raise UserError(f"{root} has {neither}.")
                files[split].append((annotation_file, folder))
    for split, pairs in files.items():
        if not pairs:
            missing = f"There is no annotations/instances_{split}.json in {', '.join(map(str, roots))}"
            raise UserError(f"{missing}: coco_root must be a COCO folder.")
    return files


def _choose(cfg: Config, files: dict[str, list[tuple[Path, Path]]]) -> dict[str, Records]:
    whole = {split: read_split(pairs) for split, pairs in files.items()}
    check_categories(whole["train2017"].categories + whole["val2017"].categories, "train2017 and val2017")
    categories = pick_classes(whole["train2017"], cfg.classes, cfg.top_k)
    limits, chosen = (cfg.max_train_images, cfg.max_val_images), {}
    for split, limit, background in zip(SPLITS, limits, (cfg.background_share, 0.0)):
        chosen[split] = pick_images(whole.pop(split), categories, limit, cfg.seed, split, background)
        chosen[split].notes += check_boxes(chosen[split].index(cfg.image_dir(split)), split)
    alike = Counter(category["name"].casefold() for category in categories)
    twins = [category["name"] for category in categories if alike[category["name"].casefold()] > 1]
    if twins:
        text = f"The classes {', '.join(map(repr, twins))} differ in capitals alone"
        chosen["train2017"].notes.append(f"{text}: they start from the same row of the pretrained head.")
    return chosen


def _broken_photos(cfg: Config, split: str, records: Records) -> dict[int, str]:
    if cfg.data_source == "fiftyone":
        return zoo.fetch_photos(cfg, split, records)
    if cfg.data_source == "folder":
        records.notes += turn_doubt(records, split)
    return check_photos(records, f"{split}: checking photos")


def _write_split(cfg: Config, split: str, records: Records) -> dict:
    place_photos(records, cfg.image_dir(split))
    write_atomic(cfg.annotation_file(split), records.document())
    records.texts.clear()  # they hold COCO's half gigabyte
    index = records.index(cfg.image_dir(split))
    replace(index, dropped=[]).save(cfg.annotation_file(split))  # what was dropped is not in the new file
    counts = {"images": len(index), "eligible": records.eligible, "annotations": len(index.bbox)}
    counts |= {"crowd": int(index.iscrowd.sum()), "records": records.total}
    photo_bytes = _photo_sizes(cfg.image_dir(split))[1]
    return {**counts, "dropped": records.dropped, "notes": records.notes, "photo_bytes": photo_bytes}


def _claim(cfg: Config) -> None:
    """Make the folder ours: refuse one that holds something else, then take its manifest away until it is whole."""
    folder = cfg.data_dir.resolve()
    for root in cfg.coco_roots if cfg.data_source == "folder" else ():
        if root.resolve().is_relative_to(folder):
            held = f"data_dir {folder} holds coco_root {root}, which must stay as it is: choose another data_dir."
            raise UserError(held)
    ours = any((folder / name).exists() for name in ("manifest.json", UNFINISHED))
    if not ours and any((folder / name).exists() for name in ("images", "annotations")):
        raise UserError(
            f"{folder} holds images or annotations that were not put there by notebook 01: choose another data_dir, "
            "or use that folder as coco_root with data_source=folder."
        )
    write_atomic(folder / UNFINISHED, "This data set is not complete: run notebook 01 again.\n")
    (folder / "manifest.json").unlink(missing_ok=True)
