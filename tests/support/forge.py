"""A warm process that trains in forked children, and hurts them at a chosen moment: a start costs a second instead of
ten.

    with Forge() as forge:
        forge.train(cfg, ("step", 2))  # kill -9 before the second step
        forge.train(cfg.with_(resume="auto"))

The children compute with one thread; runs are compared with runs from here only.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Ended:
    """How a child ended."""

    status: int  # its exit status; -9: killed
    message: str  # the run's notes, or the error
    began: int | None  # the step that it went on from, 0 for a new run, None if it did not come to that
    megabytes: float  # its largest resident memory
    files: int | None  # open at the end
    seconds: float


class Forge:
    def __enter__(self) -> Forge:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait(30)

    def train(self, cfg, *faults: tuple[str, int], scores=None, after: float | None = None) -> Ended:
        """Train in a child. ``faults``: (a moment of :func:`install`, its how-manieth time); ``after``: kill -9 after
        so many
        seconds; ``scores``: the mAP that each epoch is said to have."""
        values = {**cfg.as_json(), **{name: str(getattr(cfg, name)) for name in ("data_dir", "output_dir", "model")}}
        values = {name: value for name, value in values.items() if value not in (None, [])}
        self.process.stdin.write(
            json.dumps({"config": values, "faults": faults, "scores": scores, "after": after}) + "\n"
        )
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


# ---- in the child ----


def kill(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(*_, **__) -> None:
    os.killpg(0, signal.SIGTERM)  # as at a shutdown: the data loader's workers get it too


def half_a_file(_, path) -> None:
    Path(path).write_bytes(b"\0" * 1000)
    kill()


def half_removed(path, **_) -> None:
    min(Path(path).iterdir()).unlink()
    kill()


def kill_a_worker(*_, **__) -> None:
    import psutil

    psutil.Process().children()[0].send_signal(signal.SIGKILL)


def full(*_, **__) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # no file may be larger


def hook(module, name: str, count: int, act, when=lambda *_, **__: True, after: bool = False) -> None:
    """Call ``act`` before (``after``: after) the ``count``-th call of ``module.name`` for which ``when`` holds, with
    its arguments.
    """
    original, calls = getattr(module, name), []

    def hooked(*args, **kwargs):
        calls.append(1) if when(*args, **kwargs) else None
        now = len(calls) == count and when(*args, **kwargs)
        if now and not after:
            act(*args, **kwargs)
        result = original(*args, **kwargs)
        if now and after:
            act(*args, **kwargs)
        return result

    setattr(module, name, hooked)


def named(start: str):
    return lambda path, *_, **__: Path(path).name.startswith(start)


def to(start: str, end: str = ""):
    return lambda _, path, **__: Path(path).name.startswith(start) and Path(path).name.endswith(end)


def inside(start: str):
    return lambda _, path: Path(path).parent.name.startswith(start)


def install(at: str, n: int) -> None:
    """Make the fault ``at`` happen at its ``n``-th occasion."""
    from helpers import engine
    from helpers.train import checkpoints, training

    {
        "step": lambda: hook(engine, "train_step", n, kill),
        "inside a step": lambda: hook(
            engine, "loss_parts", n, kill
        ),  # the gradients are there, the weights are the old ones
        "validation": lambda: hook(training, "coco_metrics", n, kill),
        "log": lambda: hook(os, "replace", n, kill, to("losses.csv")),  # it is written under its temporary name
        "after the log": lambda: hook(checkpoints, "write_folder", n, kill, named("checkpoint_epoch")),
        "half a file": lambda: hook(checkpoints, "save_file", n, half_a_file),
        "before the state": lambda: hook(checkpoints, "write_json", n, kill, named("trainer_state.json")),
        "before the checksums": lambda: hook(checkpoints, "write_json", n, kill, named("checksums.json")),
        "before the rename": lambda: hook(os, "rename", n, kill, to("checkpoint_epoch")),
        "before last": lambda: hook(checkpoints, "copy_folder", n, kill, to("checkpoint_last")),
        "between the renames of last": lambda: hook(os, "rename", n, kill, to(".checkpoint_last", ".old"), after=True),
        "between the renames of best": lambda: hook(os, "rename", n, kill, to(".checkpoint_best", ".old"), after=True),
        "before best": lambda: hook(checkpoints, "copy_folder", n, kill, to("checkpoint_best")),
        "inside best": lambda: hook(os, "link", n, kill, inside(".checkpoint_best"), after=True),
        "half removed": lambda: hook(shutil, "rmtree", n, half_removed, named("checkpoint_epoch")),
        "stop": lambda: hook(engine, "train_step", n, stop),
        "stop in validation": lambda: hook(training, "predict", n, stop),
        "worker": lambda: hook(engine, "train_step", n, kill_a_worker),
        "worker of the validation": lambda: hook(engine, "to_coco", n, kill_a_worker),
        "disk full": lambda: hook(checkpoints, "write_folder", n, full),
    }[at]()


def say_scores(scores: list[float]) -> None:
    """Let the validation find the AP that the test wants: which checkpoint is the best is then known."""
    from helpers.train import training

    finish, epoch = training._finish_epoch, []
    training._finish_epoch = lambda run, *rest: (epoch.append(run.epoch), finish(run, *rest))
    training.coco_metrics = lambda *_: {"stats": {"mAP": scores[epoch[-1]], "mAP50": scores[epoch[-1]]}}


def child(job: dict, report: Path) -> int:
    from helpers.config import load_config
    from helpers.files import UserError
    from helpers.train import checkpoints, run_folder, training

    os.setsid()
    with open(report.with_suffix(".out"), "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    if job["scores"]:
        say_scores(job["scores"])
    for at, count in job["faults"]:
        install(at, count)
    load = checkpoints.load_state

    def noted(*args):
        state = load(*args)
        report.with_suffix(".began").write_text(str(state["step"]))
        return state

    checkpoints.load_state = noted
    hook(run_folder, "empty", 1, lambda _: report.with_suffix(".began").write_text("0"))
    if job["after"]:
        signal.signal(signal.SIGALRM, kill)
        signal.setitimer(signal.ITIMER_REAL, job["after"])
    status, message = 0, ""
    try:
        run = training.train(load_config(**job["config"]))
        message = " ".join(run.notes)
    except UserError as error:
        status, message = 1, str(error)
    except BaseException:
        status, message = 2, traceback.format_exc()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    report.write_text(json.dumps({"message": message, "files": len(os.listdir("/proc/self/fd"))}))
    return status


def main() -> None:
    import tempfile

    import albumentations  # noqa: F401  what a training imports late, imported once
    import hotcoco  # noqa: F401
    import timm  # noqa: F401
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401
    from transformers import DetrForObjectDetection, DFineForObjectDetection  # noqa: F401

    import helpers.train.training  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(sys.stdin):
            report, began = Path(folder) / f"{number}.json", time.monotonic()
            pid = os.fork()
            if pid == 0:
                status = 3
                try:
                    status = child(json.loads(line), report)
                finally:
                    os._exit(status)
            _, status, usage = os.wait4(pid, 0)
            said = (
                json.loads(report.read_text())
                if report.exists()
                else {"message": report.with_suffix(".out").read_text()[-2000:], "files": None}
            )
            began_at = report.with_suffix(".began")
            print(
                json.dumps(
                    {
                        "status": os.waitstatus_to_exitcode(status),
                        "began": int(began_at.read_text()) if began_at.exists() else None,
                        "megabytes": usage.ru_maxrss / 1024,
                        "seconds": time.monotonic() - began,
                        **said,
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
