"""One notebook, executed without a browser, by this very Python and with an error that a reader understands."""

import contextlib
import io
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from helpers.files import ROOT, without_folders, write_atomic

KERNEL_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning of the debugger in every executed notebook
    "KINETO_LOG_LEVEL": "99",  # the profiler's C++ chatter goes past Python to the terminal
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}


def execute(path: Path, copy: Path, parameters: dict, cell_minutes: float | None = None) -> str | None:
    """Run a notebook under a temporary name beside ``copy``, then rename it; a message if it failed.

    Ctrl-C and SIGTERM go to the kernel, so that a training cell can finish its step and write its checkpoint.
    """
    running = copy.with_name(f".{copy.stem}.running.ipynb")
    running.unlink(missing_ok=True)  # of a run that was killed
    kernels: list[AsyncKernelManager] = []
    cells = len(nbformat.read(path, as_version=4).cells)
    form = "{desc}: cell {n_fmt}/{total_fmt} |{bar:20}| {elapsed}{postfix}"
    bar = tqdm(total=cells, desc=path.stem, leave=False, disable=None, bar_format=form)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it reports is in our message
    failure = reason = None
    try:
        with _signals_to(kernels):
            papermill.execute_notebook(
                *(str(file).replace("{", "{{").replace("}", "}}") for file in (path, running)),
                parameters,
                kernel_name="python3",
                language="python",
                cwd=str(ROOT),
                progress_bar=False,
                kernel_manager_class=_kernel_class(kernels),
                extra_arguments=["--log-level=CRITICAL"],
                coalesce_streams=True,
                stderr_file=_LastLine(bar),
                on_cell_start=lambda cell, cell_index: bar.set_postfix_str("") or bar.update(cell_index - bar.n),
                execution_timeout=round(cell_minutes * 60) or 1 if cell_minutes else None,
                start_timeout=180,  # a busy machine, a cold disk
                shutdown_kernel="immediate" if cell_minutes else "graceful",
            )
    except PapermillExecutionError as error:
        words = (error.evalue.strip() or "no message").splitlines()[0]
        words = words if error.ename == "UserError" else f"{error.ename}: {words}"
        failure = f"{path.stem} failed in cell [{error.exec_count}]: {words}"
    except CellTimeoutError:
        reason = f"it ran for more than {cell_minutes:g} minutes, the limit that --cell-minutes gives a cell"
    except DeadKernelError:
        reason = "the kernel died (out of memory, or killed), so nothing after this cell has run"
    except RuntimeError as error:  # of jupyter_client, before the first cell
        reason = f"the kernel did not start ({str(error).splitlines()[0]})"
    finally:
        bar.close()
    cell = _finish_copy(running, copy, reason) if running.exists() else None
    return f"{path.stem} failed{f' in cell [{cell}]' if cell else ''}: {reason}." if reason else failure


def _kernel_class(started: list) -> type[AsyncKernelManager]:
    """A kernel manager that notes itself in ``started`` and starts this very Python."""

    class Kernel(AsyncKernelManager):
        def __init__(self, **options) -> None:
            # Without folders to search, Jupyter's own python3 is left: whatever kernels are registered on the machine.
            super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **options)
            self.kernel_spec.env = {k: v for k, v in KERNEL_ENVIRONMENT.items() if k not in os.environ}
            started.append(self)

    return Kernel


@contextlib.contextmanager
def _signals_to(kernels: list) -> Iterator[None]:
    """While in here, Ctrl-C and SIGTERM interrupt the kernel; a second request ends the runner itself."""

    def forward(number: int, _frame) -> None:
        signal.signal(number, old[number])
        kernel = getattr(kernels[-1].provisioner, "pid", None) if kernels else None
        if not kernel:
            raise KeyboardInterrupt
        os.kill(kernel, signal.SIGINT)

    old = {}
    with contextlib.suppress(ValueError):  # not the main thread, where signals do not arrive
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


class _LastLine(io.TextIOBase):
    """A file for papermill: shows the last line written to it (a kernel's progress bar) behind the bar of the cells."""

    def __init__(self, bar: tqdm) -> None:
        self.bar = bar

    def write(self, text: str) -> None:
        lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
        if lines and not self.bar.disable:
            self.bar.set_postfix_str(re.sub(r"\|[^|\w]*\|", "", lines[-1])[:70])  # one bar of blocks is enough


def _finish_copy(running: Path, copy: Path, reason: str | None) -> int | None:
    """Give the executed notebook its final name, without this machine's folders in it.

    papermill leaves a notebook whose kernel died as if it were complete: with a ``reason``, the error is put in place.
    Gives the number of the cell that was running last.
    """
    notebook = nbformat.read(running, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    started = [cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")]
    if reason and started:
        failed = started[-1]
        failed.execution_count = len(started)
        error = {"ename": "Stopped", "evalue": reason, "traceback": [f"Stopped: {reason}."]}
        failed.outputs.append(nbformat.v4.new_output("error", **error))
        failed.metadata["papermill"].update(exception=True, status="failed")
        notebook.metadata["papermill"]["exception"] = True
        for cell in code[code.index(failed) + 1 :]:
            cell.metadata["papermill"]["status"] = "pending"
    notebook.metadata["papermill"].update(input_path=f"notebooks/{copy.name}", output_path=copy.name)
    write_atomic(copy, without_folders(nbformat.writes(notebook)))
    running.unlink()
    return len(started)
