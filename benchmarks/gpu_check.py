"""Whether everything holds on this machine's GPU: ``make gpu-check``, ten minutes at most, no network.

A table with a line per claim, *holds* or *does not*, and artifacts/gpu_check/gpu_check.json. DETR-R50 has its true
shape, random weights with norms from N(1, 0.3), and trains on generated photos. Without a GPU the table holds what can
run without one. ``--quick``: the smallest sizes, to test this program. Status 0 where every line holds, else 1.
"""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS is first called: deterministic kernels
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import gc
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu_right
import gpu_speed
import torch
from gpu_lab import Lab, Row
from machine import header

from helpers.cli import command
from helpers.devices import resolve_precision
from helpers.families.loading import quiet
from helpers.files import ROOT, portable, write_json
from helpers.train.run_folder import environment

CHECKS = (*gpu_right.CHECKS, *gpu_speed.CHECKS)
LIMIT = 500.0  # seconds after which no further check begins


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes")
    parser.add_argument("--only", default="", help=f"checks, by name: {', '.join(c.__name__ for c in CHECKS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "artifacts" / "gpu_check")
    options = parser.parse_args(argv)
    quiet()
    print(header("torch", "transformers", "timm", "accelerate"), flush=True)
    chosen = [check for check in CHECKS if not options.only or check.__name__ in options.only.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        lab, began = Lab(Path(folder), options.quick), time.perf_counter()
        if not lab.gpu:
            print("No GPU here that PyTorch can use: what can run without one runs on the CPU.", flush=True)
        rows = [device_row(lab)]
        show(rows[0])
        for check in chosen:
            for row in rows_of(check, lab, LIMIT - (time.perf_counter() - began)):
                rows.append(row)
                show(row)
    held, seconds = sum(row.holds for row in rows), time.perf_counter() - began
    about = {"environment": environment(), "gpu": lab.gpu, "quick": lab.quick, "seconds": seconds}
    file = write_json(options.out / "gpu_check.json", {**about, "rows": [row.as_json() for row in rows]})
    print(f"{held} of {len(rows)} lines hold, {seconds:.0f} s: {portable(file)}")
    return int(held < len(rows))


def device_row(lab: Lab) -> Row:
    chosen = resolve_precision("auto")[0]
    if not lab.gpu:
        return Row("device", True, f"the CPU; precision=auto is {chosen}")
    major, minor = torch.cuda.get_device_capability()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = (
        subprocess.run(query, capture_output=True, text=True).stdout.split("\n")[0] if shutil.which(query[0]) else "?"
    )
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    figure = f"{torch.cuda.get_device_name()}, {memory:.0f} GB, capability {major}.{minor}, driver {driver}, "
    return Row(
        "device",
        chosen == ("bf16" if major >= 8 else "fp16"),
        f"{figure}CUDA {torch.version.cuda}; precision=auto is {chosen}",
        "bf16 from capability 8.0 on, else fp16",
        {"capability": major + minor / 10, "memory_GB": memory},
    )


def rows_of(check: Callable[[Lab], Iterator[Row]], lab: Lab, seconds_left: float) -> Iterator[Row]:
    """What a check finds; one that ends in an error is a line that does not hold, and the others go on."""
    name = check.__name__.replace("_", " ")
    if seconds_left < 0:
        yield Row(name, False, "not begun", "within ten minutes")
        return
    began = time.perf_counter()
    try:
        for row in check(lab):
            row.numbers["seconds"] = time.perf_counter() - began
            yield row
    except Exception as error:  # whatever it is, the table is to say so
        yield Row(name, False, f"{type(error).__name__}: {str(error).strip()[:200]}", "no error")
    gc.collect()
    if lab.gpu:
        torch.cuda.empty_cache()


def show(row: Row) -> None:
    print(f"{'holds' if row.holds else 'DOES NOT':9}{row.name}: {row.figure} [{row.bound}]", flush=True)


if __name__ == "__main__":
    command(main)
