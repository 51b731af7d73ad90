"""Which device a run uses, in which precision, and how it is set up."""

import contextlib
import functools
import os
import platform
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from joblib import cpu_count  # that this process may use: affinity and a container's quota are seen

from helpers.files import UserError


def pick_device() -> torch.device:
    """The GPU, or the CPU where there is none.

    Raises UserError where a GPU is there and cannot be used: hours later nobody would know why it took so long. Who
    wants the CPU then says so with ``CUDA_VISIBLE_DEVICES=`` (empty).
    """
    if torch.cuda.is_available():
        have, need = torch.cuda.get_device_capability(), _oldest_capability()
        if have < need:
            raise UserError(
                f"This GPU ({torch.cuda.get_device_name()}, compute capability {have[0]}.{have[1]}) is older than "
                f"the installed PyTorch knows (from {need[0]}.{need[1]} on): install an older build of it, or set "
                "CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU."
            )
        return torch.device("cuda")
    asked_for_cpu = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda and not asked_for_cpu and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        raise UserError(
            f"There is an NVIDIA GPU here, but PyTorch cannot use it: its CUDA {torch.version.cuda} needs a newer "
            "driver (580 or later for CUDA 13; nvidia-smi shows yours). Update the driver, or set "
            "CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU."
        )
    return torch.device("cpu")


def _oldest_capability() -> tuple[int, int]:
    """The lowest compute capability that this build of PyTorch has kernels for."""
    numbers = [int(name[3:].rstrip("af")) for name in torch.cuda.get_arch_list() if name.startswith("sm_")]
    return divmod(min(numbers, default=0), 10)


def resolve_precision(wanted: str) -> tuple[str, str]:
    """``(fp32 | fp16 | bf16, why)``: what a config's ``precision`` becomes on this machine; no ``why`` if as asked.

    ``auto`` is bf16 where the hardware computes in it (a GPU from compute capability 8.0 on: older ones only emulate
    it), else fp16 on a GPU and fp32 on a CPU. fp16 needs a GPU.
    """
    gpu = torch.cuda.is_available()
    if wanted == "auto":
        native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else _cpu_has_bf16()
        best = "bf16" if native else "fp16" if gpu else "fp32"
        return best, f"precision=auto: {best} on this {'GPU' if gpu else 'CPU'}."
    if wanted == "fp16" and not gpu:
        return "fp32", "precision=fp16 needs a GPU; this run computes in fp32."
    return wanted, ""


def autocast(wanted: str) -> Callable:
    """A context manager's factory that runs a forward pass in a config's ``precision``."""
    precision, _ = resolve_precision(wanted)
    if precision == "fp32":
        return contextlib.nullcontext
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    return functools.partial(torch.autocast, pick_device().type, dtype=dtype)


def set_up(device: torch.device, deterministic: bool) -> None:
    """PyTorch's switches for a training on ``device``.

    On a GPU: TF32 for products in fp32, and cuDNN measures its algorithms (batches are padded to few different sizes,
    see the collator). ``deterministic``: only kernels that add up in a fixed order; one that does not exist raises
    RuntimeError when it is needed.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # it costs time, and nothing here reads such memory
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = not deterministic


def share_cores(num_workers: int) -> int:
    """How many data-loader workers of ``num_workers``: with PyTorch's threads, of which there may be fewer afterwards,
    they are no more than the cores that this process may use.

    Where the CPU computes, at least three quarters of the cores do; beside a GPU one must.
    """
    cores = max(cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)  # torchrun says how many share them
    threads = torch.get_num_threads()
    computing = 1 if torch.cuda.is_available() else cores - cores // 4
    workers = min(num_workers, cores - min(threads, computing))
    torch.set_num_threads(min(threads, cores - workers))
    return workers


def _cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 natively; elsewhere bf16 is emulated and slower than fp32."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def peak_megabytes() -> float:
    """Most memory so far: allocated on the GPU, or without one resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6  # bytes there, kilobytes elsewhere


@contextlib.contextmanager
def named_range(name: str):
    """A range that the profiler shows by name; while it records on a GPU, it lasts until its kernels are done."""
    wait = torch.cuda.is_available() and torch.autograd._profiler_enabled()
    if wait:
        torch.cuda.synchronize()
    with torch.profiler.record_function(name):
        yield
        if wait:
            torch.cuda.synchronize()
