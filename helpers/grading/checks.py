"""What makes a deliverable valid: it reads, it is not empty, its numbers are finite, and it agrees with the others.

A check takes the config and the deliverable's path, and raises ``Invalid`` with the reason. It says nothing about a
*neighbour* that is missing or damaged: that one has its own check.
"""

import gzip
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import orjson
import pandas as pd
from safetensors.numpy import load_file

from helpers.config import Config
from helpers.error_analysis.tide import TYPES
from helpers.files import notebooks
from helpers.grading.readers import Invalid, all_decode, all_finite, decodable, must, neighbour, read_csv, read_json
from helpers.index import open_split
from helpers.metrics import STATS, coco_metrics, ground_truth
from helpers.train.checkpoints import damage

PAGE_LIMIT = 15_000_000
FETCHED = re.compile(r"""<(?:script|img|link|iframe)\b[^>]{0,200}\b(?:src|href)=["']?https?:""")


def dataset(cfg: Config, path: Path) -> None:
    manifest = read_json(path / "manifest.json")
    for split in ("train2017", "val2017"):
        index = open_split(cfg, split)
        counted = manifest.get("splits", {}).get(split, {}).get("images")
        there = len(index) + sum("annotation" not in row["why"] for row in index.dropped)
        must(counted == there, f"manifest.json counts {counted} photos in {split}, the annotations {there}")
        must(len(index) > 0, f"{split} holds no photo")
        same = list(index.classes) == manifest.get("classes")
        must(same, f"manifest.json and the annotations of {split} name different classes")


def data_sanity(cfg: Config, path: Path) -> None:
    counts = read_csv(path / "class_counts.csv", "class", finite=True)
    _same_classes(cfg, counts, "class_counts.csv")
    for table in path.glob("*.csv"):
        read_csv(table, rows=0)
    decodable(path / "class_counts.png")
    all_decode(path)


def config_json(cfg: Config, path: Path) -> None:
    values = read_json(path)
    unknown = set(values) ^ set(Config.model_fields)
    must(not unknown, f"parameters differ from those of today: {', '.join(sorted(unknown))}")
    must(values["run_name"] == cfg.run_name, f"it belongs to the run {values['run_name']}")


def environment_json(cfg: Config, path: Path) -> None:
    values = read_json(path)
    whole = {"python", "device", "packages"} <= set(values) and bool(values["packages"])
    must(whole, "python, device or packages are not in it")


def losses(cfg: Config, path: Path) -> None:
    table = read_csv(path, "step", "epoch", "lr", "loss")
    if "skipped" in table:  # by the fp16 scaler: the gradient of such a step is no number, and that is said
        table["grad_norm"] = table["grad_norm"].where(table["skipped"] != 1, 0.0)
    all_finite(table, path.name)
    must(list(table["step"]) == list(range(1, len(table) + 1)), "the steps are not 1, 2, 3, ...")
    must((np.diff(table["epoch"]) >= 0).all(), "the epochs go backwards")
    ends = neighbour(lambda: int(read_csv(cfg.run_dir / "epochs.csv", "step")["step"].iloc[-1]))
    must(ends is None or len(table) >= ends, f"it ends at step {len(table)}, epochs.csv at step {ends}")


def epochs(cfg: Config, path: Path) -> None:
    table = read_csv(path, "epoch", "mAP", "mAP50", "seconds", finite=True)
    must(list(table["epoch"]) == list(range(1, len(table) + 1)), "the epochs are not 1, 2, 3, ...")
    asked = neighbour(lambda: int(read_json(cfg.run_dir / "config.json")["epochs"]))
    must(asked in (None, len(table)), f"it has {len(table)} of the {asked} epochs that config.json asks for")
    steps = neighbour(lambda: read_csv(cfg.run_dir / "losses.csv", "epoch", "loss"))
    if steps is not None and "train_loss" in table:
        mean = steps.groupby("epoch")["loss"].mean().reindex(table["epoch"])
        must(np.allclose(mean, table["train_loss"], rtol=1e-4), "train_loss is not the mean of losses.csv")


def checkpoint(cfg: Config, path: Path) -> None:
    labels = read_json(path / "config.json").get("id2label", {})
    names = [labels.get(str(k)) for k in range(len(labels))]
    classes = neighbour(lambda: list(open_split(cfg, "val2017").classes))
    ours, theirs = (", ".join(map(str, each or [])) for each in (names, classes))
    must(classes in (None, names), f"it knows the classes {ours}, the data set {theirs}")
    weights = load_file(path / "model.safetensors")
    must(bool(weights), "model.safetensors holds no weights")
    for name, values in weights.items():
        must(np.isfinite(values).all(), f"the weights {name} are not all finite")
    must((path / "preprocessor_config.json").is_file(), "preprocessor_config.json is missing")
    problem = damage(path)
    must(problem is None, str(problem))


def tensorboard(cfg: Config, path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    files = sorted(path.glob("*tfevents*"))
    must(bool(files), "there is no event file")
    must(sum(1 for file in files for _ in RawEventFileLoader(str(file)).Load()) > 1, "the event files hold no event")


def profiler(cfg: Config, path: Path) -> None:
    table = read_csv(path / "breakdown.csv", "range", "ms", "share", finite=True)
    usual = (table["ms"] >= 0).all() and table["share"].between(0, 1.001).all()
    must(usual, "a time or a share is negative or too large")
    must(0.9 < table["share"].sum() < 1.1, f"the shares add up to {table['share'].sum():.2f}, not to 1")
    decodable(path / "breakdown.png")
    must(bool(read_json(path / "summary.json").get("sentence")), "summary.json does not name the bottleneck")
    traces = [file for file in path.rglob("*.json*") if "trace" in file.name]
    must(bool(traces), "there is no trace")
    for file in traces:
        raw = file.read_bytes()
        events = orjson.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw).get("traceEvents")
        must(bool(events), f"{file.name} holds no event")


def detections(cfg: Config, path: Path) -> None:
    found = read_json(path, list)
    if not found and path.stem.endswith("_start"):
        return  # a whole head may prefer other classes to ours everywhere: row one is 0 then, and that is checked
    must(bool(found), "it holds no detection")
    try:
        ids, categories = (np.array([row[name] for row in found]) for name in ("image_id", "category_id"))
        boxes, scores = (np.array([row[name] for row in found], dtype=float) for name in ("bbox", "score"))
    except (KeyError, TypeError, ValueError):
        raise Invalid("a record is no detection (image_id, category_id, bbox, score)") from None
    shaped = boxes.shape == (len(found), 4)
    must(shaped and np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all(), "a box is no box")
    must(((scores >= 0) & (scores <= 1)).all(), "a score is not between 0 and 1")
    index = neighbour(lambda: open_split(cfg, "val2017"))
    if index is not None:
        stray = ids[~np.isin(ids, index.image_ids)]
        must(not len(stray), f"photo {stray[:1].tolist()} does not belong to the validation split")
        must(np.isin(categories, index.category_ids).all(), "a category does not belong to the data set")


def metrics_csv(cfg: Config, path: Path) -> None:
    table = read_csv(path, "run", "checkpoint", *STATS)
    ours = table[table["run"] == cfg.run_name]
    must(not ours.empty, f"there is no row for the run {cfg.run_name}")
    must(ours.iloc[0]["checkpoint"] == "start", "the untouched start checkpoint is not the run's first row")
    must(len(ours) > 1, "the trained checkpoint has no row")
    numbers = ours[list(STATS)].to_numpy(dtype=float)
    must(((numbers == -1) | ((numbers >= 0) & (numbers <= 1))).all(), "a number is not a fraction")  # nor is NaN
    files = {"start": "detections_val2017_start.json", cfg.checkpoint: "detections_val2017.json"}
    for name, file in files.items():
        row = ours[ours["checkpoint"] == name]
        again = neighbour(lambda file=file: _recomputed(cfg, cfg.run_dir / file))
        for metric in STATS if again is not None and len(row) else ():
            said, is_so = float(row.iloc[0][metric]), again[metric]
            agree = math.isclose(said, is_so, abs_tol=1e-6)
            must(agree, f"the row {name} says {metric} {said:.4f}, {file} gives {is_so:.4f}")


def metrics_json(cfg: Config, path: Path) -> None:
    document = read_json(path)
    stats = document.get("stats", document)
    must(set(STATS) <= set(stats), "COCO's twelve numbers are not in it")
    must(all(isinstance(stats[name], (int, float)) for name in STATS), "a number is missing")
    row = neighbour(lambda: _row(cfg))
    if row is not None:
        off = [name for name in STATS if not math.isclose(float(stats[name]), float(row[name]), abs_tol=1e-9)]
        must(not off, f"{', '.join(off)} differ from metrics.csv")


def per_class(cfg: Config, path: Path) -> None:
    columns = ["class", "instances", "AP", "AP50"]
    table = read_csv(path, *columns, finite=columns)
    _same_classes(cfg, table, path.name)
    mean = table["AP"][table["AP"] >= 0].mean()
    said = neighbour(lambda: float(_row(cfg)["mAP"]))
    agree = said is None or math.isnan(mean) or math.isclose(mean, said, abs_tol=1e-6)
    must(agree, f"the mean of AP is {mean:.4f}, metrics.csv says {said or 0:.4f}")


def tide(cfg: Config, path: Path) -> None:
    document = read_json(path)
    for part in ("delta_ap", "counts"):
        values = document.get(part)
        whole = isinstance(values, dict) and set(values) == set(TYPES.values())
        must(whole, f"{part} does not have the keys {', '.join(TYPES.values())}")
        numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in values.values())
        must(numbers, f"{part} is not all numbers")
    must(all(abs(value) <= 1 for value in document["delta_ap"].values()), "delta_ap is not in fractions")
    table = neighbour(lambda: read_csv(path.parent / "errors.csv", "type", rows=0))
    if table is not None:
        counted = {short: int((table["type"] == name).sum()) for name, short in TYPES.items()}
        must(counted == document["counts"], "counts differ from the rows of errors.csv")


def errors_csv(cfg: Config, path: Path) -> None:
    columns = ("image_id", "type", "class", "predicted_class", "iou", "score", "area")
    table = read_csv(path, *columns, rows=0, finite=["iou", "area"])
    must(set(table["type"]) <= set(TYPES), "a type is unknown")
    must(np.isfinite(table.loc[table["type"] != "missed", "score"]).all(), "a false prediction has no score")
    ids = neighbour(lambda: open_split(cfg, "val2017").image_ids)
    must(ids is None or table["image_id"].isin(ids).all(), "a photo does not belong to the validation split")


def error_pictures(cfg: Config, path: Path) -> None:
    table = neighbour(lambda: read_csv(path / "errors_at_threshold.csv", "type", rows=0))
    for name in TYPES:
        must((path / name).is_dir(), f"the folder {name}/ is missing")
        all_decode(path / name, least=int(table is not None and (table["type"] == name).any()))
    all_decode(path, deep=False)


def synthetic_set(cfg: Config, path: Path) -> None:
    manifest = read_json(path / "manifest.json")
    must(manifest.get("kind") == "copy-paste", "manifest.json is of another data set")
    photos = sorted((path / "images" / "train2017").glob("*.jpg"))
    counted = manifest.get("photos")
    must(len(photos) == counted, f"manifest.json counts {counted} photos, there are {len(photos)}")
    must(bool(photos), "it holds no photo")
    decodable(photos[0])
    listed = len(read_json(path / "annotations" / "instances_train2017.json").get("images", ()))
    must(listed == counted, f"manifest.json counts {counted} photos, the annotations {listed}")


def arms(cfg: Config, path: Path) -> None:
    table = read_csv(path, "arm", "run", "share", "seed", finite=["steps", "photos", "mAP", "mAP50"])
    must(table["steps"].nunique() == table["photos"].nunique() == 1, "one arm was trained for longer than another")
    must(table["mAP"].between(0, 1).all(), "mAP is not a fraction")
    metrics = neighbour(lambda: read_csv(cfg.output_dir / "metrics.csv", "run", "checkpoint", "mAP"))
    if metrics is None:
        return
    last = metrics[metrics["checkpoint"] == "last"].set_index("run")["mAP"].to_dict()
    for run, said in zip(table["run"], table["mAP"]):
        must(run not in last or abs(last[run] - said) < 1e-6, f"mAP of {run} is another one in metrics.csv")


def executed(cfg: Config, path: Path) -> None:
    times = read_json(path / "timings.json")
    for name in (notebook.stem for notebook in notebooks()):
        must((path / f"{name}.ipynb").is_file(), f"{name} has not been executed")
        cells = nbformat.read(path / f"{name}.ipynb", as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
        failed = any(output.output_type == "error" for cell in code for output in cell.outputs)
        must(not failed, f"{name} ended with an error")
        must(bool(code) and all(cell.execution_count for cell in code), f"{name} has cells that were not executed")
        must(math.isfinite(times.get(name, {}).get("seconds", math.nan)), f"timings.json has no time of {name}")


def report(cfg: Config, path: Path) -> None:
    for name in ("index.html", *(f"{notebook.stem}.html" for notebook in notebooks())):
        must((path / name).is_file(), f"{name} is missing")
        text = (path / name).read_text(encoding="utf-8")
        must((path / name).stat().st_size < PAGE_LIMIT, f"{name} is larger than 15 MB")
        must(text.rstrip().endswith("</html>"), f"{name} is cut short")
        must(not FETCHED.search(text), f"{name} asks the network for something")
    said = neighbour(lambda: f"{float(_row(cfg)['mAP']):.3f}")
    current = said is None or said in (path / "index.html").read_text(encoding="utf-8")
    must(current, "index.html does not show the mAP of metrics.csv: make report")


def _same_classes(cfg: Config, table: pd.DataFrame, name: str) -> None:
    classes = neighbour(lambda: sorted(open_split(cfg, "val2017").classes))
    must(classes in (None, sorted(table["class"])), f"{name} names other classes, not those of the data set")


def _row(cfg: Config) -> pd.Series:
    """The row of metrics.csv of the checkpoint that 04 looked at."""
    table = read_csv(cfg.output_dir / "metrics.csv", "run", "checkpoint", *STATS)
    rows = table[(table["run"] == cfg.run_name) & (table["checkpoint"] == cfg.checkpoint)]
    must(len(rows) == 1, f"metrics.csv has {len(rows)} rows for {cfg.run_name}, {cfg.checkpoint}")
    return rows.iloc[0]


def _recomputed(cfg: Config, file: Path) -> dict[str, float]:
    detections(cfg, file)
    return coco_metrics(ground_truth(open_split(cfg, "val2017")), read_json(file, list))["stats"]
