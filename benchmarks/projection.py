"""What the whole of COCO would take on A100s: ``python benchmarks/projection.py``. A projection: no GPU was measured.

Counted here: the floating-point operations of a training step, forward and backward, of DETR-R50 with stem and first
stage frozen. Measured here: how long one core prepares a photo. Assumed: the constants below. The page is
``docs/projection.md``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from growth import detr, step
from machine import header
from torch.utils.flop_counter import FlopCounterMode
from transformers import DetrImageProcessor

from helpers.augment import augmentation
from helpers.cli import command
from helpers.dataset import CocoDetection
from helpers.download.coco import read_index
from helpers.families.processors import read_processor
from helpers.scenes.scenes import SCENE_CLASSES, write_scenes

PHOTOS, JPEG_BYTES = 118_287, 19.3e9  # train2017
EPOCHS, BATCH = 25, 8  # preset coco_top10, per GPU
PEAK, USED = 312e12, (0.03, 0.10)  # A100, dense bf16; the share of it that such a model gets, from poor to good
LINK = 600e9  # bytes a second between the A100s of one machine (NVLink)
PRICE = (1.5, 4.0)  # dollars for one A100 for an hour, from cheap to dear


def main(argv=None) -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    torch.set_num_threads(1)
    print(header("torch", "transformers", "albumentations"), end="\n\n")
    print(
        "| | " + " | ".join(f"{size} px, {gpus} GPU{'s' * (gpus > 1)}" for size in (512, 800) for gpus in (1, 8)) + " |"
    )
    print("| --- |" + " ---: |" * 4)
    columns = [column for size in (512, 800) for column in project(size, (1, 8))]
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")
    return 0


def project(size: int, counts: tuple[int, ...]) -> list[dict[str, str]]:
    """A column for each count of GPUs: quantity -> value. The longest side is ``size``, the other three quarters of
    it.
    """
    model = detr()
    flop, parameters, milliseconds = (
        count_flops(model, size),
        sum(p.numel() for p in model.parameters()),
        preparation(size),
    )
    return [column(gpus, flop, parameters, milliseconds) for gpus in counts]


def column(gpus: int, flop: int, parameters: int, milliseconds: float) -> dict[str, str]:
    rates = [gpus * PEAK * used / flop for used in USED]  # photos a second, poor and good
    hours = [PHOTOS * EPOCHS / rate / 3600 for rate in rates]
    exchanged = 2 * (gpus - 1) / gpus * parameters * 4  # a ring all-reduce of fp32 gradients, per GPU and step
    return {
        "training step, GFLOP a photo (counted)": f"{flop / 1e9:.0f}",
        "photos a second": span(rates, ".0f"),
        f"hours for {EPOCHS} epochs of {PHOTOS:,} photos": span(hours, ".1f"),
        "price, dollars": span([h * gpus * p for h, p in zip(sorted(hours), PRICE)], ".0f"),
        "milliseconds to prepare a photo, one core (measured)": f"{milliseconds:.1f}",
        "cores that keep up with it": span([rate * milliseconds / 1e3 for rate in rates], ".0f"),
        "MB of JPEG a second": span([rate * JPEG_BYTES / PHOTOS / 1e6 for rate in rates], ".0f"),
        "weights, gradients, AdamW's two moments, GB": f"{parameters * 16 / 1e9:.2f}",
        "gradients exchanged a step, ms": f"{exchanged / LINK * 1e3:.2f}",
        f"a step of {BATCH} photos a GPU, ms": span([BATCH * gpus / rate * 1e3 for rate in rates], ".0f"),
    }


def count_flops(model: torch.nn.Module, size: int) -> int:
    """Operations of forward, loss and backward, for one photo: two for each multiply-add of a convolution or matrix
    product.
    """
    work = step(model, size, 3 * size // 4)
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def preparation(size: int, photos: int = 24) -> float:
    """Milliseconds on one core to decode, resize, augment (``full``) and collate a JPEG of 640 pixels: the median of
    five passes.
    """
    preprocess = read_processor(DetrImageProcessor(size={"max_height": size, "max_width": size}))
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), SCENE_CLASSES, photos, 1, seed=0, size=640)
        index = read_index(
            Path(folder) / "annotations" / "instances_train2017.json", Path(folder) / "images" / "train2017"
        )
        data, seconds = CocoDetection(index, preprocess.resize, augmentation("full")), []
        for data.epoch in range(6):
            began = time.perf_counter()
            preprocess.collate([data[i] for i in range(photos)])
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:])) / photos * 1e3


def span(values: list[float], digits: str) -> str:
    low, high = format(min(values), digits), format(max(values), digits)
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    command(main)
