"""What a detector costs: parameters, arithmetic, time per photo, memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.collator import Preprocess
from helpers.devices import peak_megabytes
from helpers.model import Detector

WARM_UP, REPEATS, SECONDS = (
    2,
    30,
    8.0,
)  # calls before timing, timed calls at most, and when to stop (three calls at least)


@torch.inference_mode()
def cost_table(detector: Detector, batch: dict, autocast: Callable, device: torch.device | str = "cpu") -> pd.DataFrame:
    """A row per quantity. ``batch``: B collated photos of ``eval_loader``; its first photo serves for batch 1.

    Time is that of normalising, the forward pass and post-processing, without reading and decoding photos.
    """
    model, size = detector.model.to(device).eval(), len(batch["image_ids"])
    parameters = list(model.parameters())
    rows = [
        ("parameters", sum(p.numel() for p in parameters) / 1e6, "million"),
        ("of them trained", sum(p.numel() for p in parameters if p.requires_grad) / 1e6, "million"),
        ("arithmetic, 1 photo", flops(detector, first(batch, 1), device) / 1e9, "GFLOP"),
    ]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for count in sorted({1, size}):
        milliseconds = latency(detector, first(batch, count), autocast, device) * 1e3 / count
        rows += [
            (f"time per photo, batch {count}, median", float(np.median(milliseconds)), "ms"),
            (f"time per photo, batch {count}, 95th percentile", float(np.percentile(milliseconds, 95)), "ms"),
        ]
    rows.append(
        (f"peak memory of the {'GPU' if torch.cuda.is_available() else 'whole process'}", peak_megabytes(), "MB")
    )
    return pd.DataFrame(rows, columns=["quantity", "value", "unit"]).set_index("quantity")


def first(batch: dict, count: int) -> dict:
    """The first ``count`` photos of a collated batch, cut to what they need without padding."""
    names = ("pixel_values", "pixel_mask", "labels", "image_ids", "orig_sizes")
    part = {name: batch[name][:count] for name in names if name in batch}
    if "pixel_mask" in part:
        height, width = int(part["pixel_mask"].any(dim=2).sum(1).max()), int(part["pixel_mask"].any(dim=1).sum(1).max())
        part["pixel_mask"] = part["pixel_mask"][:, :height, :width]
        part["pixel_values"] = part["pixel_values"][..., :height, :width]
    return part


def flops(detector: Detector, batch: dict, device: torch.device | str = "cpu") -> int:
    """Floating-point operations of a forward pass: two for each multiply-add of a convolution or matrix product.

    Counted by ``torch.utils.flop_counter``; normalisation, activations and grid sampling are not in it.
    """
    inputs = _inputs(detector.preprocess, batch, device)
    with FlopCounterMode(display=False) as counter:
        detector.model(**inputs)
    return int(counter.get_total_flops())


def latency(detector: Detector, batch: dict, autocast: Callable, device: torch.device | str = "cpu") -> np.ndarray:
    """Seconds of each timed call, after a warm-up; the device is synchronised before the clock is read."""
    seconds: list[float] = []
    began = time.perf_counter()
    for call in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        with autocast():
            output = detector.model(**_inputs(detector.preprocess, batch, device))
        output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
        detector.processor.post_process_object_detection(
            output, threshold=0.0, target_sizes=batch["orig_sizes"].to(device)
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if call >= WARM_UP:
            seconds.append(time.perf_counter() - start)
        if len(seconds) >= 3 and time.perf_counter() - began > SECONDS:
            break
    return np.array(seconds)


def cost_sentence(table: pd.DataFrame) -> str:
    """What one photo costs, in words."""
    values = table["value"]
    single = values[next(name for name in values.index if "batch 1, median" in name)]
    batched = [name for name in values.index if "median" in name and "batch 1," not in name]
    text = (
        f"The detector has {values['parameters']:.1f} million parameters; a photo takes "
        f"{values['arithmetic, 1 photo']:.1f} "
        f"GFLOP and {single:.0f} ms ({1000 / single:.1f} photos a second)"
    )
    if batched:
        gain = single / values[batched[0]]
        size = batched[0].split("batch ")[1].split(",")[0]
        text += f", and {values[batched[0]]:.0f} ms in batches of {size} ({_times(gain)})"
    return text + "."


def _times(gain: float) -> str:
    return (
        "about the same"
        if 0.9 < gain < 1.1
        else f"{gain:.1f} times as fast"
        if gain > 1
        else f"{1 / gain:.1f} times as slow"
    )


def _inputs(preprocess: Preprocess, batch: dict, device: torch.device | str) -> dict:
    inputs = preprocess.to_device(batch, device)
    inputs.pop("labels")
    return inputs
