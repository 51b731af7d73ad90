"""The demo's training beside 0, 1 and 2 busy neighbours, as threads come and as they can be told to wait: ``python
benchmarks/shared_machine.py``.

OpenMP's threads spin while they wait for each other; beside a neighbour the one that is waited for has no core, and the
other burns its own. With ``OMP_WAIT_POLICY=PASSIVE`` a waiting thread sleeps, which costs an idle machine the time of
waking it. Every measurement is a process of its own, the sides take turns. The fair share of a training with T threads
beside N neighbours on C cores is C / (T + N) of what it does alone, once there are more of them than cores.

Threads and data-loader workers together are no more than the cores that the process may use; the last side knows
nothing of this limit, and has a thread for each core of the machine and all of the ``--workers`` beside them. In a
container that is given less than the machine's cores (``docker run --cpus 1``, ``taskset -c 0``) that is most.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time

NO_LIMIT = "NO_LIMIT"  # in a training's environment: threads and workers as they come
SIDES = {  # what is set in the training's environment
    "as they come": {},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "no limit of threads and workers": {NO_LIMIT: "1"},
}
BURN_IN = 4  # steps


def train_some(folder: str, steps: int, workers: int) -> None:
    """Steps a second of a training in this process, whose threads wait as its environment says; printed."""
    import torch

    from helpers import engine
    from helpers.config import load_config
    from helpers.train import training

    if NO_LIMIT in os.environ:
        engine.share_cores = training.share_cores = lambda num_workers: num_workers
    cfg = load_config("demo", data_dir=f"{folder}/data", output_dir=f"{folder}/out", max_val_images=2)
    cfg = cfg.with_(num_workers=workers)
    run = training.build(cfg.with_(max_train_images=cfg.batch_size * (steps + BURN_IN)))
    for number, batch in enumerate(engine.train_loader(run, 0)):
        if number == BURN_IN:
            began = time.perf_counter()
        engine.train_step(run, [batch])
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


def measure(folder: str, steps: int, workers: int, settings: dict[str, str]) -> tuple[float, int]:
    """Steps a second and threads of a training in a process of its own."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names} | settings
    command = [sys.executable, __file__, "--train", folder, "--steps", str(steps), "--workers", str(workers)]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    rate, threads = output.split()[-2:]
    return float(rate), int(threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2, help="of the data loader")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="only these")
    parser.add_argument("--train", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        return train_some(arguments.train, arguments.steps, arguments.workers)

    import numpy as np
    from joblib import cpu_count
    from machine import header

    from helpers.config import load_config
    from helpers.download.prepare import prepare

    print(header("torch"), flush=True)
    cores = cpu_count()
    sides = {name: SIDES[name] for name in arguments.sides or SIDES}
    print(f"{cores} of {os.cpu_count()} cores may be used, {arguments.workers} workers are asked for", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config("demo", data_dir=f"{folder}/data", output_dir=f"{folder}/out", max_val_images=2)
        prepare(cfg.with_(max_train_images=cfg.batch_size * (arguments.steps + BURN_IN)))
        alone: dict[str, float] = {}
        for count in arguments.neighbours:
            rates: dict[str, list] = {side: [] for side in sides}
            with neighbours(count):
                for _ in range(arguments.rounds):
                    for side, settings in sides.items():
                        rate, threads = measure(folder, arguments.steps, arguments.workers, settings)
                        rates[side].append((rate, threads))
            for side, measured in rates.items():
                rate, threads = float(np.median([rate for rate, _ in measured])), measured[0][1]
                alone.setdefault(side, rate)
                share = min(1.0, cores / (threads + count))
                fair = f", {rate / (alone[side] * share):.0%} of the fair share" if count else ""
                print(f"{count} neighbours, {side} ({threads} threads): {rate:.2f} steps/s{fair}", flush=True)


if __name__ == "__main__":
    main()
