"""From a model to COCO detections, and from detections to COCO's numbers."""
from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import torch
from torch.utils.data import DataLoader

from helpers.collator import Preprocess
from helpers.config import Config, UserError, require, write_atomic
from helpers.dataset import CocoDetection, CocoIndex, leave_signals_to_the_loop
from helpers.detections import Detections
from helpers.devices import autocast, pick_device
from helpers.fast_path import take_fast_path
from helpers.model import Detector, load_detector, loss_parts

STATS = ("mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large",
         "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large")  # COCO's twelve, in COCO's order


def eval_loader(index: CocoIndex, preprocess: Preprocess, batch_size: int, num_workers: int) -> DataLoader:
    """Batches of a split without augmentation; photos of like shape together, so that little is padding."""
    order = np.argsort(index.widths / index.heights, kind="stable")
    return DataLoader(CocoDetection(index, preprocess.resize), batch_sampler=[order[k : k + batch_size] for k in range(0, len(order), batch_size)],
                      num_workers=num_workers, collate_fn=preprocess.collate, pin_memory=torch.cuda.is_available(),
                      generator=torch.Generator(), worker_init_fn=leave_signals_to_the_loop)


@torch.inference_mode()
def predict(model, processor, preprocess: Preprocess, loader: Iterable[dict], category_ids: tuple[int, ...], device="cpu",
            autocast: Callable = contextlib.nullcontext, with_loss: bool = False) -> tuple[Detections, dict[str, float]]:
    """Detections of every photo in COCO's results format, and the mean loss parts (empty unless ``with_loss``).

    Every query is kept (threshold 0: average precision needs the low scores too); boxes are in the original photo's
    pixels, category and image ids are COCO's. Photos that cannot be read have no detections.
    """
    was_training = model.training
    model.eval()
    found, sums, photos = [], {}, 0
    for batch in loader:
        if batch["pixel_values"] is None:
            continue
        inputs = preprocess.to_device(batch, device)
        labels = inputs.pop("labels")
        with autocast():
            output = model(**inputs, labels=labels if with_loss else None)
        if with_loss:
            for name, value in loss_parts(output, model.config).items():
                sums[name] = sums.get(name, 0.0) + value * len(labels)
            photos += len(labels)
        found.append(to_coco(output, processor, batch["image_ids"], batch["orig_sizes"], category_ids))
    model.train(was_training)
    return Detections.joined(found), {name: float(value) / photos for name, value in sums.items()}


def to_coco(output, processor, image_ids: list[int], orig_sizes: torch.Tensor, category_ids: tuple[int, ...]) -> Detections:
    """A model's output for a batch as COCO results, highest score first within a photo; ``orig_sizes`` [B, 2] (height, width)."""
    output.logits, output.pred_boxes = output.logits.float().cpu(), output.pred_boxes.float().cpu()  # once a batch, not for each photo
    results = processor.post_process_object_detection(output, threshold=0.0, target_sizes=orig_sizes)
    orders = [result["scores"].argsort(descending=True, stable=True) for result in results]
    score, label, boxes_xyxy = (torch.cat([result[name][order] for result, order in zip(results, orders)]).double().numpy()
                                for name in ("scores", "labels", "boxes"))
    bbox = np.hstack([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]])
    return Detections(np.repeat(np.array(image_ids, np.int64), [len(order) for order in orders]),
                      np.array(category_ids, np.int64)[label.astype(np.int64)], bbox, score)


def save_detections(path: Path, detections: Sequence[dict]) -> Path:
    return write_atomic(path, orjson.dumps(list(detections)))


def load_detections(path: Path) -> list[dict]:
    """Read a COCO results file. Raises UserError when it is none."""
    try:
        detections = orjson.loads(Path(path).read_bytes())
    except orjson.JSONDecodeError:
        detections = None
    if not isinstance(detections, list):
        raise UserError(f"{Path(path).name} is not a COCO results file (a JSON list): run notebook 04_evaluate again.")
    return detections


def ground_truth(index: CocoIndex) -> dict:
    """An index back as a COCO document: ids, crowds and areas as published; what metrics and error analysis compare with."""
    owner = np.repeat(np.arange(len(index)), np.diff(index.starts))
    return {
        "images": [{"id": int(i), "file_name": str(name), "height": int(h), "width": int(w)}
                   for i, name, h, w in zip(index.image_ids, index.file_names, index.heights, index.widths)],
        "categories": [{"id": c, "name": name} for c, name in zip(index.category_ids, index.classes)],
        "annotations": [
            {"id": int(k), "image_id": int(index.image_ids[i]), "category_id": index.category_ids[label], "bbox": box,
             "area": float(area), "iscrowd": int(crowd)}
            for k, i, label, box, area, crowd in zip(index.annotation_ids, owner, index.labels, index.bbox.tolist(), index.areas, index.iscrowd)],
    }


def evaluator(gt: dict, detections: Sequence[dict], engine: str = "hotcoco"):
    """COCO's box evaluation, run: ``hotcoco`` (fast) or ``pycocotools`` (the reference). Detections must not be empty."""
    if engine == "hotcoco":
        from hotcoco import COCO, COCOeval

        coco = COCO(gt)
        run = COCOeval(coco, coco.load_res(Detections.of(detections).table()), "bbox")
        run.evaluate()
        run.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):
            run.summarize()
        return run
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        coco = COCO()
        coco.dataset = gt
        coco.createIndex()
        run = COCOeval(coco, coco.loadRes([dict(row) for row in detections]), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def coco_metrics(gt: dict, detections: Sequence[dict], engine: str = "hotcoco") -> dict:
    """``{"stats": COCO's twelve numbers as fractions, "per_class": a table with AP, AP50, AR100 and the counts}``.

    -1 where there is no ground truth of a kind, as in COCO. Without detections everything else is zero.
    """
    names = [c["name"] for c in gt["categories"]]
    counts = pd.Series([a["category_id"] for a in gt["annotations"] if not a.get("iscrowd")], dtype=int).value_counts()
    table = pd.DataFrame({"class": names, "instances": [int(counts.get(c["id"], 0)) for c in gt["categories"]]})
    if not detections or not gt["annotations"]:
        empty = 0.0 if gt["annotations"] else -1.0
        return {"stats": dict.fromkeys(STATS, empty), "per_class": table.assign(AP=empty, AP50=empty, AR100=empty)}
    run = evaluator(gt, detections, engine)
    order = np.argsort([c["id"] for c in gt["categories"]]).argsort()  # both engines sort categories by id
    precision = np.asarray(run.eval["precision"])[..., order, 0, 2]  # [T, R, K]
    recall = np.asarray(run.eval["recall"])[:, order, 0, 2]  # [T, K]
    table["AP"] = [_mean(precision[:, :, k]) for k in range(len(names))]
    table["AP50"] = [_mean(precision[0, :, k]) for k in range(len(names))]
    table["AR100"] = [_mean(recall[:, k]) for k in range(len(names))]
    return {"stats": dict(zip(STATS, map(float, run.stats))), "per_class": table}


def _mean(values: np.ndarray) -> float:
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else -1.0


def load_checkpoint(cfg: Config, classes: tuple[str, ...], checkpoint: str) -> Detector:
    """``start`` (the untouched ``cfg.model`` with its class head), ``best``, ``last``, ``epoch_N`` of the run, or a folder."""
    if checkpoint == "start":
        return load_detector(cfg, classes)
    folder = cfg.run_dir / f"checkpoint_{checkpoint}"
    if not folder.is_dir() and Path(checkpoint).expanduser().is_dir():
        folder = Path(checkpoint).expanduser().resolve()
    return load_detector(cfg, classes, source=require(folder, "03_train"), class_head="remap")


def evaluate_checkpoint(cfg: Config, index: CocoIndex, checkpoint: str, progress: Callable = iter) -> tuple[Detections, dict]:
    """Detections and :func:`coco_metrics` of one checkpoint on a split, written to the run's folder and to metrics.csv.

    ``progress`` wraps the loader (tqdm). ``start`` goes to detections_val2017_start.json, what ``cfg.checkpoint`` asks for to
    detections_val2017.json; another than ``best`` also to a file of its own, to be compared with later ones.
    """
    detector = load_checkpoint(cfg, index.classes, checkpoint)
    device = pick_device()
    take_fast_path(detector.model)
    loader = eval_loader(index, detector.preprocess, cfg.batch_size, cfg.num_workers)
    detections, _ = predict(detector.model.to(device), detector.processor, detector.preprocess, progress(loader), index.category_ids,
                            device, autocast(cfg.precision))
    endings = [] if checkpoint == "best" else ["_" + re.sub(r"[^\w.-]+", "_", checkpoint)[-60:]]
    for ending in endings + [""] * (checkpoint != "start" or cfg.checkpoint == "start"):  # what 05 and the report read
        save_detections(cfg.run_dir / f"detections_val2017{ending}.json", detections)
    metrics = coco_metrics(ground_truth(index), detections)
    record_metrics(cfg.output_dir / "metrics.csv", cfg.run_name, checkpoint, metrics["stats"])
    return detections, metrics


def record_metrics(path: Path, run: str, checkpoint: str, stats: dict[str, float]) -> pd.DataFrame:
    """Put a run's checkpoint into metrics.csv (in place of its earlier row), a run's start checkpoint first; the table."""
    row = pd.DataFrame([{"run": run, "checkpoint": checkpoint, **stats}])
    if path.exists():
        table = pd.read_csv(path, dtype={"run": str, "checkpoint": str})
        table = pd.concat([table[~((table["run"] == run) & (table["checkpoint"] == checkpoint))], row], ignore_index=True)
        runs = list(dict.fromkeys(table["run"]))
        key = [(runs.index(r), c != "start") for r, c in zip(table["run"], table["checkpoint"])]
        row = table.iloc[sorted(range(len(table)), key=key.__getitem__)].reset_index(drop=True)
    write_atomic(path, row.to_csv(index=False))
    return row
