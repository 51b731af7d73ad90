"""What a detector costs: parameters, arithmetic, time per photo, memory."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from helpers.collator import Preprocess
from helpers.devices import peak_megabytes
from helpers.evaluate.sentences import escaped
from helpers.model import Detector

# AP on COCO val2017, 80 classes, at the authors' own image size; sizes and sources in docs/families.md
PUBLISHED = {
    "facebook/detr-resnet-50": 42.0,
    "microsoft/conditional-detr-resnet-50": 41.0,
    "IDEA-Research/dab-detr-resnet-50": 42.2,
    "SenseTime/deformable-detr": 44.5,
    "PekingU/rtdetr_r50vd": 53.1,
    "PekingU/rtdetr_v2_r18vd": 48.1,
    "ustc-community/dfine-nano-coco": 42.8,
    "ustc-community/dfine-small-coco": 48.5,
    "ustc-community/dfine-large-coco": 54.0,
    "harshaljanjani/DEIMv2_HGNetv2_N_COCO_Transformers": 43.0,
    "Roboflow/rf-detr-nano": 48.4,
    "Roboflow/rf-detr-small": 53.0,
    "Roboflow/rf-detr-medium": 54.7,
    "AnnaZhang/lwdetr_small_60e_coco": 48.0,
    "hustvl/yolos-tiny": 28.7,
    "hustvl/yolos-small": 36.1,
}
SINGLE = "time per photo, batch 1, median"
WARM_UP, REPEATS, SECONDS = 2, 30, 8.0  # calls before timing, timed ones at most, when to stop (three at least)


def cost_table(
    detector: Detector, batches: Iterable[dict], autocast: Callable, device: torch.device | str = "cpu"
) -> pd.DataFrame:
    """A row per quantity. ``batches``: collated photos of ``eval_loader``, of which one batch holds a single photo.

    Time is that of normalising, the forward pass and post-processing, without reading and decoding photos.
    """
    # moved outside of inference mode: there, a copy's weights could not be differentiated any more
    model, batches = detector.model.to(device).eval(), {len(batch["image_ids"]): batch for batch in batches}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = [
        ("parameters", sum(p.numel() for p in model.parameters()) / 1e6, "million"),
        ("of them trained", trained / 1e6, "million"),
        ("arithmetic, 1 photo", flops(detector, batches[1], device) / 1e9, "GFLOP"),
    ]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for count, batch in batches.items():
        milliseconds = latency(detector, batch, autocast, device) * 1e3 / count
        for name, percent in (("median", 50), ("95th percentile", 95)):
            rows.append((f"time per photo, batch {count}, {name}", float(np.percentile(milliseconds, percent)), "ms"))
    where = "GPU" if torch.cuda.is_available() else "whole process"
    rows.append((f"peak memory of the {where}", peak_megabytes(), "MB"))
    return pd.DataFrame(rows, columns=["quantity", "value", "unit"]).set_index("quantity")


def flops(detector: Detector, batch: dict, device: torch.device | str) -> int:
    """Floating-point operations of a forward pass: two for each multiply-add of a convolution or matrix product.

    Counted by ``torch.utils.flop_counter``; normalisation, activations and grid sampling are not in it.
    """
    trained = [parameter for parameter in detector.model.parameters() if parameter.requires_grad]
    # a graph's memory would count as the pass's; under no_grad the counter stumbles over weights that want a gradient
    detector.model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        detector.model(**_inputs(detector.preprocess, batch, device))
    for parameter in trained:
        parameter.requires_grad_(True)
    return int(counter.get_total_flops())


@torch.inference_mode()
def latency(detector: Detector, batch: dict, autocast: Callable, device: torch.device | str) -> np.ndarray:
    """Seconds of each timed call, after a warm-up; the device is synchronised before the clock is read."""
    seconds: list[float] = []
    began = time.perf_counter()
    for call in range(WARM_UP + REPEATS):
        start = time.perf_counter()
        with autocast():
            output = detector.model(**_inputs(detector.preprocess, batch, device))
        output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
        detector.processor.post_process_object_detection(output, threshold=0.0, target_sizes=batch["orig_sizes"])
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
    single, *batched = (name for name in values.index if "median" in name)
    text = f"The detector has {values['parameters']:.1f} million parameters; a photo takes "
    text += f"{values['arithmetic, 1 photo']:.1f} GFLOP and {values[single]:.0f} ms "
    text += f"({1000 / values[single]:.1f} photos a second)"
    for name in batched:
        gain = values[single] / values[name]
        times = f"{gain:.1f} times as fast" if gain > 1 else f"{1 / gain:.1f} times as slow"
        times = "about the same" if 0.9 < gain < 1.1 else times
        text += f", and {values[name]:.0f} ms in batches of {name.split('batch ')[1].split(',')[0]} ({times})"
    return text + "."


def price_table(output_dir: Path, runs: Iterable[str]) -> pd.DataFrame:
    """mAP, parameters (million) and milliseconds a photo of the ``runs`` whose metrics.json tells them, best first.

    ``best``: no other run is as good for less time. ``published``, where it is known: AP on COCO of the checkpoint that
    a run began with.
    """
    rows = []
    for run in sorted(runs):
        file = output_dir / run / "metrics.json"
        summary = orjson.loads(file.read_bytes()) if file.is_file() else {}
        if cost := summary.get("cost"):
            config = output_dir / run / "config.json"
            began_with = orjson.loads(config.read_bytes())["model"] if config.is_file() else None
            row = {"run": run, "mAP": summary["stats"]["mAP"], "parameters": cost["parameters"], "ms": cost[SINGLE]}
            rows.append({**row, "published": PUBLISHED.get(began_with, np.nan) / 100})
    table = pd.DataFrame(rows, columns=["run", "mAP", "parameters", "ms", "published"]).set_index("run")
    table = table.sort_values(["mAP", "ms"], ascending=[False, True])
    table = table.assign(best=table["ms"] < table["ms"].cummin().shift(fill_value=np.inf))
    return table if table["published"].notna().any() else table.drop(columns="published")


def price_sentence(table: pd.DataFrame) -> str:
    """Which runs are worth their time; ``table`` of :func:`price_table`."""
    if len(table) < 2:
        return "Other runs that 04 has evaluated on these photos will stand beside this one here."
    names = [f"**{escaped(run)}** (mAP {row.mAP:.3f}, {row.ms:.0f} ms)" for run, row in table[table["best"]].iterrows()]
    return (
        f"Of {len(table)} runs, {'this is' if len(names) == 1 else 'these are'} worth the time, none is as good "
        f"and faster: {', '.join(names)}. Each was timed when its 04 ran: only times of one machine can be compared."
    )


def _inputs(preprocess: Preprocess, batch: dict, device: torch.device | str) -> dict:
    inputs = preprocess.to_device(batch, device)
    inputs.pop("labels")
    return inputs
