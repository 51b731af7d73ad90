"""The folder of a run: trained into by one process at a time, gone on with or made anew, never over another run."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import orjson
import pandas as pd
import psutil
import torch
from joblib import cpu_count

from helpers.config import Config
from helpers.engine import Run
from helpers.files import UserError, locked, read_table, write_atomic
from helpers.train import checkpoints
from helpers.train.processes import rank, world

PACKAGES = ("torch", "torchvision", "transformers", "timm", "accelerate", "albumentations", "pycocotools")
PACKAGES += ("hotcoco", "numpy")  # whose versions belong to a figure
LOGS = ("losses", "epochs")  # of a run, tables in its folder
# What decides over an epoch's batches
ORDER = ("batch_size", "processes", "grad_accumulation", "seed", "max_train_images", "data_source")
TAKEN = (*ORDER, "image_size", "epochs", "augment", "scheduler", "warmup_ratio", "clip_norm", "ema", "precision")
KEPT = ("lr", "lr_head", "lr_backbone", "weight_decay")  # of the optimizer's state


def only_process(cfg: Config):
    """A lock on the run's name; where several processes train one run together, the first of them has it."""
    if rank():
        return contextlib.nullcontext()
    return locked(
        cfg.output_dir / f".{cfg.run_name}.lock",
        f"Another process is training the run {cfg.run_name}: wait until it is done, or choose another run_name.",
    )


def start_from(cfg: Config) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, if any, and what there is to say; refuses to write over another run."""
    checkpoints.recover(cfg.run_dir)
    passed, there = [], any(cfg.run_dir.glob("checkpoint_*"))
    if cfg.resume or _same_cell_again(cfg):
        folder, passed = checkpoints.resume_from(cfg.run_dir, cfg.resume or "auto")
        if folder:
            return folder, passed + changed_settings(cfg, folder)
        if there and not cfg.overwrite:
            raise UserError(
                f"The run {cfg.run_name} has no whole checkpoint to go on from: overwrite=True starts it anew. "
                f"{' '.join(passed)}"
            )
    elif there and not cfg.overwrite:
        raise UserError(
            f"The run {cfg.run_name} exists already: give another run_name, resume=auto to go on, or overwrite=True."
        )
    ours = any(any(cfg.run_dir.glob(pattern)) for pattern in ("config.json", "checkpoint_*", "*detections_*.json"))
    if not ours and cfg.run_dir.is_dir() and any(cfg.run_dir.iterdir()):
        raise UserError(
            f"{cfg.run_dir.name}/ in {cfg.output_dir.name}/ holds something that is no run: choose another run_name."
        )
    return None, passed


def changed_settings(cfg: Config, folder: Path) -> list[str]:
    """What is to be said of a checkpoint that was trained with other settings than those of ``cfg``.

    Raises UserError where it lies within an epoch and the rest of the epoch would be another one.
    """
    try:
        before = orjson.loads((folder.parent / "config.json").read_bytes())
        within = orjson.loads((folder / "trainer_state.json").read_bytes())["batch"] > 0
    except (OSError, ValueError, KeyError, TypeError):
        return []
    before, now = {"processes": 1, **before}, as_trained(cfg)
    photos = [values.get("batch_size", 0) * values["processes"] for values in (before, now)]
    if photos[0] == photos[1]:  # the same ones in a step, shared out in another way
        before |= {name: now[name] for name in ("batch_size", "processes")}
    changed = {name: f"{name}={before[name]}" for name in TAKEN + KEPT if name in before and before[name] != now[name]}
    order = [text for name, text in changed.items() if name in ORDER]
    if within and order:
        raise UserError(
            f"{folder.name} lies within an epoch that was begun with {', '.join(order)}: go on with the same, or "
            "from the end of an epoch (resume=its number)."
        )
    taken = [f"{name}={now[name]} (was {before[name]})" for name in TAKEN if name in changed]
    kept = [changed[name] for name in KEPT if name in changed]
    sentences = [f"From here on with {', '.join(taken)}: not the run that it would have been."] if taken else []
    if kept:
        sentences.append(f"The checkpoint's own {', '.join(kept)} stay, a resumed run does not change them.")
    return sentences


def as_trained(cfg: Config) -> dict:
    """The config as it is kept, with the number of processes that there are."""
    return {**cfg.as_json(), "processes": world()}


def empty(cfg: Config) -> None:
    """Make the run's folder anew, without anything of an earlier run, in the blink of a rename."""
    old = cfg.output_dir / f".{cfg.run_name}.old"
    shutil.rmtree(old, ignore_errors=True)  # of a process that was killed here
    if cfg.run_dir.exists():
        os.rename(cfg.run_dir, old)
    cfg.run_dir.mkdir(parents=True)
    for folder in (old, cfg.output_dir / "runs" / cfg.run_name):
        shutil.rmtree(folder, ignore_errors=True)


def write_log(run: Run) -> None:
    """losses.csv and epochs.csv as far as they are known; a resumed run takes what its checkpoint covers."""
    for name in LOGS:
        if rows := getattr(run, name):
            write_atomic(run.cfg.run_dir / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False))


def read_log(run_dir: Path) -> dict[str, list[dict]]:
    """The rows of :func:`write_log` by name; none where there is no file."""
    tables = {name: run_dir / f"{name}.csv" for name in LOGS}
    return {name: read_table(table).to_dict("records") if table.is_file() else [] for name, table in tables.items()}


def _same_cell_again(cfg: Config) -> bool:
    """Whether this very process began this very run: its cell is run a second time, and goes on."""
    try:
        started = orjson.loads((cfg.run_dir / "environment.json").read_bytes())["process"]
        asked = orjson.loads((cfg.run_dir / "config.json").read_bytes())
    except (OSError, ValueError, KeyError):
        return False
    return started == process() and asked == as_trained(cfg)


def process() -> str:
    """This process, as no other one is called even when its number is given out again; of several, who started them."""
    return os.environ.get("STARTED_BY") or f"{os.getpid()} {psutil.Process().create_time():.2f}"


def environment() -> dict:
    """The machine and the versions that a figure belongs to; no user or host names."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cores": cpu_count(),
        "threads": torch.get_num_threads(),
        "threads wait": os.environ.get("OMP_WAIT_POLICY", "as PyTorch has them"),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
