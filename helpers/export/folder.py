"""The command ``python -m helpers.export``: write the folder, once what is in it finds what the checkpoint finds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jinja2
import numpy as np
import onnxruntime
import torch

from helpers import cli
from helpers.boxes import xywh_to_xyxy
from helpers.config import Config
from helpers.engine import eval_loader, predict
from helpers.evaluate.checkpoint import load_checkpoint
from helpers.export.graph import OPSET, OnnxModel, write_graph
from helpers.files import UserError, portable, write_atomic, write_json
from helpers.index import open_split
from helpers.metrics import Detections
from helpers.model import Detector
from helpers.train.checkpoints import write_folder

PHOTOS, BATCH = 5, 4  # compared, from the narrowest to the widest; in batches of another size each
SCORE, PIXELS = 1e-3, 0.5  # the largest differences
LOWEST = 0.05  # of a photo's best score


def export(cfg: Config) -> tuple[Path, dict]:
    """Write ``cfg.checkpoint`` to ``onnx/`` of its run, whole or not at all; the folder, and its preprocessor.json.

    Raises UserError where torch cannot write the model, and where onnxruntime then finds other things than it did.
    """
    index = open_split(cfg, "val2017")
    detector = load_checkpoint(cfg, index.classes, cfg.checkpoint)
    shapes = np.argsort(index.widths / index.heights, kind="stable")
    few = index.take(np.unique(shapes[np.linspace(0, len(shapes) - 1, PHOTOS).astype(int)]))
    batches = [b for b in eval_loader(few, detector.preprocess, BATCH, 0) if b["pixel_values"] is not None]
    if not batches:
        raise UserError("No validation photo can be read, so that the export could not be compared: run notebook 01.")
    inputs = detector.preprocess.to_device(batches[0])
    del inputs["labels"]
    about = {"run": cfg.run_name, "checkpoint": portable(cfg.checkpoint), **describe(detector, inputs)}

    def fill(folder: Path) -> None:
        write_graph(detector.model, inputs, folder / "model.onnx")
        about["compared"] = compare(detector, OnnxModel(folder / "model.onnx"), batches)
        write_json(folder / "preprocessor.json", about)
        write_atomic(folder / "README.md", _guide(about))

    return write_folder(cfg.run_dir / "onnx", fill), about


@torch.inference_mode()
def describe(detector: Detector, inputs: dict[str, torch.Tensor]) -> dict:
    """What one must know to use the graph without this project; ``inputs`` as for ``write_graph``."""
    model, preprocess = detector.model.eval(), detector.preprocess
    _, queries, columns = model(**inputs).logits.shape
    side = ["height", "width"] if preprocess.keep_aspect else [preprocess.image_size] * 2
    shapes = {"pixel_values": ["batch", 3, *side], "pixel_mask": ["batch", *side]}
    types = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in inputs.items()}
    return {
        "model": type(model).__name__,
        "opset": OPSET,
        "inputs": {name: {"dtype": types[name], "shape": shapes[name]} for name in inputs},
        "outputs": {
            "logits": {"dtype": "float32", "shape": ["batch", queries, columns]},
            "pred_boxes": {"dtype": "float32", "shape": ["batch", queries, 4]},
        },
        "channels": "RGB",
        "resize": {
            "rule": "longest side" if preprocess.keep_aspect else "square",
            "size": preprocess.image_size,
            "interpolation": preprocess.interpolation.value,
            "antialias": preprocess.antialias,
        },
        "scale": preprocess.scale,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "scores": convention(detector.processor, queries, columns),
        "boxes": "cxcywh, fractions of the photo without padding",
        "classes": [str(name) for _, name in sorted(model.config.id2label.items())],
    }


def convention(processor, queries: int, columns: int) -> dict:
    """How the processor turns logits into scores, and how many of a photo it keeps: it does not say, some noise does.

    ``sigmoid``: each pair of a query and a class has a score of its own; ``softmax``: a query has the one of its best
    class, and the last column is no object. Raises UserError for another convention.
    """
    logits = torch.randn(1, queries, columns, generator=torch.Generator().manual_seed(0))
    output = SimpleNamespace(logits=logits, pred_boxes=torch.full((1, queries, 4), 0.5))
    (found,) = processor.post_process_object_detection(output, threshold=0.0)
    theirs = found["scores"].sort(descending=True).values
    ours = {"sigmoid": logits.sigmoid().flatten(), "softmax": logits.softmax(-1)[0, :, : columns - 1 or 1].amax(-1)}
    for function, scores in ours.items():
        best = scores.sort(descending=True).values[: len(theirs)]
        if best.shape == theirs.shape and torch.allclose(best, theirs):
            return {"function": function, "detections": len(theirs)}
    raise UserError("The checkpoint's processor turns logits into scores in a way that this project does not know.")


def compare(detector: Detector, exported: OnnxModel, batches: list[dict]) -> dict:
    """How far the detections of both are apart on collated photos. Raises UserError where that is too far."""
    classes = range(detector.model.config.num_labels)
    ours, theirs = (predict(each, batches, classes)[0] for each in (detector, replace(detector, model=exported)))
    count, score, pixels = differences(ours, theirs)
    photos = sum(len(batch["image_ids"]) for batch in batches)
    if not count:
        raise UserError(f"The checkpoint finds nothing on {photos} photos, so that the export could not be compared.")
    if not (score <= SCORE and pixels <= PIXELS):  # also what is no number
        raise UserError(
            f"In onnxruntime the model finds other things than the checkpoint: on {photos} photos scores differ by up "
            f"to {score:.2g} and boxes by up to {pixels:.2g} pixels ({SCORE} and {PIXELS} are allowed); nothing was "
            "written."
        )
    about = {"photos": photos, "detections": count, "largest_score": score, "largest_pixels": pixels}
    return {**about, "onnxruntime": onnxruntime.__version__}


def differences(ours: Detections, theirs: Detections) -> tuple[int, float, float]:
    """How many of our detections were compared, and the largest difference of a score and of a box's edge in pixels.

    Each one, of either side, is held against the nearest of its photo and class on the other, or against none: then its
    whole score is the difference. Those under ``LOWEST`` of a photo's best score, and those no better than its lowest,
    are only held against: ties decide which queries a detector of two stages takes, and which detections are kept.
    """
    count, largest = 0, np.zeros(2)
    for photo in np.union1d(ours.image_id, theirs.image_id):
        one, other = (found.rows(found.image_id == photo).table() for found in (ours, theirs))
        best, lowest = one[:, 5].max(initial=0.0), one[:, 5].min(initial=1.0)
        floor = min(best, max(LOWEST * best, lowest + SCORE / 100))
        count += int((one[:, 5] >= floor).sum())
        for a, b in ((one[one[:, 5] >= floor], other), (other[other[:, 5] >= floor], one)):
            scores = np.abs(a[:, None, 5] - b[None, :, 5])
            edges = np.abs(xywh_to_xyxy(a[:, 1:5])[:, None] - xywh_to_xyxy(b[:, 1:5])[None]).max(axis=2, initial=0.0)
            scores[a[:, None, 6] != b[None, :, 6]] = np.inf
            apart = np.stack([np.column_stack([scores, a[:, 5]]), np.column_stack([edges, np.zeros(len(a))])])
            nearest = (apart / np.array([SCORE, PIXELS])[:, None, None]).max(axis=0).argmin(axis=1)
            largest = np.maximum(largest, apart[:, np.arange(len(a)), nearest].max(axis=1, initial=0.0))
    return count, *map(float, largest)


def _guide(about: dict) -> str:
    """The folder's README.md: prose and an example that a test runs; nothing in it comes from the data."""
    how = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "keep_trailing_newline": True}
    templates = jinja2.Environment(loader=jinja2.PackageLoader("helpers.export"), **how)
    return templates.get_template("README.md").render(about)


def main(argv: Sequence[str] | None = None) -> int:
    what = "Write a run's best checkpoint (or checkpoint=...) as an ONNX model."
    folder, about = export(cli.config_of("helpers.export", what, argv))
    done, size = about["compared"], (folder / "model.onnx").stat().st_size / 1e6
    sys.stdout.write(
        f"{portable(folder)}: model.onnx ({size:.1f} MB) and how to use it. On {done['photos']} photos "
        f"{done['detections']} detections are the checkpoint's: scores within {done['largest_score']:.1g}, boxes "
        f"within {done['largest_pixels']:.1g} pixels.\n"
    )
    return 0
