"""The demo's training beside 0, 1 and 2 busy neighbours, as threads come and as they can be told to wait: ``python
benchmarks/shared_machine.py``.

OpenMP's threads spin while they wait for each other; beside a neighbour the one that is waited for has no core, and the
other burns its own. With ``OMP_WAIT_POLICY=PASSIVE`` a waiting thread sleeps, which costs an idle machine the time of
waking it. Every measurement is a process of its own, the sides take turns. The fair share of a training with T threads
beside N neighbours on C cores is C / (T + N) of what it does alone, once there are more of them than cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time

SIDES = {  # what is set in the training's environment
    "as they come": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BURN_IN = 4  # steps


def train_some(folder: str, steps: int) -> None:
    """Steps a second of a training in this process, whose threads wait as its environment says; printed."""
    import torch

    from helpers.config import load_config
    from helpers.engine import train_loader, train_step
    from helpers.train.training import build

    cfg = load_config("demo", data_dir=f"{folder}/data", output_dir=f"{folder}/out", max_val_images=2)
    run = build(cfg.with_(max_train_images=cfg.batch_size * (steps + BURN_IN)))
    for number, batch in enumerate(train_loader(run, 0)):
        if number == BURN_IN:
            began = time.perf_counter()
        train_step(run, [batch])
    print(steps / (time.perf_counter() - began), torch.get_num_threads())


@contextlib.contextmanager
def neighbours(count: int):
    """So many processes that compute all the time."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(folder: str, steps: int, settings: dict[str, str]) -> tuple[float, int]:
    """Steps a second and threads of a training in a process of its own."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | settings
    command = [sys.executable, __file__, "--train", folder, "--steps", str(steps)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    rate, threads = output.split()[-2:]
    return float(rate), int(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        return train_some(arguments.train, arguments.steps)

    import numpy as np
    from machine import header

    from helpers.config import load_config
    from helpers.download.prepare import prepare

    print(header("torch"), flush=True)
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config("demo", data_dir=f"{folder}/data", output_dir=f"{folder}/out", max_val_images=2)
        prepare(cfg.with_(max_train_images=cfg.batch_size * (arguments.steps + BURN_IN)))
        alone: dict[str, float] = {}
        for count in arguments.neighbours:
            rates: dict[str, list] = {side: [] for side in SIDES}
            with neighbours(count):
                for _ in range(arguments.rounds):
                    for side, settings in SIDES.items():
                        rate, threads = measure(folder, arguments.steps, settings)
                        rates[side].append((rate, threads))
            for side, measured in rates.items():
                rate, threads = float(np.median([rate for rate, _ in measured])), measured[0][1]
                alone.setdefault(side, rate)
                share = min(1.0, cores / (threads + count))
                fair = f", {rate / (alone[side] * share):.0%} of the fair share" if count else ""
                print(f"{count} neighbours, {side} ({threads} threads): {rate:.2f} steps/s{fair}", flush=True)


if __name__ == "__main__":
    main()
