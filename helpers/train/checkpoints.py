"""Checkpoint folders: a standard Hugging Face model, and the trainer's state beside it, in safetensors and JSON only.

A folder is written under a temporary name and renamed when it is whole. ``checksums.json`` tells a damaged one.
"""

import os
import random
import re
import secrets
import shutil
from pathlib import Path

import numpy as np
import orjson
import torch
from safetensors.torch import load_file, save_file

from helpers.files import UserError, link_or_copy, sha256, write_json
from helpers.train.processes import rank

KEEP = 2  # resumable checkpoint_epoch_N folders that stay


def write_folder(folder: Path, fill) -> Path:
    """Make ``folder`` (replacing it) with what ``fill(temporary_folder)`` writes, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        write_json(temporary / "checksums.json", {path.name: sha256(path) for path in files})
        for path in files:
            with open(path, "rb") as file:  # else a machine that loses its power has the new name and no content
                os.fsync(file.fileno())
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.old")
        if folder.exists():
            os.rename(folder, old)
        os.rename(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def recover(run_dir: Path) -> None:
    """Put back a folder that a kill between the renames of :func:`write_folder` left without its name; clear leftovers.

    The new folder is taken when it is whole, else the old one. To be called by the only process that writes there.
    """
    for pattern in (".*.tmp", ".*.old"):
        for path in sorted(run_dir.glob(pattern), key=lambda path: path.stat().st_mtime_ns, reverse=True):
            folder = run_dir / path.name[1:].rsplit(".", 2)[0]
            replaced = pattern == ".*.old" or any(run_dir.glob(f".{folder.name}.*.old"))
            if path.is_dir() and replaced and not folder.exists() and damage(path) is None:
                os.rename(path, folder)
    for path in [*run_dir.glob(".*.tmp"), *run_dir.glob(".*.old")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def copy_folder(source: Path, folder: Path, with_state: bool) -> Path:
    """``source`` under another name, as hard links where that can be; with or without the trainer's state."""

    def fill(target: Path) -> None:
        for path in sorted(source.iterdir()):
            if path.name != "checksums.json" and (with_state or not path.name.startswith("trainer_state")):
                link_or_copy(path, target / path.name)

    return write_folder(folder, fill)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None when every file has the checksum that was written."""
    try:
        expected = orjson.loads((folder / "checksums.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return "checksums.json is missing or broken"
    for name, checksum in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != checksum:
            return f"{name} is damaged"
    return None


def random_state() -> tuple[dict, dict]:
    """Of PyTorch's generators as tensors, and of Python's and NumPy's as numbers."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {"python": random.getstate(), "numpy": np.random.get_state()}


def save_state(folder: Path, model, optimizer, scaler, progress: dict, states: list[tuple] | None = None) -> None:
    """The trainer's state: ``progress`` and plain numbers as JSON; raw weights, moments and RNG as safetensors.

    ``states``: the :func:`random_state` of each process, this one's unless given.
    """
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    generators = {}
    for number, (of_torch, others) in enumerate(states or [random_state()]):
        tensors |= {f"rng.{name}{_mark(number)}": value for name, value in of_torch.items()}
        generators |= {f"rng_{name}{_mark(number)}": value for name, value in others.items()}
    state = optimizer.state_dict()
    for index, values in state["state"].items():  # AdamW's are all tensors
        tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / "trainer_state.safetensors")
    about = {
        **progress,
        **generators,
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]],
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    write_json(folder / "trainer_state.json", about)


def load_state(folder: Path, model, optimizer, scaler) -> dict:
    """Put a saved state back; returns what :func:`save_state` wrote as JSON, ``progress`` in it."""
    saved = orjson.loads((folder / "trainer_state.json").read_bytes())
    tensors = load_file(folder / "trainer_state.safetensors")
    with torch.no_grad():
        for name, tensor in _weights(model).items():
            tensor.copy_(tensors[f"model.{name}"])
    state = optimizer.state_dict()
    state["state"] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state["state"].setdefault(int(index), {})[key] = tensor
    for group, values in zip(state["param_groups"], saved["groups"], strict=True):
        group.update({k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        # a fused step wants the moments laid out as the weights are, which on a GPU are channels-last
        moments = {name: value for name, value in values.items() if value.shape == parameter.shape}
        values |= {name: torch.empty_like(parameter, dtype=t.dtype).copy_(t) for name, t in moments.items()}
    if scaler is not None and saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    mark = _mark(rank())
    if f"rng.torch{mark}" in tensors:  # else there were fewer processes, and this one begins a state of its own
        torch.set_rng_state(tensors[f"rng.torch{mark}"])
        if f"rng.cuda{mark}" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[f"rng.cuda{mark}"])
        version, numbers, gauss = saved[f"rng_python{mark}"]
        random.setstate((version, tuple(numbers), gauss))
        np.random.set_state(saved[f"rng_numpy{mark}"])
    return saved


def _mark(number: int) -> str:
    return f".{number}" if number else ""  # of one process, the names are what they always were


def _weights(model) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, each shared tensor once, without what is derived from others."""
    persistent = model.state_dict().keys()
    return {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in persistent}


def resume_from(run_dir: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, and a sentence for each damaged one that was passed over.

    ``auto``: the newest whole one, None when there is none; a number: that epoch's; else a folder.
    Raises UserError when a named one is missing or damaged.
    """
    if resume != "auto":
        folder = run_dir / f"checkpoint_epoch_{resume}" if re.fullmatch(r"\d+", resume) else Path(resume).expanduser()
        if not (folder / "trainer_state.json").is_file():
            there = ", ".join(path.name for path in _resumable(run_dir)) or "none"
            raise UserError(f"resume={resume}: {folder.name} is not a checkpoint to go on from; there are {there}.")
        problem = damage(folder)
        if problem:
            raise UserError(f"resume={resume}: {folder.name} is damaged ({problem}); use resume=auto.")
        return folder, []
    passed = []
    for folder in _resumable(run_dir):
        problem = damage(folder)
        if problem is None:
            return folder, passed
        passed.append(f"{folder.name} is damaged ({problem}) and is passed over for the one before.")
    return None, passed


def _resumable(run_dir: Path) -> list[Path]:
    """Folders with a trainer's state, newest first."""

    def newest(folder: Path) -> tuple[int, str]:
        try:
            return orjson.loads((folder / "trainer_state.json").read_bytes())["step"], folder.name
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return -1, folder.name

    return sorted((path.parent for path in run_dir.glob("checkpoint_*/trainer_state.json")), key=newest, reverse=True)


def drop_old(run_dir: Path, epoch: int, later: bool = True) -> None:
    """Remove all but the last ``KEEP`` checkpoint_epoch_N up to ``epoch``, and ``later`` ones, of a training left."""
    named = {path.name.removeprefix("checkpoint_epoch_"): path for path in run_dir.glob("checkpoint_epoch_*")}
    found = {int(number): path for number, path in named.items() if number.isdecimal()}  # a student's own copy stays
    stay = sorted(number for number in found if number <= epoch)[-KEEP:]
    for number, path in found.items():
        if number not in stay and (later or number < epoch):
            shutil.rmtree(path, ignore_errors=True)
