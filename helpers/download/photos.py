"""Folders of photos: one process at a time, room on the disk, every photo decoded once, placed without copying."""

import filecmp
import os
import shutil
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from helpers.dataset import read_image
from helpers.download.records import Records, stored_frame
from helpers.files import UserError, link_or_copy, locked
from helpers.index import present

MISSING = "the photo is missing"
THREADS = max(2, os.cpu_count() or 2)


def only_one(folder: Path):
    """Hold the folder's lock, as a context manager. UserError when another process has it."""
    busy = f"Another process is downloading into {folder}: wait until it is done, or choose another data_dir."
    return locked(folder / ".lock", busy)


def require_space(folder: Path, size: int, what: str) -> None:
    """Raise UserError unless ``size`` bytes, and some to spare, are free where ``folder`` is or will be."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size and free < size + 200e6:
        raise UserError(
            f"{what} need about {size / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free: make room, ask for fewer "
            "photos (max_train_images), or choose another data_dir."
        )


def photo_problem(path: Path, image: dict) -> str | None:
    """Why a photo cannot be used, or None: it must decode to its end and have the size that its record says."""
    try:
        read_image(path, image["height"], image["width"])
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        if path.is_file() and path.read_bytes()[4:8] == b"ftyp":
            return f"{path.name} is a HEIC picture or a film, whatever its name says: save it as JPEG"
        return str(error).replace(f"{path.parent}{os.sep}", "")  # the reason is kept in files; a home folder is not
    return None


def check_photos(records: Records, what: str) -> dict[int, str]:
    """Decode every photo once; position -> reason for those that cannot be used."""
    bar = {"tqdm_class": tqdm, "unit": "photo", "mininterval": 1.0, "ncols": 100, "leave": False, "delay": 1.0}
    paths = map(records.photo, range(len(records.images)))
    problems = thread_map(photo_problem, paths, records.images, max_workers=THREADS, desc=what, **bar)
    broken = {i: why for i, why in enumerate(problems) if why}
    there = cache(lambda folder: {_spelling(name): name for name in sorted(present(folder))})
    for i in [i for i, why in broken.items() if why == MISSING]:
        folder = records.folders[i]
        near = there(folder).get(_spelling(records.images[i]["file_name"]))
        broken[i] = f"{MISSING} in {folder.parent.name}/{folder.name}" + (f", which has {near}" if near else "")
    return broken


def turn_doubt(records: Records, split: str) -> list[str]:
    """A sentence about photos whose size does not tell if the boxes were drawn before a rotation mark was followed."""
    with ThreadPoolExecutor(THREADS) as pool:
        frames = list(pool.map(stored_frame, map(records.photo, range(len(records.images)))))
    is_open = lambda width, height, mark: mark in (2, 3, 4) or (mark in (5, 6, 7, 8) and width == height)
    marked = [i for i, frame in enumerate(frames) if frame and is_open(*frame)]
    if not marked:
        return []
    return [
        f"Photos of {split} with a rotation mark (EXIF) that their size does not show: {len(marked)}, the first "
        f"{records.images[marked[0]]['file_name']}. Their boxes are taken for the stored pixels; where a viewer "
        "turned the photo before they were drawn, turn the pixels and remove the mark."
    ]


def _spelling(name: str) -> str:
    """What names have in common that differ in capitals, extension, folder, %20 or the way an accent is written."""
    return PurePosixPath(unicodedata.normalize("NFC", unquote(name.replace("\\", "/"))).casefold()).stem


def place_photos(records: Records, folder: Path) -> None:
    """Hard-link each photo into ``folder`` (copy it where that cannot be), and remove whatever else is there.

    The originals are only read. Raises UserError when copies would not fit on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {folder / image["file_name"]: records.photo(i).resolve() for i, image in enumerate(records.images)}
    for path in folder.rglob("*"):
        if path not in wanted and not path.is_dir():
            path.unlink()
    device = folder.stat().st_dev
    copies = sum(source.stat().st_size for source in wanted.values() if source.stat().st_dev != device)
    require_space(folder, copies, "copies of the photos")
    for path, source in wanted.items():
        if not (path.exists() and path.samefile(source)):
            link_or_copy(source, path)


def same_photos(one: Path, other: Path) -> list[tuple[str, str]]:
    """Names of the photos that are byte for byte in both folders; only files of equal size are read."""
    sizes: dict[int, list[Path]] = {}
    for path in one.rglob("*"):
        if path.is_file():
            sizes.setdefault(path.stat().st_size, []).append(path)
    pairs = ((twin, path) for path in sorted(other.rglob("*")) for twin in sizes.get(path.stat().st_size, ()))
    return [(twin.name, path.name) for twin, path in pairs if path.is_file() and filecmp.cmp(twin, path, shallow=False)]
