"""The demo model's training with its data path, ours against the Hugging Face Trainer's: ``python
benchmarks/demo_training.py``.

The same scenes, the same checkpoint, the same batch size; each side and round in a process of its own, with its own
recipe: ours is the preset ``demo`` (averaged weights included), theirs benchmarks/peer.py. Both are asked for the
preset's data-loader workers, of which ours takes as many as its threads leave cores, on two none; ``--peer-workers``
gives the other side another number. Photos per second over the steps after the burn-in.
"""

from __future__ import annotations

from helpers.threads import wait_as_the_machine_allows

if __name__ == "__main__":
    wait_as_the_machine_allows()  # before PyTorch is loaded

import argparse
import tempfile
import time
from itertools import islice

import numpy as np
import peer
import torch
from machine import header, in_own_process

from helpers.config import Config, load_config
from helpers.download.prepare import prepare
from helpers.engine import train_loader, train_step
from helpers.families.loading import quiet
from helpers.train.training import build

BURN_IN = 6  # steps: the batches that the workers had ready by then are used up


def ours(cfg: Config, steps: int) -> float:
    """Photos per second."""
    quiet()
    run, marks = build(cfg), []
    for batch in islice(train_loader(run, 0), steps):
        train_step(run, [batch])
        marks.append(time.perf_counter())
    return rate(np.diff(marks), cfg.batch_size)


def theirs(cfg: Config, steps: int) -> float:
    """Photos per second."""
    quiet()
    photos = peer.Photos(
        cfg.data_dir / "annotations" / "instances_train2017.json",
        cfg.data_dir / "images" / "train2017",
        peer.square_processor(cfg.model, cfg.image_size),
        list(cfg.classes),
    )
    model = peer.detector(cfg.model, list(cfg.classes))
    return rate(peer.train(model, photos, peer.collate, cfg.batch_size, steps, workers=cfg.num_workers), cfg.batch_size)


def rate(gaps, batch_size: int) -> float:
    return batch_size / float(np.mean(gaps[BURN_IN:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="of each side and round, with the burn-in")
    parser.add_argument("--peer-workers", type=int, metavar="N", help="of the Trainer (else: the preset's)")
    arguments = parser.parse_args()
    quiet()
    print(
        header("torch", "transformers", "timm", "accelerate", "albumentations"),
        f"{torch.get_num_threads()} threads",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config("demo", data_dir=f"{folder}/data", output_dir=f"{folder}/out", max_val_images=2)
        cfg = cfg.with_(max_train_images=cfg.batch_size * arguments.steps)
        prepare(cfg)
        workers = cfg.num_workers if arguments.peer_workers is None else arguments.peer_workers
        rates, its = {"ours": [], "Trainer": []}, cfg.with_(num_workers=workers)
        for number in range(arguments.rounds):
            rates["ours"].append(in_own_process(ours, cfg, arguments.steps))
            rates["Trainer"].append(in_own_process(theirs, its, arguments.steps))
            print(
                f"round {number + 1}: "
                + "; ".join(f"{name} {values[-1]:.1f} photos/s" for name, values in rates.items()),
                flush=True,
            )
    mine, peers = (float(np.median(values)) for values in rates.values())
    print(f"ours {mine:.1f}, Trainer {peers:.1f} photos/s: {mine / peers:.2f} times as fast")


if __name__ == "__main__":
    main()
