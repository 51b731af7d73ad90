"""The report: ``index.html`` and a page per notebook in ``artifacts/report/``, readable from a disk without a network.

``python -m helpers.report --preset demo [NAME=VALUE ...]`` builds it from what the notebooks left. What is missing is
replaced by a sentence that says which notebook makes it.
"""

from __future__ import annotations

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
from helpers.config import Config
from helpers.files import UserError, read_table, require, without_folders, write_atomic
from helpers.grading import deliverables
from helpers.grading.checks import SHORT
from helpers.pictures.embed import picture
from helpers.report.gallery import gallery
from helpers.report.pages import LIMIT, notebook_page, templates

EXAMPLES = 6
EPOCHS = ("epoch", "step", "train_loss", "train_loss_bbox", "val_loss_bbox", "mAP", "mAP50", "seconds", "photos_per_s")
CHARTS = {
    "error_types": "How many, and what they cost",
    "where_it_fails": "Where it fails",
    "recall_by_size": "Small objects",
}
DATA = {"class_counts": "Objects of each class", "box_sizes": "How large they are", "samples": "Training photos"}
CLASSES = ("class", "instances", "AP", "AP_low", "AP_high", "AP50", "AR100", "AP_start")
COLUMNS = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR100")


def build_report(cfg: Config) -> Path:
    """Write all pages; the path of index.html."""
    folder = cfg.output_dir / "report"
    rows = [row for row in deliverables.check_all(cfg) if row["name"] != "report"]
    notebooks = _part(lambda: write_pages(cfg, folder))
    for side in (640, 480, 320):  # smaller pictures only where the page would be too large
        page = _render(cfg, side, rows, notebooks)
        if len(page.encode()) < LIMIT:
            break
    return write_atomic(folder / "index.html", page)


def write_pages(cfg: Config, folder: Path) -> dict:
    """A page per executed notebook; their names, titles and times."""
    times = _json(cfg.output_dir / "notebooks" / "timings.json", default={})
    found = []
    for path in sorted((cfg.output_dir / "notebooks").glob("0?_*.ipynb")):
        entry = {
            "name": path.stem,
            "title": path.stem,
            "href": None,
            **dict.fromkeys(("seconds", "succeeded", "finished")),
        }
        entry |= (
            {key: times[path.stem].get(key) for key in ("seconds", "succeeded", "finished")}
            if path.stem in times
            else {}
        )
        try:
            page, entry["title"] = notebook_page(path)
            entry["title"] = re.sub(r"^\d+ · ", "", entry["title"])  # its number is in its name
            entry["href"] = write_atomic(folder / f"{path.stem}.html", page).name
        except (ValueError, KeyError, AttributeError) as error:
            entry["title"] = f"cannot be shown: {type(error).__name__}"
        found.append(entry)
    if not found:
        raise UserError("No notebook has been executed yet: make run does it.")
    return {"rows": found, "total": sum(entry["seconds"] or 0 for entry in found)}


def _render(cfg: Config, side: int, rows: list[dict], notebooks: dict) -> str:
    script, _, _ = templates().loader.get_source(templates(), "browse.js")
    checksum = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    run, out = cfg.run_dir, cfg.output_dir
    page = (
        templates()
        .get_template("index.html")
        .render(
            cfg=cfg,
            script=markupsafe.Markup(script),
            checksum=markupsafe.Markup(checksum),
            grading=rows,
            notebooks=notebooks,
            headline=_part(lambda: headline(cfg)),
            losses=_part(lambda: _figure(run / "loss_curves.png", "03_train")),
            epochs=_part(lambda: _table(run / "epochs.csv", "03_train", EPOCHS)),
            profile=_part(lambda: profile(out / "profiler" / cfg.run_name)),
            curves=_part(lambda: _figure(run / "pr_curves.png", "04_evaluate")),
            classes=_part(lambda: _table(run / "per_class.csv", "04_evaluate", CLASSES)),
            errors=_part(lambda: error_summary(out / "error_analysis")),
            gallery=_part(lambda: gallery(cfg, side)),
            examples=_part(lambda: pictures(out / "visualizations", "04_evaluate", EXAMPLES, side)),
            data=_part(lambda: _charts(require(out / "data_sanity", "02_sanity"), "02_sanity", DATA)),
            environment=_part(lambda: {"rows": _flat(_json(require(run / "environment.json", "03_train")))}),
            configuration=_part(lambda: {"rows": _flat(cfg.as_json())}),
        )
    )
    return without_folders(page)


def headline(cfg: Config) -> dict:
    """Before and after for this run, and all rows of metrics.csv."""
    table = read_table(require(cfg.output_dir / "metrics.csv", "04_evaluate"))
    columns = [name for name in COLUMNS if name in table]
    ours = table[table["run"] == cfg.run_name]
    if ours.empty:
        raise UserError(f"metrics.csv has no row for the run {cfg.run_name}: run notebook 04_evaluate.")
    start = ours[ours["checkpoint"] == "start"]
    after = ours[ours["checkpoint"] != "start"].tail(1)
    chosen = ours[ours["checkpoint"] == cfg.checkpoint]
    after = chosen if len(chosen) and cfg.checkpoint != "start" else after
    rows = [
        {
            "run": row["run"],
            "checkpoint": row["checkpoint"],
            "ours": row["run"] == cfg.run_name and len(after) and row["checkpoint"] == after.iloc[0]["checkpoint"],
            "values": [row[name] for name in columns],
        }
        for row in table.to_dict("records")
    ]
    return {
        "rows": rows,
        "columns": columns,
        **_intervals(cfg),
        "before": start.iloc[0].to_dict() if len(start) else None,
        "after": after.iloc[0].to_dict() if len(after) else None,
    }


def _intervals(cfg: Config) -> dict:
    """95 % intervals from metrics.json, as far as it has them: ``intervals`` and ``gains`` are metric -> (low,
    high).
    """
    document = _part(lambda: _json(cfg.run_dir / "metrics.json", default={}))
    found = (document.get("intervals") or {}).get(document.get("checkpoint")) or {}
    gains = {name: (row or {}).get("interval") for name, row in (document.get("difference") or {}).items()}
    whole = [
        {name: bounds for name, bounds in group.items() if isinstance(bounds, list) and len(bounds) == 2}
        for group in (found, gains)
    ]
    return {"intervals": whole[0], "gains": whole[1], "photos": document.get("images")}


def profile(folder: Path) -> dict:
    """The step breakdown: its rows (range, ms, share), and what they say in words."""
    table = read_table(require(folder / "breakdown.csv", "03_train"))
    rows = [
        {"range": str(row["range"]), "ms": float(row["ms"]), "share": float(row["share"])}
        for row in table.to_dict("records")
    ]
    summary = _json(folder / "summary.json", default={})
    return {"rows": rows, "sentence": summary.get("sentence", ""), "photos_per_s": summary.get("photos_per_s")}


def error_summary(folder: Path) -> dict:
    """TIDE's numbers and the charts of the error analysis; for each kind its most telling picture."""
    tide = _json(require(folder / "tide.json", "05_error_analysis"))
    most = max([1e-9, *(abs(float(value)) for value in tide["delta_ap"].values())])
    names = {short: name for name, short in SHORT.items()}
    rows = [
        {
            "kind": names.get(kind, kind),
            "gain": float(gain),
            "width": 100 * max(0.0, float(gain)) / most,
            "count": tide["counts"].get(kind, ""),
        }
        for kind, gain in tide["delta_ap"].items()
    ]
    charts = _charts(folder, "05_error_analysis", CHARTS)["rows"]
    examples = [
        {**_figure(path, "05_error_analysis", 520), "caption": kind}
        for kind in SHORT
        for path in sorted([*(folder / kind).glob("*.jpg"), *(folder / kind).glob("*.png")])[:1]
    ]
    return {"rows": rows, "charts": charts, "examples": examples}


def _charts(folder: Path, made_by: str, titles: dict[str, str]) -> dict:
    """The figures of a folder that are there, each under its title."""
    there = [(folder / f"{name}.png", title) for name, title in titles.items() if (folder / f"{name}.png").exists()]
    return {"rows": [{**_figure(path, made_by), "caption": title} for path, title in there]}


def pictures(folder: Path, made_by: str, count: int, side: int) -> dict:
    """``count`` pictures of a folder, at regular steps."""
    paths = sorted(
        path for path in require(folder, made_by).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    if not paths:
        raise UserError(f"{folder.name}/ holds no picture: run notebook {made_by} again.")
    steps = np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int))
    return {"rows": [_figure(paths[k], made_by, side) for k in steps], "total": len(paths)}


def _part(build: Callable[[], dict]) -> dict:
    """What ``build`` gives, or ``{"missing": sentence}``: a part that is damaged takes only its own place."""
    try:
        return {"missing": None, **build()}
    except UserError as error:
        return {"missing": str(error)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"missing": f"This part cannot be shown, its file is damaged ({type(error).__name__}: {error})."}


def _figure(path: Path, made_by: str, side: int = 1400) -> dict:
    return {"source": picture(require(path, made_by), side), "caption": path.stem.replace("_", " ")}


def _table(path: Path, made_by: str, columns: tuple[str, ...], most: int = 80) -> dict:
    table = read_table(require(path, made_by))
    table = table[[name for name in columns if name in table]]
    if table.empty:
        raise ValueError(f"{path.name} has no row")
    columns = [
        {"name": name, "left": table[name].dtype.kind not in "iufb", "values": _readable(table[name].head(most))}
        for name in table
    ]
    return {
        "columns": columns,
        "rows": list(zip(*(column["values"] for column in columns))),
        "more": max(0, len(table) - most),
    }


def _readable(column: pd.Series) -> list[str]:
    """A column's values as text, as many digits in each row; a dash where COCO says -1, there is nothing to measure."""
    if column.dtype.kind != "f":
        return [str(value) for value in column]
    form = "{:.3f}" if column.abs().max() < 10 else "{:.1f}"
    return [form.format(value) if np.isfinite(value) and value != -1 else "\N{EN DASH}" for value in column]


def _json(path: Path, default=None):
    if default is not None and not path.exists():
        return default
    return orjson.loads(path.read_bytes())


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (name, text) rows."""
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
            rows.append((f"{prefix}{name}", text))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m helpers.report``."""
    arguments = cli.parser("helpers.report", "Build the report from what the notebooks left.").parse_args(argv)
    cfg, _ = cli.configure(arguments.preset, arguments.overrides)
    print(build_report(cfg))
    return 0
