"""DETR's loss, ours against the library's: what each would start on a GPU and wait for, and what it costs here.

``python benchmarks/loss.py``: the loss alone, forward and backward, of six decoder layers with 100 queries on eight
photos. Launches and waits are those of an emulated GPU (tests/support/emulated_gpu.py): an operation that is
no view counts once, whatever number of kernels it takes; the backward pass is counted on the CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import header
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from helpers.families.loading import quiet
from helpers.train.losses import batched_loss

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from emulated_gpu import ASKS, EmulatedGpu

SIDES: dict[str, Callable] = {"the library": ForObjectDetectionLoss, "ours": batched_loss}
LAYERS, QUERIES, CLASSES, OBJECTS = 6, 100, 10, (7, 2, 12, 1, 4, 0, 20, 6)  # COCO has seven objects a photo


def photos(objects: tuple[int, ...]) -> list[dict]:
    return [
        {"class_labels": torch.randint(CLASSES, (n,)), "boxes": torch.rand(n, 4) * 0.4 + torch.tensor([0.3])}
        for n in objects
    ]


class Counted(TorchDispatchMode):
    """Names of the operations that are no views."""

    def __enter__(self):
        self.names = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(function.__name__.split(".")[0])
        return function(*args, **(kwargs or {}))


def counts(loss_function: Callable, logits: torch.Tensor, boxes: torch.Tensor, labels: list[dict], config) -> str:
    """A sentence with the operations and waits of a loss, forward and backward."""
    with EmulatedGpu() as gpu:
        far = gpu.tensor(logits, requires_grad=True), gpu.tensor(boxes, requires_grad=True)
        photos = [{name: gpu.tensor(value) for name, value in photo.items()} for photo in labels]
        loss_function(far[0][-1], photos, far[0].device, far[1][-1], config, *far)
    near = logits.clone().requires_grad_(), boxes.clone().requires_grad_()
    loss, *_ = loss_function(near[0][-1], labels, near[0].device, near[1][-1], config, *near)
    with Counted() as backward:
        loss.backward()
    asked = sum(name in ASKS for name in backward.names)
    return (
        f"{len(gpu.launches)} operations forward and {len(backward.names)} backward, {len(gpu.waits) + asked} waits "
        f"for the device"
    )


def alternately(what: str, sides: dict[str, Callable[[], None]], rounds: int, repeats: int) -> None:
    """Print the median milliseconds of each side's rounds of ``repeats`` calls, after a call that is not measured: on
    the wall, and of the processor, which other work on the machine moves less.
    """
    seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            call()
            marks = [(time.perf_counter(), time.process_time())]
            for _ in range(repeats):
                call()
                marks.append((time.perf_counter(), time.process_time()))
            seconds[name].append(np.median(np.diff(marks, axis=0), axis=0) * 1e3)
    for name, values in seconds.items():
        wall, processor = np.median(values, axis=0)
        single = ", ".join(f"{wall:.1f}/{processor:.1f}" for wall, processor in values)
        print(f"{what}, {name}: {wall:.1f} ms, of the processor {processor:.1f} ms (rounds: {single})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    quiet()
    print(header("torch", "transformers"), f"{torch.get_num_threads()} threads", flush=True)
    torch.manual_seed(0)
    config = DetrConfig(num_labels=CLASSES, auxiliary_loss=True, decoder_layers=LAYERS)
    shape, labels = (LAYERS, len(OBJECTS), QUERIES), photos(OBJECTS)
    logits, boxes = torch.randn(*shape, CLASSES + 1) * 3, torch.rand(*shape, 4)

    def alone(loss_function: Callable) -> None:
        near = logits.clone().requires_grad_(), boxes.clone().requires_grad_()
        loss_function(near[0][-1], labels, near[0].device, near[1][-1], config, *near)[0].backward()

    for name, loss_function in SIDES.items():
        print(f"{name}: {counts(loss_function, logits, boxes, labels, config)}")
    alternately("the loss alone", {n: lambda f=f: alone(f) for n, f in SIDES.items()}, arguments.rounds, 20)


if __name__ == "__main__":
    main()
