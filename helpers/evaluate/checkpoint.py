"""A checkpoint of a run: loaded, evaluated on the validation split, recorded in metrics.csv."""

import re
from pathlib import Path

import pandas as pd

from helpers.config import Config
from helpers.devices import autocast, pick_device
from helpers.engine import eval_loader, predict
from helpers.families.loading import load_detector
from helpers.files import read_table, require, write_atomic
from helpers.index import CocoIndex
from helpers.metrics import Detections, coco_metrics, ground_truth, save_detections
from helpers.model import Detector, knows
from helpers.train.fast_path import take_fast_path


def load_checkpoint(cfg: Config, classes: tuple[str, ...], checkpoint: str) -> Detector:
    """``start``, ``remapped``, ``best``, ``last``, ``epoch_N`` of the run, or a folder.

    ``start`` is the untouched ``cfg.model`` as it was published, with its whole class head (where it knows one of the
    classes at all); ``remapped`` is what training starts from, with a head for our classes alone. For a softmax head
    like DETR's the two differ: without the other classes their probability moves to ours.
    """
    if checkpoint == "start":
        detector = load_detector(cfg, classes, class_head="whole")
        if knows(detector.model.config).keys() & {name.lower() for name in classes}:
            return detector
    if checkpoint in ("start", "remapped"):
        return load_detector(cfg, classes)
    folder = cfg.run_dir / f"checkpoint_{checkpoint}"
    if not folder.is_dir() and Path(checkpoint).expanduser().is_dir():
        folder = Path(checkpoint).expanduser().resolve()
    return load_detector(cfg, classes, source=require(folder, "03_train"), class_head="remap")


def evaluate_checkpoint(cfg: Config, index: CocoIndex, checkpoint: str, progress=iter) -> tuple[Detections, dict]:
    """Detections and :func:`coco_metrics` of one checkpoint on a split, written to the run's folder and to metrics.csv.

    ``progress`` wraps the loader (tqdm). ``start`` goes to detections_val2017_start.json, what ``cfg.checkpoint`` asks
    for to detections_val2017.json; another than ``best`` also to a file of its own, to be compared with later ones.
    """
    detector, device = load_checkpoint(cfg, index.classes, checkpoint), pick_device()
    take_fast_path(detector.model.to(device))
    loader = progress(eval_loader(index, detector.preprocess, cfg.batch_size, cfg.num_workers))
    detections, _ = predict(detector, loader, detector.category_ids(index), device, autocast(cfg.precision))
    endings = [] if checkpoint == "best" else ["_" + re.sub(r"[^\w.-]+", "_", checkpoint)[-60:]]
    for ending in endings + [""] * (checkpoint != "start" or cfg.checkpoint == "start"):  # what 05 and the report read
        save_detections(cfg.run_dir / f"detections_val2017{ending}.json", detections)
    metrics = coco_metrics(ground_truth(index), detections)
    record_metrics(cfg.output_dir / "metrics.csv", cfg.run_name, checkpoint, metrics["stats"])
    return detections, metrics


def record_metrics(path: Path, run: str, checkpoint: str, stats: dict[str, float]) -> pd.DataFrame:
    """The table metrics.csv with a run's checkpoint in place of its earlier row, a run's start checkpoint first."""
    rows = read_table(path).to_dict("records") if path.exists() else []
    rows = [row for row in rows if (row["run"], row["checkpoint"]) != (run, checkpoint)]
    rows.append({"run": run, "checkpoint": checkpoint, **stats})
    runs = list(dict.fromkeys(row["run"] for row in rows))
    rows.sort(key=lambda row: (runs.index(row["run"]), row["checkpoint"] != "start"))
    table = pd.DataFrame(rows)
    write_atomic(path, table.to_csv(index=False))
    return table
