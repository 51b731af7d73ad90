"""The demo's training in two processes against one: ``python benchmarks/scaling.py``.

The same photos a step, on batches from memory; each process has one thread and a core of its own. What is lost of twice
the speed has three parts, and their product is the efficiency: half a batch is less than half the work to begin with,
two processes share the memory, and they exchange their gradients, which is what a step takes longer than one under
DDP's ``no_sync``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice

import numpy as np

STEPS = 6  # of each side in a round
SIDES = {"one process": (1, 1), "half a batch": (1, 2), "two processes": (2, 2)}  # processes, parts of the batch


def config(folder: str, parts: int):
    from helpers.config import load_config

    cfg = load_config("demo", data_dir=f"{folder}/data", output_dir=f"{folder}/out", max_val_images=2, num_workers=0)
    return cfg.with_(batch_size=cfg.batch_size // parts, max_train_images=cfg.batch_size * 4)


def measure_here(folder: str, parts: int, rounds: int) -> None:
    """Photos a second of all processes, with and without the exchange; the first process prints them."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})

    import torch

    torch.set_num_threads(1)
    from helpers.engine import train_loader, train_step
    from helpers.train.processes import together
    from helpers.train.training import build

    with together():
        run = build(config(folder, parts))
        batches = cycle(list(islice(train_loader(run, 0), 4)))
        found: dict[str, list[float]] = {"with": [], "without": []}
        for number in range(rounds + 1):
            for exchange, rates in found.items():
                alone = run.accelerator.no_sync(run.model) if exchange == "without" else contextlib.nullcontext()
                began = time.perf_counter()
                with alone:
                    for _ in range(STEPS):
                        train_step(run, [next(batches)])
                if number:  # the first round warms up
                    rates.append(world * run.cfg.batch_size * STEPS / (time.perf_counter() - began))
    if not rank:
        print(json.dumps({name: float(np.median(rates)) for name, rates in found.items()}))


def measured(folder: str, processes: int, parts: int, rounds: int) -> dict[str, float]:
    """What :func:`measure_here` prints, in processes of its own."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, __file__, "--here", folder, "--parts", str(parts), "--rounds", str(rounds)]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if ended.returncode:
        raise SystemExit(ended.stderr)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2, help="how often the sides take turns")
    parser.add_argument("--rounds", type=int, default=3, help="of each start, with and without exchange in turns")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        return measure_here(arguments.here, arguments.parts, arguments.rounds)
    from machine import header

    from helpers.download.prepare import prepare

    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("Two processes need two cores, and this one may use one.")
    print(header("torch", "transformers", "accelerate"), flush=True)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        prepare(config(folder, 1))
        for _ in range(arguments.turns):
            for name, (processes, parts) in SIDES.items():
                found[name].append(measured(folder, processes, parts, arguments.rounds))
    rates = {
        name: {k: float(np.median([each[k] for each in turns])) for k in turns[0]} for name, turns in found.items()
    }
    one, half, two = rates["one process"]["with"], rates["half a batch"]["with"], rates["two processes"]
    for name, turns in found.items():
        each = ", ".join(f"{turn['with']:.2f}" for turn in turns)
        print(f"{name:14} {rates[name]['with']:6.2f} photos/s  ({each})")
    print(f"{'no exchange':14} {two['without']:6.2f} photos/s")
    print(
        f"two processes are {two['with'] / one:.2f} times as fast as one: an efficiency of {two['with'] / one / 2:.0%}"
    )
    print(f"  half a batch at a time   {half / one:.2f}")
    print(f"  sharing the memory       {two['without'] / half / 2:.2f}")
    kept = two["with"] / two["without"]
    print(f"  exchanging the gradients {kept:.2f}: {1 - kept:.0%} of a step is communication")


if __name__ == "__main__":
    main()
