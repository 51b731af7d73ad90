"""The example in the README of an exported folder, run as its reader would."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from helpers.metrics import Detections


def example(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return code


def namespace(folder: Path, photo: Path) -> dict:
    """What the example defines, after it has run in the folder."""
    defined: dict = {}
    with mock.patch.object(sys, "argv", ["example.py", str(photo)]), contextlib.redirect_stdout(io.StringIO()):
        before = Path.cwd()
        os.chdir(folder)
        try:
            exec(compile(example(folder), "README.md", "exec"), defined)
        finally:
            os.chdir(before)
    return defined


def spied(folder: Path, photo: Path) -> tuple[list, dict]:
    """All that the example finds on a photo, and what it gave to the model."""
    defined, given = namespace(folder, photo), {}

    class Spy:
        def run(self, names, inputs, session=defined["session"]):
            given.update(inputs)
            return session.run(names, inputs)

    defined["session"] = Spy()
    with Image.open(photo) as file:
        return defined["detect"](file, threshold=0.0), given


def as_detections(found: list, categories: dict[str, int], image_id: int) -> Detections:
    """What the example found on a photo as COCO results, ``categories`` by name."""
    names, scores, boxes = zip(*found)
    corners = np.array(boxes)
    bbox = np.hstack([corners[:, :2], np.maximum(corners[:, 2:] - corners[:, :2], 0)])  # as ours: no negative side
    return Detections(
        np.full(len(found), image_id), np.array([categories[name] for name in names]), bbox, np.array(scores)
    )
