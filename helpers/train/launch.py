"""``processes=N``: train in several processes of this machine, which ``torchrun`` starts, from a cell or a script."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

import psutil
import torch
from joblib import cpu_count

from helpers.config import Config, as_text
from helpers.files import ROOT, UserError
from helpers.train.faults import StopRequests
from helpers.train.run_folder import process, read_log


def train_in_processes(cfg: Config, on_flush: Callable | None = None) -> list[str]:
    """Train ``cfg`` in ``cfg.processes`` processes to the end; what there is to say.

    ``on_flush`` gets the losses and epochs of the run's log whenever it has grown. Ctrl-C and SIGTERM go to the
    processes, which finish their step and write the checkpoint. Raises UserError with the one sentence that they say.
    """
    if cfg.copy_paste != "none":
        raise UserError(f"copy_paste={cfg.copy_paste} trains in one process: use processes=1.")
    if torch.cuda.is_available() and cfg.processes > torch.cuda.device_count():
        raise UserError(f"processes={cfg.processes}, but there are {torch.cuda.device_count()} GPUs: one for each.")
    values = {name: value for name, value in cfg.as_json().items() if value not in (None, []) and name != "preset"}
    given = [f"{name}={as_text(value)}" for name, value in values.items()]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={cfg.processes}"]
    command += ["-m", "helpers.train", "--preset", cfg.preset, *given]
    cores = max(1, cpu_count() // cfg.processes)
    env = {"OMP_NUM_THREADS": str(cores), **os.environ, "STARTED_BY": process()}
    options = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": env, "start_new_session": True}
    leftovers = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # torchrun leaves a folder behind
    with leftovers as env["TMPDIR"], tempfile.TemporaryFile("w+") as errors, StopRequests() as stop:
        with subprocess.Popen(command, stderr=errors, **options) as started:
            try:
                said = _watched(started, stop, cfg, on_flush)
            finally:
                if started.poll() is None:
                    started.terminate()
        errors.seek(0)
        if started.returncode:
            words = errors.read()
            sentence = re.search(r"^Process [\d, ]+ of \d+.*$", words, re.MULTILINE)
            raise UserError(sentence[0]) if sentence else RuntimeError(f"The processes failed:\n{words[-4000:]}")
    return said.splitlines()


def _watched(started: subprocess.Popen, stop: StopRequests, cfg: Config, on_flush: Callable | None) -> str:
    """What the processes write to standard output until they end."""
    file, seen, told = cfg.run_dir / "losses.csv", None, False
    while True:
        try:
            return started.communicate(timeout=1)[0]
        except subprocess.TimeoutExpired:
            pass
        if stop.told and not told:
            told = True  # the processes themselves: torchrun would kill them after half a minute
            for worker in psutil.Process(started.pid).children():
                worker.terminate()
        now = file.stat().st_mtime_ns if file.is_file() else None
        if on_flush and now != seen and (log := read_log(cfg.run_dir))["losses"]:
            on_flush(SimpleNamespace(**log, step=0, total_steps=1))
        seen = now
