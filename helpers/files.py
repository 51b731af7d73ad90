"""Files and paths: where the project is, one way to write a file, and mistakes that the user can mend."""

import contextlib
import hashlib
import io
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson
import pandas as pd
from filelock import FileLock, Timeout

TEXT_COLUMNS = ("run", "checkpoint", "class", "predicted_class", "type", "range", "file", "why")
ROOT = Path(__file__).resolve().parents[1]


def notebooks(folder: Path = ROOT / "notebooks") -> list[Path]:
    """The assignment's notebooks in a folder, ``01_download.ipynb`` and so on, in order."""
    return sorted(folder.glob("0?_*.ipynb"))


class UserError(Exception):
    """A mistake that the user can mend: one sentence saying what is wrong and what to do, shown without a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks the exception itself
        return [f"{type(self).__name__}: {self}"]


def write_atomic(path: Path, data: bytes | str | Iterable[bytes]) -> Path:
    """Write under a temporary name beside ``path``, then rename: a crash never leaves half a file under its name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            data = data.encode() if isinstance(data, str) else data
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path, value) -> Path:
    """Indented JSON through :func:`write_atomic`; NumPy scalars and arrays are understood.

    Raises ValueError for NaN or infinity, which JSON cannot hold and orjson would turn into null.
    """
    _refuse_non_finite(value, str(path))
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    return write_atomic(path, orjson.dumps(value, option=options, default=str))


def link_or_copy(source: Path, path: Path) -> None:
    """Put ``source`` at ``path``, as another name of it where the disk allows that; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # another disk, or a system that allows no links
        shutil.copyfile(source, temporary)
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_non_finite(value, where: str) -> None:
    if isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_non_finite(item, f"{where}: {key}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} would be {value}")


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file of ours as a DataFrame; names stay text, also those that look like something else: 01, NA, 1e5."""
    numbers = [name for name in pd.read_csv(path, nrows=0) if name not in TEXT_COLUMNS]
    missing = dict.fromkeys(numbers, ["", "nan", "NaN", "NA"])
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=missing)


def save_figure(figure, path: Path, dpi: int = 110) -> Path:
    """Save a matplotlib figure as PNG through :func:`write_atomic`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return write_atomic(path, buffer.getvalue())


def require(path: Path, made_by: str) -> Path:
    """``path`` if it is there, else a UserError that names the notebook (``03_train``) which makes it."""
    if not Path(path).exists():
        command = f"python -m helpers.run --only {made_by[:2]}"
        raise UserError(f"{portable(Path(path))} is missing: run notebook {made_by} first ({command}).")
    return Path(path)


def portable(value):
    """``value`` as JSON has it, with folders of the project and of the home folder written relative to these."""
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):  # model, resume and checkpoint may be folders
        value = Path(value)
    if isinstance(value, Path):
        path = value.resolve() if value.is_absolute() else value
        if path.is_relative_to(ROOT):
            return str(path.relative_to(ROOT))
        return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(value)
    return value


@contextlib.contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Hold the lock ``file``, which the system releases however the process ends; ``UserError(busy)`` if it is held."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=0):
            yield
    except Timeout:
        raise UserError(busy) from None


def without_folders(text: str) -> str:
    """``text`` (JSON or HTML) with the project's folder and the home folder taken out of the paths in it.

    A path must stand alone: a few letters inside an embedded picture that happen to spell one stay.
    """
    for folder, short in ((ROOT, "."), (Path.home(), "~")):
        if len(folder.parts) > 1:
            text = re.sub(rf"(?<![A-Za-z0-9+/]){re.escape(str(folder))}(?![A-Za-z0-9+=_.-])", short, text)
    return text
