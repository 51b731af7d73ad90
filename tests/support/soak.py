"""Many short cycles of train, kill -9, resume on a tiny model: python tests/soak.py [--cycles 200] [--seed 0]

Each cycle goes on with resume=auto in a new process and is killed after a random time, wherever it is then; a run that
comes to its end is compared with the uninterrupted one, and the next begins. Prints what it saw, and ends with status 1
if an epoch was lost, a file was damaged, the end was another, or memory or open files grew. A second part stops and
goes on within
one process.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).parent))

import tiny  # noqa: E402
from coco_folder import scenes_like_coco  # noqa: E402
from forge import Forge  # noqa: E402

from helpers.train import checkpoints

SCORES = [0.1, 0.3, 0.2]

ONE_PROCESS = """
import gc, json, os, signal, sys
import psutil, torch
from helpers import engine
from helpers.train import training
from helpers.config import load_config
from helpers.files import UserError
torch.set_num_threads(1)
values, cycles = json.loads(sys.argv[1]), int(sys.argv[2])
step, seen = engine.train_step, []
def stopping(run, batches):
    os.kill(os.getpid(), signal.SIGTERM)
    return step(run, batches)
engine.train_step = stopping
for number in range(cycles):
    try:
        training.train(load_config(**values, epochs=cycles, resume="auto"))
    except UserError:
        gc.collect()
        us = psutil.Process()
        seen.append((us.memory_info().rss / 2**20, len(os.listdir("/proc/self/fd")), len(us.children())))
print("SEEN " + json.dumps(seen))
"""


def state(cfg) -> tuple[int, list[str]]:
    """The last epoch that was saved under its final name, and every damaged checkpoint folder."""
    folders = list(cfg.run_dir.glob("checkpoint_*"))
    damaged = [f"{path.name}: {why}" for path in folders if (why := checkpoints.damage(path))]
    epochs = [
        orjson.loads((path / "trainer_state.json").read_bytes())["step"]
        for path in folders
        if path.name != "checkpoint_best" and not checkpoints.damage(path)
    ]
    return max(epochs, default=0), damaged


def same(one, other) -> bool:
    weights = [
        [(cfg.run_dir / f"checkpoint_{name}" / "model.safetensors").read_bytes() for name in ("last", "best")]
        for cfg in (one, other)
    ]
    logs = [(cfg.run_dir / "losses.csv").read_bytes() for cfg in (one, other)]
    return weights[0] == weights[1] and logs[0] == logs[1]


def killed(base, cycles: int, seed: int) -> dict:
    """``cycles`` processes, most of them killed."""
    seen, chance = (
        {"killed": 0, "finished": 0, "lost": [], "damaged": [], "different": 0, "errors": [], "left over": 0},
        random.Random(seed),
    )
    memory, files = [], []
    with Forge() as forge:
        whole = base.with_(run_name="whole")
        seconds = forge.train(whole, scores=SCORES).seconds
        cfg, saved = base.with_(run_name="run0", resume="auto"), 0
        for number in range(cycles):
            ended = forge.train(cfg, scores=SCORES, after=chance.uniform(0.2, 1.3) * seconds)
            if ended.began is not None and ended.began < saved:
                seen["lost"].append((number, ended.began, saved))
            if ended.status == -9:
                seen["killed"] += 1
                saved, damaged = state(cfg)
                seen["damaged"] += damaged
                continue
            if ended.status:
                seen["errors"].append(ended.message[-500:])
            seen["finished"] += 1
            seen["different"] += not same(whole, cfg)
            seen["left over"] += len(list(cfg.run_dir.glob(".*")))
            files.append(ended.files)
            memory.append(ended.megabytes)
            cfg, saved = base.with_(run_name=f"run{number + 1}", resume="auto"), 0
    return {**seen, "memory": memory, "files": files}


def stopped(base, cycles: int) -> list:
    """Stop requests and resumes within one process, as the cells of one notebook: (MB, open files, child processes)
    after each.
    """
    values = {
        **base.as_json(),
        **{name: str(getattr(base, name)) for name in ("data_dir", "output_dir", "model")},
        "run_name": "cells",
    }
    values = {
        name: value for name, value in values.items() if value not in (None, []) and name not in ("epochs", "resume")
    }
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, json.dumps(values), str(cycles)], capture_output=True, text=True
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SEEN "))[5:])


def growth(values) -> float:
    """By how much the median of the last quarter is above that of the second one; the first is warm-up."""
    quarter = len(values) // 4
    return float(np.median(values[-quarter:]) - np.median(values[quarter : 2 * quarter])) if quarter else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        source = scenes_like_coco(Path(folder) / "coco", n_train=40, n_val=20)
        base = tiny.config(Path(folder), source, "dfine", num_workers=0)
        seen = killed(base, args.cycles, args.seed)
        inside = stopped(base, max(8, args.cycles // 4))
    memory, files, inside_memory, inside_files = seen.pop("memory"), seen.pop("files"), *list(zip(*inside))[:2]
    grown = {
        "MB of a process": growth(memory),
        "files open at the end": growth(files),
        "MB within one process": growth(inside_memory),
        "files open within one process": growth(inside_files),
    }
    print(
        f"{args.cycles} cycles (seed {args.seed}) in {(time.monotonic() - began) / 60:.1f} minutes: "
        f"{seen['killed']} killed, "
        f"{seen['finished']} came to the end"
    )
    print(
        f"lost epochs: {len(seen['lost'])}  damaged checkpoints: {len(seen['damaged'])}  other ends: "
        f"{seen['different']}  "
        f"errors: {len(seen['errors'])}  left-over temporary files: {seen['left over']}"
    )
    print(
        "growth: "
        + ", ".join(f"{name} {value:+.1f}" for name, value in grown.items())
        + f" ({len(inside)} stops within one process)"
    )
    bad = seen["lost"] + seen["damaged"] + seen["errors"]
    print("\n".join(map(str, bad)), end="\n" if bad else "")
    held = (
        not bad
        and not seen["different"]
        and not seen["left over"]
        and seen["finished"]
        and max(grown.values()) < 20
        and grown["files open within one process"] < 1
    )
    print("held" if held else "FAILED")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
