"""The first page; what is missing is replaced by a sentence that says which notebook makes it."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import markupsafe
import numpy as np
import orjson
import pandas as pd

from helpers import cli
from helpers.config import Config, as_text
from helpers.error_analysis.tide import TYPES
from helpers.files import UserError, notebooks, read_table, require, without_folders, write_atomic
from helpers.grading.deliverables import check_all
from helpers.grading.readers import pictures_in
from helpers.pictures.embed import picture
from helpers.report.gallery import gallery
from helpers.report.notebook_pages import LIMIT, notebook_page, templates

EXAMPLES = 6
EPOCHS = ("epoch", "step", "train_loss", "train_loss_bbox", "val_loss_bbox", "mAP", "mAP50", "seconds", "photos_per_s")
CLASSES = ("class", "instances", "AP", "AP_low", "AP_high", "AP50", "AR100", "AP_start")
PRICES = ("run", "mAP", "million parameters", "ms a photo", "published AP, 80 classes", "worth its time")
METRICS = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR100")
DATA = {"class_counts": "Objects of each class", "box_sizes": "How large they are", "samples": "Training photos"}
ARMS = ("arm", "share", "seed", "steps", "real_photos", "mAP", "mAP50", "mAP_small", "mAP_medium", "mAP_large")
SYNTHETIC = {
    "steps": "How a synthetic photo is made",
    "statistics": "Real and synthetic photos",
    "effects": "What each arm gains over real photos only",
    "looks_pasted": "Pictures that look pasted, and pictures that do not",
}
ERRORS = {
    "error_types": "How many, and what they cost",
    "where_it_fails": "Where it fails",
    "recall_by_size": "Small objects",
}


def build_report(cfg: Config) -> Path:
    """Write all pages; the path of index.html."""
    folder = cfg.output_dir / "report"
    rows = [row for row in check_all(cfg) if row["name"] != "report"]
    executed = _part(lambda: write_pages(cfg, folder))
    for side in (640, 480, 320):  # smaller pictures only where the page would be too large
        page = _render(cfg, side, rows, executed)
        if len(page.encode()) < LIMIT:
            break
    return write_atomic(folder / "index.html", page)


def write_pages(cfg: Config, folder: Path) -> dict:
    """A page per executed notebook; their names, titles and times."""
    times = _json(cfg.output_dir / "notebooks" / "timings.json", default={})
    found = []
    for path in notebooks(cfg.output_dir / "notebooks"):
        entry = dict.fromkeys(("href", "seconds", "succeeded", "finished")) | times.get(path.stem, {})
        try:
            page, title = notebook_page(path)
            entry["href"] = write_atomic(folder / f"{path.stem}.html", page).name
        except (ValueError, KeyError, AttributeError) as error:
            title = f"cannot be shown: {type(error).__name__}"
        found.append({"name": path.stem, **entry, "title": re.sub(r"^\d+ · ", "", title)})  # its number is in its name
    if not found:
        raise UserError("No notebook has been executed yet: make run does it.")
    return {"rows": found, "total": sum(entry["seconds"] or 0 for entry in found)}


def _render(cfg: Config, side: int, rows: list[dict], executed: dict) -> str:
    script, _, _ = templates().loader.get_source(templates(), "browse.js")
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    run, out = cfg.run_dir, cfg.output_dir
    parts = {
        "headline": lambda: headline(cfg),
        "losses": lambda: _figure(require(run / "loss_curves.png", "03_train")),
        "epochs": lambda: _table(run / "epochs.csv", "03_train", EPOCHS),
        "profile": lambda: profile(cfg),
        "curves": lambda: _figure(require(run / "pr_curves.png", "04_evaluate")),
        "classes": lambda: _table(run / "per_class.csv", "04_evaluate", CLASSES),
        "prices": lambda: prices(run),
        "errors": lambda: error_summary(out / "error_analysis"),
        "synthetic": lambda: experiment(out / "synthetic_data"),
        "gallery": lambda: gallery(cfg, side),
        "examples": lambda: examples(out / "visualizations", side),
        "data": lambda: {"rows": _charts(require(out / "data_sanity", "02_sanity"), DATA)},
        "environment": lambda: {"rows": _flat(_json(require(run / "environment.json", "03_train")))},
        "configuration": lambda: {"rows": _flat(cfg.as_json())},
    }
    known = {"cfg": cfg, "grading": rows, "notebooks": executed, **{name: _part(part) for name, part in parts.items()}}
    safe = {"script": markupsafe.Markup(script), "checksum": markupsafe.Markup(checksum)}
    page = templates().get_template("index.html").render(**known, **safe)
    return without_folders(page)


def _part(build: Callable[[], dict]) -> dict:
    """What ``build`` gives, or ``{"missing": sentence}``: a part that is damaged takes only its own place."""
    try:
        return {"missing": None, **build()}
    except UserError as error:
        return {"missing": str(error)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"missing": f"This part cannot be shown, its file is damaged ({type(error).__name__}: {error})."}


def headline(cfg: Config) -> dict:
    """Before and after for this run with their 95 % intervals, and all rows of metrics.csv."""
    table = read_table(require(cfg.output_dir / "metrics.csv", "04_evaluate"))
    ours = table[table["run"] == cfg.run_name]
    if ours.empty:
        raise UserError(f"metrics.csv has no row for the run {cfg.run_name}: run notebook 04_evaluate.")
    trained = ours[ours["checkpoint"] != "start"]
    chosen = trained[trained["checkpoint"] == cfg.checkpoint]
    both = ours[ours["checkpoint"] == "start"], chosen if len(chosen) else trained.tail(1)
    before, after = (next(iter(part.to_dict("records")), None) for part in both)
    start = (table["checkpoint"] == "start") & (table["run"] != cfg.run_name)
    numbers = table[["checkpoint", *METRICS]].apply(tuple, axis=1)
    again = start & numbers.isin(numbers[ours.index])  # the same start once, however many runs begin there
    rows = table[~again].to_dict("records")
    return {"rows": rows, "columns": METRICS, "before": before, "after": after, **_intervals(cfg)}


def _intervals(cfg: Config) -> dict:
    """What metrics.json has of them: ``intervals`` and ``gains`` are metric -> (low, high)."""
    document = _part(lambda: _json(cfg.run_dir / "metrics.json", default={}))
    found = (document.get("intervals") or {}).get(document.get("checkpoint")) or {}
    gains = {name: (row or {}).get("interval") for name, row in (document.get("difference") or {}).items()}
    whole = lambda group: {name: pair for name, pair in group.items() if isinstance(pair, list) and len(pair) == 2}
    return {"intervals": whole(found), "gains": whole(gains), "photos": document.get("images")}


def profile(cfg: Config) -> dict:
    """The step breakdown: its rows (range, ms, share), and what they say in words."""
    folder = cfg.output_dir / "profiler" / cfg.run_name
    if not (cfg.profile or cfg.profile_only or folder.exists()):
        raise UserError("No step was profiled (profile=False): 03_train does it alone with profile_only=True.")
    table = read_table(require(folder / "breakdown.csv", "03_train"))[["range", "ms", "share"]]
    summary = {"sentence": "", "photos_per_s": None, **_json(folder / "summary.json", default={})}
    return {**summary, "rows": table.astype({"ms": float, "share": float}).to_dict("records")}


def prices(run: Path) -> dict:
    """What AP costs: every run that 04 has seen with its parameters and time, and their figure where there are two."""
    table = _table(run / "prices.csv", "04_evaluate", PRICES)
    title = {"prices": "AP against time a photo and parameters"}
    return {**table, "charts": _charts(run, title) if len(table["rows"]) > 1 else []}


def error_summary(folder: Path) -> dict:
    """TIDE's numbers and the charts of the error analysis; for each kind its most telling picture."""
    tide = _json(require(folder / "tide.json", "05_error_analysis"))
    gains, counts = tide["delta_ap"], tide["counts"]
    rows = [{"kind": kind, "gain": float(gains[short]), "count": counts[short]} for kind, short in TYPES.items()]
    most = max(row["gain"] for row in rows) or 1.0  # its bar is the longest
    first = {kind: path for kind in TYPES for path in pictures_in(folder / kind)[:1]}
    one_each = [{**_figure(path, 520), "caption": kind} for kind, path in first.items()]
    return {"rows": rows, "most": most, "charts": _charts(folder, ERRORS), "examples": one_each}


def experiment(folder: Path) -> dict:
    """The arms of notebook 06 and its figures."""
    table = _table(folder / "arms.csv", "06_synthetic_data", ARMS)
    return {**table, "charts": _charts(folder, SYNTHETIC)}


def examples(folder: Path, side: int) -> dict:
    """Some pictures of ``visualizations/``, at regular steps."""
    paths = pictures_in(require(folder, "04_evaluate"))
    if not paths:
        raise UserError(f"{folder.name}/ holds no picture: run notebook 04_evaluate again.")
    steps = np.unique(np.linspace(0, len(paths) - 1, min(EXAMPLES, len(paths))).astype(int))
    return {"rows": [_figure(paths[k], side) for k in steps], "total": len(paths)}


def _charts(folder: Path, titles: dict[str, str]) -> list[dict]:
    """The figures of a folder that are there, each under its title."""
    paths = {folder / f"{name}.png": title for name, title in titles.items()}
    return [{**_figure(path), "caption": title} for path, title in paths.items() if path.exists()]


def _figure(path: Path, side: int = 1400) -> dict:
    return {"source": picture(path, side), "caption": path.stem.replace("_", " ")}


def _table(path: Path, made_by: str, columns: tuple[str, ...], most: int = 80) -> dict:
    table = read_table(require(path, made_by))
    table = table[[name for name in columns if name in table]]
    if table.empty:
        raise ValueError(f"{path.name} has no row")
    heads = [{"name": name, "left": table[name].dtype.kind not in "iufb"} for name in table]
    rows = list(zip(*(_readable(table[name].head(most)) for name in table)))
    return {"columns": heads, "rows": rows, "more": max(0, len(table) - most)}


def _readable(column: pd.Series) -> list[str]:
    """A column's values as text, as many digits in each row; a dash where COCO says -1, there is nothing to measure."""
    if column.dtype.kind != "f":
        return [str(value) for value in column]
    form = "{:.3f}" if column.abs().max() < 10 else "{:.1f}"
    return [form.format(value) if np.isfinite(value) and value != -1 else "\N{EN DASH}" for value in column]


def _json(path: Path, default=None):
    return default if default is not None and not path.exists() else orjson.loads(path.read_bytes())


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (name, text) rows."""
    rows = []
    for name, value in values.items():
        nested = isinstance(value, dict)
        rows += _flat(value, f"{prefix}{name} ") if nested else [(f"{prefix}{name}", as_text(value))]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m helpers.report --preset demo [NAME=VALUE ...]``."""
    print(build_report(cli.config_of("helpers.report", "Build the report from what the notebooks left.", argv)))
    return 0
