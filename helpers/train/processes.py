"""Several processes that train one run together: what they tell each other beside the gradients, and how one fails.

Started by ``torchrun`` or ``accelerate launch``; alone, nothing here does anything. The first of them (rank 0) writes.
Flags and objects go from CPU to CPU (gloo), so that no GPU is waited for.
"""

import contextlib
import functools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import distributed, nn

from helpers.devices import pick_device
from helpers.files import UserError
from helpers.model import Detector
from helpers.train.losses import batched_loss_for, whole_batch_loss

LAST_WORDS = 10.0  # seconds in which the others say how they ended: on a busy machine they take some
LOST = r"peer|[Cc]onnection|NCCL|[Tt]imed out|pair closure"  # of a process, in the words of those who wait for it


class Lost(RuntimeError):
    """Another process cannot go on, so this one cannot."""


def several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if several() else 1


def rank() -> int:
    """This process's number; the first, 0, writes."""
    return distributed.get_rank() if several() else 0


@functools.lru_cache(maxsize=1)
def _cpus(_everyone):
    return distributed.new_group(backend="gloo")


def any_of(flag: bool) -> bool:
    """Whether ``flag`` is set in one of the processes; all must ask."""
    if several():
        flags = torch.tensor(float(flag))
        distributed.all_reduce(flags, group=_cpus(distributed.group.WORLD))
        return bool(flags)
    return flag


def gathered(value) -> list | None:
    """The values of all processes in the first one, None in the others."""
    if not several():
        return [value]
    values = None if rank() else [None] * world()
    distributed.gather_object(value, values, group=_cpus(distributed.group.WORLD))
    return values


def from_first(make: Callable):
    """What ``make()`` gives in the first process, which alone calls it; the others lose it where that raises."""
    if not several():
        return make()
    told = [False, None]
    try:
        told = [True, None if rank() else make()]
    finally:
        distributed.broadcast_object_list(told, group=_cpus(distributed.group.WORLD))
    if not told[0]:
        raise Lost("The first process could not begin.")
    return told[1]


def same_statistics(model: nn.Module) -> None:
    """The running statistics of the first process everywhere: each saw photos of its own since the last step began."""
    for name, buffer in model.named_buffers() if several() else ():
        if "running_" in name:
            distributed.broadcast(buffer, 0)


def get_ready(accelerator: Accelerator, detector: Detector, seed: int) -> dict | None:
    """Prepare a loaded detector for DDP, before ``accelerator.prepare``; None alone.

    Returns what a process computes that has no photo for a step, as all must take part in it: a black photo without
    objects, which counts nothing in the loss. Passed through once, it shows whether a step may leave weights without a
    gradient (D-FINE's denoising without objects), which DDP must then look for.
    """
    if not several():
        return None
    if batched_loss_for(detector.model) is None:
        detector.model.loss_function = whole_batch_loss(detector.model.loss_function)
    stand_in = _no_photo(detector)
    inputs = detector.preprocess.to_device(stand_in, accelerator.device)
    detector.model(**inputs).loss.backward()
    unused = any(weight.requires_grad and weight.grad is None for weight in detector.model.parameters())
    detector.model.zero_grad(set_to_none=True)
    accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=unused)
    set_seed(seed + rank())  # dropout is another one in each
    return stand_in


def _no_photo(detector: Detector) -> dict:
    side = detector.preprocess.image_size
    sample = {"image": np.zeros((side, side, 3), np.uint8), "boxes_xyxy": np.zeros((0, 4), np.float32)}
    sample |= {"class_labels": np.zeros(0, np.int64), "image_id": 0, "orig_size": (side, side)}
    batch = detector.preprocess.collate([sample])
    batch["labels"][0]["absent"] = torch.tensor(True)
    return {**batch, "image_ids": []}


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the other processes, if any; when one fails, one of them says which and why, and all end.

    Those that only lost it leave with SystemExit, without a word. One that was killed is named by the first of them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    PartialState(cpu=pick_device().type == "cpu")
    _cpus(distributed.group.WORLD)
    try:
        yield
    except Exception as error:
        raise _last_word(error) from (None if isinstance(error, UserError) else error)


def _last_word(error: Exception) -> BaseException:
    """What this process leaves with, after all have said how they ended, or ``LAST_WORDS``."""
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends everyone after the first
    only_lost = isinstance(error, Lost) or isinstance(error, RuntimeError) and re.search(LOST, str(error))
    mine = "" if only_lost else str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    try:
        said = _exchange(mine)
    except RuntimeError:  # the first process held the store, and is gone
        said = {rank(): mine}
    faults = sorted((text.startswith("The gradient"), number) for number, text in said.items() if text)
    if faults:  # a gradient that is no number is everyone's, the loss that it comes from is not
        if faults[0][1] != rank():
            return SystemExit(1)
        return UserError(f"Process {rank()} of {world()}: {error}") if isinstance(error, UserError) else error
    dead = sorted(set(range(world())) - said.keys()) or ["another"]
    if rank() != min(said):
        return SystemExit(1)
    return UserError(
        f"Process {', '.join(map(str, dead))} of {world()} died without a word (killed, perhaps for want of memory): "
        "go on with resume=auto; the checkpoints that are there are whole."
    )


def _exchange(mine: str) -> dict[int, str]:
    """What each process said of its end, of those that could."""
    store = distributed.distributed_c10d._get_default_store()
    store.set(f"ended/{rank()}", mine)
    until = time.monotonic() + LAST_WORDS
    ended = lambda: [number for number in range(world()) if store.check([f"ended/{number}"])]
    while len(ended()) < world() and time.monotonic() < until:
        time.sleep(0.1)
    return {number: store.get(f"ended/{number}").decode() for number in ended()}
