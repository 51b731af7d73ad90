"""All notebooks in order, without a browser: ``python -m helpers.run --preset demo [NAME=VALUE ...]``."""

import datetime
import functools
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import orjson

from helpers import cli
from helpers.config import Config
from helpers.files import ROOT, UserError, notebooks, portable, write_json
from helpers.run.execution import execute

say = functools.partial(print, flush=True)


def main(argv: Sequence[str] | None = None, sources: Path = ROOT / "notebooks") -> int:
    """The command; its exit status is 0, 1 when a notebook or the grading fails, 2 for a mistake in the arguments."""
    parser = cli.parser("helpers.run", "Execute the notebooks, then write the report and the grading.")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--only", metavar="03,04", help="these notebooks alone")
    some.add_argument("--from", dest="start", metavar="03", help="this notebook and the later ones")
    parser.add_argument("--cell-minutes", type=float, metavar="M", help="stop when a cell runs longer (else: never)")
    arguments = parser.parse_intermixed_args(argv)
    cfg, parameters = cli.configure(arguments.preset, arguments.overrides)
    paths = select(sources, arguments.only, arguments.start)
    if arguments.cell_minutes is not None and arguments.cell_minutes <= 0:
        raise UserError("--cell-minutes must be more than 0.")
    if cfg.profile_only and not arguments.only:
        paths = [path for path in paths if path.stem[:2] <= "03"]  # there will be no checkpoint to evaluate
    folder = portable(cfg.output_dir / "notebooks")
    names = ", ".join(path.stem for path in paths)
    say(f"Preset {cfg.preset}, run {cfg.run_name}: {names}; executed copies go to {folder}/")
    for path in paths:
        failure = run_notebook(path, cfg, parameters, arguments.cell_minutes)
        if failure:
            then = f"later notebooks were not run. Go on with: {_again(arguments, path)}"
            say(f"{failure}\nIts executed copy is {folder}/{path.name}; {then}", file=sys.stderr)
            return 1
    return finish(cfg, must_hold=arguments.only is None and not cfg.profile_only)


def finish(cfg: Config, must_hold: bool) -> int:
    """The report and the grading of what the notebooks left; 1 when ``must_hold`` and a deliverable does not."""
    from helpers.grading.deliverables import grade  # with PyTorch: a mistake in the arguments is refused without it
    from helpers.report.front_page import build_report

    page = build_report(cfg)
    rows = grade(cfg)
    wrong = [row for row in rows if not row["valid"]]
    hold = f"{len(rows) - len(wrong)} of {len(rows)} deliverables hold"
    say(f"report: {portable(page)}\ngrading: {hold} ({portable(cfg.output_dir)}/grading.json)")
    for row in wrong if must_hold else ():
        say(f"  {row['name']}: {row['reason']}", file=sys.stderr)
    return 1 if wrong and must_hold else 0


def select(folder: Path, only: str | None = None, start: str | None = None) -> list[Path]:
    """The notebooks of a folder in order: those named in ``only`` (``03,04``), or from ``start`` on.

    A notebook goes by its number or by its name. Raises UserError for one that is not there.
    """
    paths = notebooks(folder)
    known = {key: path for path in paths for key in (path.stem[:2], path.stem, path.name)}
    wanted = [start] if start else [name.strip() for name in (only or "").split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise UserError(f"There is no notebook {name!r}; there are {', '.join(path.stem for path in paths)}.")
    if only is not None:
        if not wanted:
            raise UserError("--only names no notebook.")
        return [path for path in paths if path in {known[name] for name in wanted}]
    return paths[paths.index(known[start]) :] if start else paths


def run_notebook(path: Path, cfg: Config, parameters: dict, cell_minutes: float | None = None) -> str | None:
    """Execute one notebook into ``output_dir/notebooks/`` and note its time; a message when it failed, else None."""
    copy = cfg.output_dir / "notebooks" / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    try:
        failure = execute(path, copy, parameters, cell_minutes)
    except OSError as error:  # a full disk, a folder that may not be written
        failure = f"{path.stem} could not be executed: {error.strerror or error}."
    seconds = time.perf_counter() - began
    say(f"{path.stem:<20} {'failed after ' if failure else ''}{seconds:.1f} s")
    note_time(copy.parent / "timings.json", path.stem, seconds, failure is None)
    return failure


def note_time(file: Path, name: str, seconds: float, succeeded: bool) -> None:
    """Put a notebook's time into timings.json; the other notebooks' stay."""
    try:
        times = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        times = {}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    times[name] = {"seconds": round(seconds, 2), "succeeded": succeeded, "finished": now}
    write_json(file, dict(sorted(times.items())))


def _again(arguments, path: Path) -> str:
    python = Path(sys.executable)
    words = [str(python.relative_to(ROOT)) if python.is_relative_to(ROOT) else "python", "-m", "helpers.run"]
    return shlex.join([*words, "--preset", arguments.preset, *arguments.overrides, "--from", path.stem[:2]])
