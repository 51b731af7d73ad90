"""Which device a run uses, and in which precision."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(wanted: str) -> tuple[str, str]:
    """``(fp32 | fp16 | bf16, sentence)``: what a config's ``precision`` becomes on this machine, and why (empty if as
    asked).

    ``auto`` is bf16 where the hardware computes in it, else fp16 on a GPU and fp32 on a CPU. fp16 needs a GPU.
    """
    gpu = torch.cuda.is_available()
    if wanted == "auto":
        best = "bf16" if (torch.cuda.is_bf16_supported() if gpu else _cpu_has_bf16()) else "fp16" if gpu else "fp32"
        return best, f"precision=auto: {best} on this {'GPU' if gpu else 'CPU'}."
    if wanted == "fp16" and not gpu:
        return "fp32", "precision=fp16 needs a GPU; this run computes in fp32."
    return wanted, ""


def autocast(wanted: str) -> Callable:
    """A context manager's factory that runs a forward pass in a config's ``precision``."""
    precision, _ = resolve_precision(wanted)
    if precision == "fp32":
        return contextlib.nullcontext
    return functools.partial(
        torch.autocast, pick_device().type, dtype={"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    )


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively; elsewhere bf16 is emulated and slower than fp32."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def environment() -> dict:
    """The machine and the versions that a figure belongs to; no user or host names."""
    packages = (
        "torch",
        "torchvision",
        "transformers",
        "timm",
        "accelerate",
        "albumentations",
        "pycocotools",
        "hotcoco",
        "numpy",
    )
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


@contextlib.contextmanager
def named_range(name: str):
    """A range that the profiler shows by name; while it records on a GPU, the range lasts until its kernels are
    done.
    """
    wait = torch.cuda.is_available() and torch.autograd._profiler_enabled()
    if wait:
        torch.cuda.synchronize()
    with torch.profiler.record_function(name):
        yield
        if wait:
            torch.cuda.synchronize()
