"""Reading a file that may be damaged: what every check of a deliverable is made of.

Each function raises :class:`Invalid` with a reason that names the file.
"""

from pathlib import Path

import numpy as np
import orjson
import pandas as pd
from PIL import Image

from helpers.files import UserError, read_table


class Invalid(Exception):
    """Why a deliverable does not hold, as the end of a sentence that begins with its name."""


def must(holds: bool, reason: str) -> None:
    if not holds:
        raise Invalid(reason)


def neighbour(read):
    """What ``read`` gives, or None when another deliverable stands in the way: that one is named by its own check."""
    try:
        return read()
    except (Invalid, UserError, OSError, ValueError, KeyError, TypeError):
        return None


def read_json(path: Path, kind: type = dict):
    must(path.exists(), f"{path.name} is missing")
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise Invalid(f"{path.name} is not valid JSON ({error})") from None
    must(isinstance(value, kind), f"{path.name} is not a JSON {'list' if kind is list else 'object'}")
    return value


def read_csv(path: Path, *columns: str, rows: int = 1, finite: bool | list[str] = False) -> pd.DataFrame:
    """A table with these columns and at least so many rows; ``finite`` numbers in these columns, or in all."""
    must(path.exists(), f"{path.name} is missing")
    must(path.read_bytes().endswith(b"\n"), f"{path.name} is empty or cut short")
    try:
        table = read_table(path)
    except ValueError as error:
        raise Invalid(f"{path.name} is not a table ({str(error).strip().splitlines()[0]})") from None
    lacking = [name for name in columns if name not in table]
    must(not lacking, f"{path.name} has no column {', '.join(lacking)}")
    must(len(table) >= rows, f"{path.name} has no row")
    if finite:
        all_finite(table if finite is True else table[finite], path.name)
    return table


def all_finite(table: pd.DataFrame, name: str) -> None:
    for column in table:
        wrong = table[column].isin([np.inf, -np.inf]) | table[column].isna()
        must(not wrong.any(), f"{name} has a value in the column {column} that is no finite number")


def pictures_in(folder: Path, deep: bool = True) -> list[Path]:
    there = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in there if path.suffix.lower() in (".png", ".jpg", ".jpeg"))


def all_decode(folder: Path, least: int = 1, deep: bool = True) -> None:
    """Every picture of a folder decodes, and there are at least so many."""
    files = pictures_in(folder, deep)
    must(len(files) >= least, f"{folder.name}/ holds no picture")
    for path in files:
        decodable(path)


def decodable(path: Path) -> None:
    """A picture that decodes and shows something."""
    must(path.is_file(), f"{path.name} is missing")
    try:
        with Image.open(path) as opened:
            opened.load()
            flat = all(low == high for low, high in np.atleast_2d(opened.convert("RGB").getextrema()))
    except (OSError, SyntaxError, ValueError):
        raise Invalid(f"{path.name} does not decode") from None
    must(not flat, f"{path.name} is one flat colour")
