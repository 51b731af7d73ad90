"""What goes wrong during training, said in one sentence each; stop requests; the batch that a loss failed on."""

from __future__ import annotations

import contextlib
import errno
import re
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from helpers.config import Config
from helpers.engine import SKIPPED_IN_A_ROW, NotFinite
from helpers.files import UserError, write_json
from helpers.train import checkpoints
from helpers.train.processes import any_of, rank, several

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room, a quota, a limit on file sizes
# PyTorch's, cuBLAS' and cuDNN's words for it; only the first of them is always a torch.OutOfMemoryError
NO_MEMORY = r"allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
NO_WORKER = r"DataLoader worker.*(killed|exited unexpectedly)"


@contextlib.contextmanager
def explained(cfg: Config) -> Iterator[None]:
    """Turn the faults that a user can mend into a UserError: a number that is none, memory, disk, a dead worker."""
    try:
        yield
    except NotFinite as error:
        raise UserError(_not_finite(cfg, error)) from None
    except (RuntimeError, MemoryError, OSError, EOFError, SafetensorError) as error:
        sentence = _sentence(cfg, error)
        if sentence is None:
            raise
        _let_go(error)
        raise UserError(f"{sentence} Go on with resume=auto; the checkpoints that are there are whole.") from None


def _not_finite(cfg: Config, error: NotFinite) -> str:
    """What a loss or a gradient that is no number means; its batches are kept, to be replayed."""
    name = f"failed_batch_of_process_{rank()}" if rank() else "failed_batch"
    for k, batch in enumerate(error.batches, start=1):
        folder = save_batch(cfg.run_dir / (f"{name}_{k}" if k > 1 else name), batch, error.step)
    photos = ", ".join(str(image_id) for batch in error.batches for image_id in batch["image_ids"])
    lasting = f" for the {SKIPPED_IN_A_ROW}th step in a row" if error.lasting else ""
    return (
        f"The {error.what} is not a finite number at step {error.step + 1}{lasting} (photos {photos}); the batch is "
        f"in {folder.name}/ and the last checkpoint is untouched: lower lr, or use precision=fp32."
    )


def _sentence(cfg: Config, error: Exception) -> str | None:
    """What happened, and what to change; None for anything that is not known."""
    text = str(error)
    if isinstance(error, (ConnectionError, EOFError)) or re.search(NO_WORKER, text):
        first = (text.splitlines() or ["it"])[0].rstrip(". ")
        return f"A data-loader worker died ({first}): lower num_workers, or free memory."
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or re.search(NO_MEMORY, text):
        return (
            f"The memory is too small for batch_size={cfg.batch_size} at image_size={cfg.image_size}: halve "
            "batch_size (and double grad_accumulation), lower image_size, or use precision=bf16 or fp16."
        )
    if "does not have a deterministic implementation" in text:
        return f"deterministic=true cannot be had with this model on this device ({text.split(',')[0]}): leave it out."
    number = re.search(r"\(os error (\d+)\)", text)  # safetensors has the system's number in its text only
    if (int(number[1]) if number else getattr(error, "errno", None)) in FULL:
        words = getattr(error, "strerror", None) or text.rsplit(": ", 1)[-1]
        return f"There is no room to write in {cfg.run_dir.name}/ ({words}): make room."
    return None


def _let_go(error: BaseException) -> None:
    """Free what the failed step holds: the GPU's memory, and the workers of the data loader.

    As long as the loader lives, PyTorch reports its dead worker again whenever any process ends.
    """
    old = signal.getsignal(signal.SIGCHLD)
    with contextlib.suppress(ValueError):  # not the main thread: PyTorch does not watch there
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    with contextlib.suppress(ValueError, TypeError):
        signal.signal(signal.SIGCHLD, old)


class StopRequests:
    """Turns Ctrl-C and SIGTERM into a request (``asked``) that the loop sees after its step.

    Several processes stop after the same step: what one was told, all know when they :meth:`agree`.
    """

    def __enter__(self) -> StopRequests:
        self.told, self.agreed, self.old = False, False, {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: then nobody can send it a signal either
            pass
        return self

    def _ask(self, *_) -> None:
        self.told = True

    @property
    def asked(self) -> bool:
        return self.agreed if several() else self.told

    def agree(self) -> bool:
        self.agreed = any_of(self.told)
        return self.agreed

    def __exit__(self, *_) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def save_batch(folder: Path, batch: dict, step: int) -> Path:
    """Keep a collated batch for :func:`load_batch`: tensors in safetensors (NaN survives there), the rest in JSON."""
    tensors = {"pixel_values": batch["pixel_values"].contiguous()}
    for k, label in enumerate(batch["labels"]):
        tensors |= {f"labels.{k}.{name}": torch.as_tensor(value) for name, value in label.items()}
    about = {"step": step} | {name: value for name, value in batch.items() if name not in ("pixel_values", "labels")}

    def fill(target: Path) -> None:
        save_file(tensors, target / "batch.safetensors")
        write_json(target / "batch.json", about)

    return checkpoints.write_folder(folder, fill)


def load_batch(folder: Path) -> dict:
    """A batch as the collator made it, to replay a failed step: ``train_step(build(cfg), [load_batch(folder)])``."""
    about, tensors = orjson.loads((folder / "batch.json").read_bytes()), load_file(folder / "batch.safetensors")
    labels: list[dict] = [{} for _ in about["sizes"]]
    for name in [name for name in tensors if name.startswith("labels.")]:
        _, k, part = name.split(".")
        labels[int(k)][part] = tensors.pop(name)
    return {**tensors, **about, "labels": labels}
