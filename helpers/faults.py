"""What goes wrong during training, said in one sentence each; stop requests; the batch that a loss failed on."""
from __future__ import annotations

import contextlib
import errno
import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers import checkpoints
from helpers.config import Config, UserError, write_json

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, a quota, a limit on file sizes


@contextlib.contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Hold the lock ``file``; the system releases it however the process ends. ``UserError(busy)`` when another one has it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(file, timeout=0):
            yield
    except Timeout:
        raise UserError(busy) from None


@contextlib.contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Turn the faults of a training that a user can mend into a UserError: memory, disk, a data-loader worker that died."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        text = str(error)
        if "DataLoader worker" in text and "killed" in text or "exited unexpectedly" in text:
            raise UserError(f"A data-loader worker died ({text.splitlines()[0].rstrip('. ')}): lower num_workers, or free memory; go on "
                            "with resume=auto.") from None
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
            raise UserError(f"The memory is too small for batch_size={cfg.batch_size} at image_size={cfg.image_size}: halve batch_size "
                            "(and double grad_accumulation), lower image_size, or use precision=bf16 or fp16; go on with "
                            "resume=auto.") from None
        raise
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise UserError(f"There is no room to write in {cfg.run_dir.name}/ ({_words(error)}): make room and go on with resume=auto; the "
                        "checkpoints that are there are whole.") from None


def _is_full(error: Exception) -> bool:
    """Whether a disk is full; safetensors has the system's error number in its text only."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return (int(found[1]) if found else getattr(error, "errno", None)) in FULL


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).rsplit(": ", 1)[-1]


class StopRequests:
    """Turns Ctrl-C and SIGTERM into a request (``asked``) that the loop sees after its step."""

    def __enter__(self) -> StopRequests:
        self.asked, self.old = False, {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: then nobody can send it a signal either
            pass
        return self

    def _ask(self, *_) -> None:
        self.asked = True

    def __exit__(self, *_) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def until(self, items: Iterable) -> Iterator:
        """The items, up to a stop request."""
        for item in items:
            if self.asked:
                return
            yield item


def save_batch(folder: Path, batch: dict, step: int) -> Path:
    """Keep a collated batch for :func:`load_batch`: tensors in safetensors (NaN survives there), the rest in JSON."""
    tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
    for k, label in enumerate(batch["labels"]):
        tensors |= {f"labels.{k}.{name}": value for name, value in label.items()}

    def fill(target: Path) -> None:
        save_file({name: value.contiguous() for name, value in tensors.items()}, target / "batch.safetensors")
        write_json(target / "batch.json", {"step": step, "image_ids": batch["image_ids"], "unreadable": batch["unreadable"]})

    return checkpoints.write_folder(folder, fill)


def load_batch(folder: Path) -> dict:
    """A batch as the collator made it, to replay a failed step: ``train_step(build(cfg), [load_batch(cfg.run_dir / "failed_batch")])``."""
    about, tensors = orjson.loads((folder / "batch.json").read_bytes()), load_file(folder / "batch.safetensors")
    labels: list[dict] = [{} for _ in about["image_ids"]]
    for name in [name for name in tensors if name.startswith("labels.")]:
        _, k, part = name.split(".")
        labels[int(k)][part] = tensors.pop(name)
    return {**tensors, "labels": labels, "image_ids": about["image_ids"], "unreadable": about["unreadable"]}
