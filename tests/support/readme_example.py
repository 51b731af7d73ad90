"""The example in the README of an exported folder, run as its reader would."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from pathlib import Path
from unittest import mock

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


def detections_of(found: list, classes: list[str], image_id: int = 1) -> Detections:
    """As COCO results, with a class's number for its category."""
    records = [
        {
            "image_id": image_id,
            "category_id": classes.index(name),
            "score": score,
            "bbox": [x, y, max(r - x, 0), max(b - y, 0)],
        }
        for name, score, (x, y, r, b) in found
    ]
    return Detections.of(records)
