"""The checks of ``gpu_check.py`` that measure: each yields rows of (name, holds, figure, bound)."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import peer
import torch
from gpu_lab import CLASSES, Lab, Row, held_batches, made_up_batch, now, seconds_each
from torch.autograd import DeviceType

from helpers.devices import peak_megabytes, resolve_precision
from helpers.engine import Run, train_loader, train_step
from helpers.train.faults import NO_MEMORY
from helpers.train.profiling import profile_steps
from helpers.train.training import build

# the loss', the loop's, and two in transformers 5.23's masks, which ask whether anything is padded; the scaler's
WAITS = {"fp32": 4, "bf16": 4, "fp16": 8}


def steps(lab: Lab) -> Iterator[Row]:
    """A training step in each precision, on batches from memory and from the loader; the loader alone."""
    rates = {}
    for precision in lab.precisions if lab.gpu else ["fp32"]:
        run = build(lab.config(f"steps_{precision}", precision=precision))
        gc.collect()  # of the run before
        if lab.gpu:
            torch.cuda.reset_peak_memory_stats()
        memory, photos = from_memory(lab, run), run.cfg.batch_size
        loader = from_loader(lab, run)
        rates[precision] = photos / memory["seconds"]
        numbers = {**memory, "from_memory_photos_per_s": rates[precision], "from_loader_photos_per_s": loader}
        numbers["peak_MB"] = peak_megabytes()
        figure = f"{memory['seconds'] * 1e3:.0f} ms, {rates[precision]:.1f} photos/s, peak {numbers['peak_MB']:.0f} MB"
        figure += f", GPU busy {memory['busy']:.0%}, {memory['waits']} waits" if lab.gpu else ""
        yield Row(
            f"a step of {photos} photos at {run.cfg.image_size} px in {precision}",
            not lab.gpu or memory["waits"] <= WAITS[precision],
            figure,
            f"{WAITS[precision]} waits for the device at most" if lab.gpu else "measured",
            numbers,
        )
        yield Row(
            f"the same from the loader, {lab.workers} workers",
            loader >= 0.8 * rates[precision] or not lab.gpu,
            f"{loader:.1f} photos/s",
            "80 % of that from memory" if lab.gpu else "measured",
            {"photos_per_s": loader},
        )
    yield from loader_alone(lab, run, max(rates.values()))


def from_memory(lab: Lab, run: Run) -> dict:
    batches, count, first = itertools.cycle(held_batches(run, 4)), *lab.by_size((28, 8), (3, 1), (3, 1))
    seconds = seconds_each((train_step(run, [next(batches)]) for _ in range(count)), first)
    if not lab.gpu:
        return {"seconds": seconds}
    return {"seconds": seconds, "waits": waits(run, next(batches)), "busy": kernels(run, batches) / seconds}


def waits(run: Run, batch: dict) -> int:
    """How often a step's host waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train_step(run, [batch])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def kernels(run: Run, batches: Iterator[dict], count: int = 3) -> float:
    """Seconds a step that the device's kernels and copies take, one after the other."""
    with torch.profiler.profile() as profiler:
        for _ in range(count):
            train_step(run, [next(batches)])
    events = [e for e in profiler.events() if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    return sum(event.time_range.elapsed_us() for event in events) / 1e6 / count


def from_loader(lab: Lab, run: Run) -> float:
    """Photos per second within an epoch, once the workers have begun."""
    total, first = lab.by_size((48, 16), (4, 1), (3, 1))
    loader = itertools.islice(train_loader(replace(run, cfg=run.cfg.with_(num_workers=lab.workers)), 0), total)
    return run.cfg.batch_size / seconds_each((train_step(run, [batch]) for batch in loader), first)


def loader_alone(lab: Lab, run: Run, wanted: float) -> Iterator[Row]:
    """Photos per second that 1, 2, 4 and 8 workers prepare, without a step."""
    cores, rates = len(os.sched_getaffinity(0)), {}
    for workers in [n for n in (1, 2, 4, 8) if n <= max(1, cores)] if not lab.quick else [0]:
        loader = train_loader(replace(run, cfg=run.cfg.with_(num_workers=workers)), 0)
        marks = [now() for _ in loader]
        rates[workers] = run.cfg.batch_size * (len(marks) - 1) / (marks[-1] - marks[0])
    figure = ", ".join(f"{workers}: {rate:.0f}/s" for workers, rate in rates.items())
    yield Row(
        f"the loader alone, workers on {cores} cores",
        max(rates.values()) >= wanted,
        figure,
        f"the fastest step's {wanted:.0f} photos/s",
        {str(k): v for k, v in rates.items()},
    )


def batch_sizes(lab: Lab) -> Iterator[Row]:
    """Photos per second and peak memory of batches from 8 to 64 at three image sizes, in the precision of ``auto``."""
    precision = resolve_precision("auto")[0]
    run = build(lab.config("batch_sizes", precision=precision))
    for size in lab.by_size((512, 640, 800), (256,), (64,)):
        numbers, words = {}, []
        for photos in lab.by_size((8, 16, 32, 64), (1, 2), (1, 2)):
            if lab.gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                batch = [made_up_batch(size, photos)]
                count, first = lab.by_size((6, 3), (2, 1), (2, 1))
                rate = photos / seconds_each((train_step(run, batch) for _ in range(count)), first)
            except RuntimeError as error:
                if not re.search(NO_MEMORY, str(error)):
                    raise
                run.optimizer.zero_grad(set_to_none=True)
                words.append(f"{photos}: does not fit")
                break
            numbers[f"{photos}"] = rate
            numbers[f"{photos}_peak_MB"] = peak_megabytes()
            words.append(f"{photos}: {rate:.1f}/s, {peak_megabytes() / 1e3:.1f} GB")
        yield Row(
            f"batches at {size} px in {precision}", len(numbers) > 0, "; ".join(words), "the smallest fits", numbers
        )


def profile(lab: Lab) -> Iterator[Row]:
    """Whether the profiler's table tells of the step that is taken without it."""
    cfg = lab.config("profile", precision=resolve_precision("auto")[0], num_workers=lab.workers)
    run = build(cfg)
    batches, count = itertools.cycle(held_batches(run, 4)), lab.by_size(12, 3, 3)
    for batch in train_loader(replace(run, cfg=cfg.with_(num_workers=0)), 0) if lab.gpu else [next(batches)]:
        train_step(run, [batch])  # every size once: cuDNN's choice is kept
    plain = seconds_each((train_step(run, [next(batches)]) for _ in range(count)), 1) * 1e3
    del run
    told = profile_steps(cfg)
    ranges = told.breakdown.set_index("range")["ms"]
    recorded = float(ranges[["forward", "loss and matcher", "backward", "optimizer"]].sum())
    operators = told.operators["operator"].tolist()
    share, bound = recorded / plain - 1, lab.by_size(0.15, 0.5, 5.0)  # a few steps on a busy CPU tell little
    yield Row(
        "the profiled step against the unprofiled one",
        abs(share) <= bound and not any("Synchronize" in name for name in operators),
        f"{recorded:.0f} against {plain:.0f} ms ({share:+.0%}); first operator {operators[0]}",
        f"within {bound:.0%}, no wait among the operators",
        {"recorded_ms": recorded, "plain_ms": plain},
    )


def against_the_peer(lab: Lab) -> Iterator[Row]:
    """From the files on, ours against Hugging Face's Trainer with its own recipe (benchmarks/peer.py), in turns."""
    precision = resolve_precision("auto")[0]
    run = build(lab.config("peer", precision=precision))
    size, photos = run.cfg.image_size, run.cfg.batch_size
    folder, processor = lab.photos, peer.square_processor(run.cfg.model, size)
    files = folder / "annotations" / "instances_train2017.json", folder / "images" / "train2017"
    data, model = peer.Photos(*files, processor, list(CLASSES)), peer.detector(run.cfg.model, list(CLASSES))
    total, first = lab.by_size((48, 16), (4, 1), (3, 1))
    how = {"bf16": precision == "bf16", "fp16": precision == "fp16", "workers": lab.workers}
    ours, theirs = [], []
    for _ in range(lab.by_size(2, 1, 1)):
        ours.append(from_loader(lab, run))
        with contextlib.redirect_stdout(io.StringIO()):  # the Trainer prints
            seconds = peer.train(model, data, peer.collate, photos, total, **how)
        theirs.append(photos / float(np.mean(seconds[first:])))
    mine, other = float(np.median(ours)), float(np.median(theirs))
    yield Row(
        f"against the Trainer's recipe in {precision}, from the files on",
        mine >= other or not lab.gpu,
        f"{mine:.1f} against {other:.1f} photos/s, {mine / other:.2f} times as fast",
        "at least as fast" if lab.gpu else "measured",
        {"ours": mine, "theirs": other},
    )


CHECKS = (steps, batch_sizes, profile, against_the_peer)
