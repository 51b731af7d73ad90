"""How the cost grows: ``python benchmarks/growth.py [--out docs/growth.png]``.

One training step of DETR-R50 (random weights, one photo, fp32) and of the demo model against image size, DETR's against
the number of queries, and the twelve numbers of an evaluation against the number of photos. A row per point, the
exponent of the best power law through the last three points of each curve, and a figure.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from evaluation import made_up_detections, made_up_truth
from machine import header
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from transformers import AutoModelForObjectDetection, DetrConfig, DetrForObjectDetection

from helpers.cli import command
from helpers.families.loading import quiet
from helpers.files import ROOT
from helpers.metrics import coco_metrics
from helpers.model import freeze, train_mode
from helpers.pictures.colours import BLUE, ORANGE
from helpers.train.fast_path import fold_norms

SIZES, QUERIES, PHOTOS = (128, 256, 384, 512, 768), (25, 100, 400, 1600), (625, 1250, 2500, 5000)
ROUNDS = 3


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "growth.png")
    options = parser.parse_args(argv)
    quiet()
    torch.set_num_threads(1)  # how it grows is asked, not how fast it is: other processes disturb one thread least
    print(header("torch", "transformers", "timm", "hotcoco") + ", one thread", end="\n\n")
    curves = {
        ("training step, 1 photo", "longest side, pixels"): {
            "DETR-R50": {size: median(step(detr(), size, size)) for size in SIZES},
            "demo model": {size: median(step(demo(), size, size)) for size in SIZES},
        },
        ("training step, 1 photo of 256 pixels", "queries"): {
            "DETR-R50": {count: median(step(detr(num_queries=count), 256, 256)) for count in QUERIES}
        },
        ("evaluation, 100 detections a photo", "photos"): {
            "hotcoco": {count: median(metrics(count)) for count in PHOTOS}
        },
    }
    print("| cost | against | seconds | exponent |\n| --- | --- | --- | ---: |")
    for (cost, against), lines in curves.items():
        for name, points in lines.items():
            seconds = ", ".join(f"{x}: {y:.3g}" for x, y in points.items())
            print(f"| {cost}, {name} | {against} | {seconds} | {exponent(points):.2f} |")
    figure(curves).savefig(options.out, dpi=110)
    print(f"\nfigure: {options.out}")
    return 0


def detr(**changes) -> torch.nn.Module:
    torch.manual_seed(0)
    return DetrForObjectDetection(DetrConfig(id2label={k: f"class {k}" for k in range(10)}, **changes))


def demo() -> torch.nn.Module:
    return AutoModelForObjectDetection.from_pretrained(ROOT / "data" / "pretrained", dtype=torch.float32)


def step(model: torch.nn.Module, height: int, width: int) -> Callable[[], object]:
    """Forward, loss and backward on one photo of ``height`` x ``width`` pixels with seven objects, as a student
    trains it.
    """
    freeze(model, 2)
    fold_norms(model)
    train_mode(model)
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, height, width, generator=random)
    label = {"class_labels": torch.arange(7), "boxes": torch.rand(7, 4, generator=random) * 0.4 + 0.1}

    def once() -> None:
        model.zero_grad()
        model(pixel_values=pixels, labels=[label]).loss.backward()

    return once


def metrics(photos: int) -> Callable[[], object]:
    gt = made_up_truth(photos, 80, seed=0)
    detections = made_up_detections(gt, 100, noise=0.05, seed=1)
    return lambda: coco_metrics(gt, detections)


def median(work: Callable[[], object]) -> float:
    """Seconds, of ``ROUNDS`` after one to warm up."""
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))


def exponent(points: dict[int, float]) -> float:
    """The slope of a straight line through the last three points, both axes logarithmic."""
    x, y = (np.log(list(values)[-3:]) for values in (points, points.values()))
    return float(np.polyfit(x, y, 1)[0])


def figure(curves: dict) -> Figure:
    picture = Figure(figsize=(4 * len(curves), 3.6), layout="constrained")
    for axis, ((cost, against), lines) in zip(picture.subplots(1, len(curves)), curves.items()):
        for (name, points), colour, marker in zip(lines.items(), (BLUE, ORANGE), "os"):
            axis.loglog(
                list(points),
                list(points.values()),
                marker=marker,
                color=colour,
                label=f"{name}: exponent {exponent(points):.2f}",
            )
        ticks = list(next(iter(lines.values())))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set(title=cost, xlabel=against, ylabel="seconds")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return picture


if __name__ == "__main__":
    command(main)
