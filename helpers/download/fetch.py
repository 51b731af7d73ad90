"""One file over the network, made steady: tried again, verified, and only then under its final name."""

from __future__ import annotations

import os
import random
import threading
import zipfile
from pathlib import Path

import requests
from tqdm import tqdm

from helpers.download.photos import photo_problem
from helpers.files import UserError

HOST = "images.cocodataset.org"
WAITS = (0.5, 1, 2, 4, 8, 8)  # seconds before each further try of a photo; an archive gets four
GONE = (403, 404, 410)  # HTTP answers that another try would not change
GIVE_UP = 10  # this many photos in a row failed for good: the network is down
OTHER_WAYS = (
    "or use photos that you have (data_source=folder coco_root=FOLDER), or the preset demo, which needs no network"
)


class SteadyDownload:
    """Stands in for ``eta.core.web.download_file``, through which FiftyOne fetches all files, one call per file.

    The transfer is eta's own ``WebSession``, with time limits. A file is fetched to the side, verified (a photo decodes
    to its end and has the annotated size) and then renamed; what fails is tried again with growing pauses. A photo that
    fails for good does not end the others, unless ``GIVE_UP`` in a row do. Calls come from many threads.
    """

    def __init__(self, incoming: Path, wanted: dict[str, dict], what: str, bar: tqdm):
        self.incoming, self.what, self.bar = incoming, what, bar
        self.wanted = wanted  # file name -> COCO's image record
        self.unreachable: dict[str, str] = {}  # file name -> reason: the network failed, another day may do better
        self.broken: dict[str, str] = {}  # file name -> reason: the host does not have it, or has it broken
        self.stopped = threading.Event()
        self._in_a_row, self._lock, self._local, self._random = 0, threading.Lock(), threading.local(), random.Random()

    def __call__(self, url: str, path: str, **_) -> None:
        target = Path(path)
        part, image, error = self.incoming / target.name, self.wanted.get(target.name), None
        for wait in (0, *(WAITS if image else WAITS[:4])):
            if self.stopped.wait(wait * self._random.uniform(0.7, 1.3)):  # threads should not all come back at once
                return
            try:
                self._session().write(str(part), url)
                self._verify(part, image)
            except (requests.RequestException, BrokenFile) as problem:
                error = problem
                if _status(error) in GONE:
                    break
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
                return self._arrived()
        part.unlink(missing_ok=True)
        self._failed(target.name, image, error)

    def _session(self):
        """One of eta's sessions per thread: connections stay open between photos."""
        if not hasattr(self._local, "session"):
            import eta.core.web

            session = eta.core.web.WebSession(quiet=True)
            request = session.sess.request
            session.sess.request = lambda *args, **kwargs: request(*args, **{**kwargs, "timeout": (10, 60)})
            session.sess.hooks["response"].append(lambda response, *_, **__: response.raise_for_status())
            self._local.session = session
        return self._local.session

    def _verify(self, part: Path, image: dict | None) -> None:
        if image is not None:
            why = photo_problem(part, image)
        else:
            why = None if zipfile.is_zipfile(part) else "it is no complete archive"
        if why:
            raise BrokenFile(why)

    def _arrived(self) -> None:
        with self._lock:
            self._in_a_row = 0
            self.bar.update()

    def _failed(self, name: str, image: dict | None, error: Exception) -> None:
        if image is None:
            raise no_network(self.what, error)
        with self._lock:
            self._in_a_row += 1
            if isinstance(error, BrokenFile) or _status(error) in GONE:
                self.broken[name] = f"cannot be fetched: {_cause(error)}"
            else:
                self.unreachable[name] = _cause(error)
            if self._in_a_row >= GIVE_UP:
                self.stopped.set()
                raise no_network(f"{self.what} ({name})", error)


class BrokenFile(Exception):
    """What arrived is not the file that was asked for."""


def no_network(what: str, error: Exception) -> UserError:
    """The one sentence for a network that fails: host, what was fetched, the ways out."""
    return UserError(
        f"{what} could not be fetched from {HOST} ({_cause(error)}): check the network and run this "
        f"again, what has arrived is kept; {OTHER_WAYS}."
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
    return str(error) if isinstance(error, BrokenFile) else f"{type(error).__name__}: {error}"
