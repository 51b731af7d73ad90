"""Where a training step's time goes: torch.profiler on a short schedule, reduced to a table that a person can read."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import profile, schedule

from helpers.config import Config
from helpers.devices import named_range
from helpers.engine import train_loader, train_step
from helpers.files import save_figure, write_atomic, write_json
from helpers.train.faults import explained
from helpers.train.figures import step_breakdown
from helpers.train.training import build

ACTIVE = 2  # steps recorded: to add up the events of one takes several times as long as the step itself
ADVICE = {  # for each named range
    "data": "more workers (num_workers) or smaller photos (image_size)",
    "forward": "half precision, a smaller image_size or more frozen stages",
    "loss and matcher": "fewer queries or decoder layers",
    "backward": "half precision or more frozen stages (freeze_stages)",
    "optimizer": "a larger batch, or grad_accumulation,",
}


@dataclass(frozen=True)
class Profile:
    """Where the recorded steps' time went."""

    breakdown: pd.DataFrame  # range, ms per step, share
    operators: pd.DataFrame  # the ten that take most
    photos_per_s: float  # while recording
    gpu_ms: float | None = None  # per step that a GPU's kernels and copies take, one after the other

    def sentence(self) -> str:
        """What the bottleneck is, and what could be done about it."""
        step_ms = self.breakdown["ms"].sum()
        if self.gpu_ms is not None and self.gpu_ms < step_ms / 2:
            return (
                f"The GPU computes for {self.gpu_ms:.0f} of {step_ms:.0f} ms a step ({self.gpu_ms / step_ms:.0%}) and "
                "waits for the processor to start its operations, of which a larger batch_size has no more: it would "
                "cost little time."
            )
        top = self.breakdown.loc[self.breakdown["ms"].idxmax()]
        advice = f"{ADVICE[top['range']]} would help" if top["range"] in ADVICE else "look at the trace"
        return (
            f"The bottleneck is {top['range']}: {top['ms']:.0f} of {step_ms:.0f} ms a step "
            f"({top['share']:.0%}); {advice}."
        )


def profile_steps(cfg: Config, paste: Callable | None = None) -> Profile:
    """Run a few training steps of a throw-away model under the profiler; write traces, tables and figure.

    Nothing of the run itself is touched. Files go to ``output_dir/profiler/<run_name>/``: trace.json.gz (for
    https://ui.perfetto.dev or chrome://tracing), breakdown.csv and .png, operators.csv, summary.json.
    """
    run = build(cfg, paste)
    folder = cfg.output_dir / "profiler" / cfg.run_name
    folder.mkdir(parents=True, exist_ok=True)
    batches = (batch for epoch in count() for batch in train_loader(run, epoch) if batch["pixel_values"] is not None)
    photos, seconds = 0, 0.0
    with explained(cfg), profile(schedule=schedule(wait=1, warmup=1, active=ACTIVE)) as profiler:
        for step in range(2 + ACTIVE):
            began = time.perf_counter()
            with named_range("data"):
                group = [next(batches) for _ in range(cfg.grad_accumulation)]
            train_step(run, group)
            if step >= 2:
                seconds += time.perf_counter() - began
                photos += sum(len(batch["image_ids"]) for batch in group)
            profiler.step()
    profiler.export_chrome_trace(str(folder / "trace.json.gz"))
    averages = profiler.key_averages()
    breakdown, operators = _breakdown(averages, seconds / ACTIVE * 1e3), _operators(averages)
    gpu_ms = float(operators["self_ms"].sum()) if torch.cuda.is_available() else None
    result = Profile(breakdown, operators.head(10), photos / seconds, gpu_ms)
    write_atomic(folder / "breakdown.csv", result.breakdown.to_csv(index=False))
    write_atomic(folder / "operators.csv", result.operators.to_csv(index=False))
    save_figure(step_breakdown(result.breakdown), folder / "breakdown.png")
    write_json(folder / "summary.json", {"photos_per_s": result.photos_per_s, "sentence": result.sentence()})
    return result


def _breakdown(averages, step_ms: float) -> pd.DataFrame:
    """Milliseconds per step of each named range; the loss, computed inside of the forward pass, is taken out of it."""
    ms = dict.fromkeys(ADVICE, 0.0)
    for event in averages:
        if event.key in ms and event.device_type == DeviceType.CPU:  # a GPU has its own row of the same name
            ms[event.key] += event.cpu_time_total / 1e3 / ACTIVE
    ms["forward"] -= ms["loss and matcher"]
    ms["other"] = max(0.0, step_ms - sum(ms.values()))
    table = pd.DataFrame({"range": ms.keys(), "ms": ms.values()})
    return table.assign(share=table["ms"] / table["ms"].sum())


def _operators(averages) -> pd.DataFrame:
    """The operators that take time, most first: where a GPU computes, the time of the kernels that each started.

    There the profiler lists kernels, copies and ranges once more beside the operators, and the processor's waits for
    them: none of these is a row, so each kernel counts once.
    """
    on_gpu = any(event.device_type != DeviceType.CPU for event in averages)
    rows = []
    for event in averages:
        if event.device_type == DeviceType.CPU and event.key not in ADVICE and not event.key.startswith("ProfilerStep"):
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            rows.append((event.key, microseconds / 1e3 / ACTIVE, event.count // ACTIVE))
    table = pd.DataFrame(rows, columns=["operator", "self_ms", "calls"]).query("self_ms > 0")
    return table.sort_values("self_ms", ascending=False).reset_index(drop=True)
