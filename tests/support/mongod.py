"""FiftyOne's database, which ends some time after the process that used it."""

from __future__ import annotations

import time
from pathlib import Path

import psutil


def wait_for_no_mongod(folder: Path) -> None:
    """FiftyOne's service stops its mongod a moment after the process that asked for it."""

    def left():
        return [
            process.pid
            for process in psutil.process_iter(["name", "cmdline"])
            if process.info["name"] == "mongod" and str(folder) in " ".join(process.info["cmdline"] or ())
        ]

    deadline = time.monotonic() + 20
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left()
