"""Whether the fast path costs accuracy: ``python benchmarks/fast_and_slow.py``.

The demo's training, shortened, with the fast path of helpers/train/fast_path.py and without it (the library's own
computation: norms after their convolutions, every token's box, the library's memory layout), over three seeds each.
Rounding alone makes two trainings differ, so the two means must agree within what the seeds differ by.
"""

from __future__ import annotations

from helpers.threads import wait_as_the_machine_allows

if __name__ == "__main__":
    wait_as_the_machine_allows()  # before PyTorch is loaded

import argparse
import contextlib
import io
import tempfile
import time
from unittest import mock

import pandas as pd
import torch
from machine import header

from helpers.config import Config, load_config
from helpers.download.prepare import prepare
from helpers.families.loading import quiet
from helpers.train import training


def trained(cfg: Config, path: str) -> dict:
    """AP and AP50 of the averaged weights after the last epoch, and how long it all took."""
    slow = (
        mock.patch.object(training, "take_fast_path", lambda model: None)
        if path == "slow"
        else contextlib.nullcontext()
    )
    began = time.perf_counter()
    with slow, contextlib.redirect_stderr(io.StringIO()):
        run = training.train(cfg.with_(run_name=f"{path}_{cfg.seed}"))
    return {
        "path": path,
        "seed": cfg.seed,
        "mAP": run.epochs[-1]["mAP"],
        "mAP50": run.epochs[-1]["mAP50"],
        "photos/s": run.epochs[-1]["photos_per_s"],
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--validation", type=int, default=150)
    arguments = parser.parse_args()
    quiet()
    print(header("torch", "transformers", "accelerate"), f"{torch.get_num_threads()} threads", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config(
            "demo",
            data_dir=f"{folder}/data",
            output_dir=f"{folder}/out",
            epochs=1,
            max_train_images=arguments.scenes,
            max_val_images=arguments.validation,
        )
        prepare(cfg)
        for seed in range(arguments.seeds):
            for path in ("fast", "slow"):
                rows.append(trained(cfg.with_(seed=seed), path))
                print(
                    "; ".join(
                        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
                        for name, value in rows[-1].items()
                    ),
                    flush=True,
                )
    table = pd.DataFrame(rows).groupby("path")[["mAP", "mAP50", "photos/s"]].agg(["mean", "min", "max"])
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
