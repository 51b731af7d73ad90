"""How long the set-up takes, by pip as it is and as the Makefile does it: ``python benchmarks/set_up.py``.

Each side installs requirements.txt into a fresh environment of its own, with nothing left of earlier downloads, and
imports what trains, twice: the first import compiles what was not compiled before. Gigabytes come over the
network, so wall clock is the network's too; processor time is not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import header

from helpers.files import ROOT

REQUIREMENTS = ["-r", str(ROOT / "requirements.txt")]
UV = "{python} -m pip install --quiet --no-cache-dir {uv}"
SIDES = {
    "pip": ["{python} -m pip install --quiet --no-cache-dir"],
    "pip, nothing compiled": ["{python} -m pip install --quiet --no-cache-dir --no-compile"],
    "uv": [UV, "{bin}/uv pip install --quiet --compile-bytecode --python {python}"],
    "uv, nothing compiled": [UV, "{bin}/uv pip install --quiet --python {python}"],
}
IMPORTS = "import torch, transformers, accelerate, albumentations, matplotlib, papermill"


def measure(commands: list[str], folder: Path) -> list[float]:
    """Seconds of the wall clock and of processors for the set-up, seconds of the first import and of the next."""
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    (uv,) = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("uv==")]
    words = {"python": folder / "env/bin/python", "bin": folder / "env/bin", "uv": uv}
    commands = [command.format(**words).split() for command in commands]
    commands[-1] += REQUIREMENTS
    before, began = os.times(), time.perf_counter()
    for command in commands:
        subprocess.run(command, env={**os.environ, "UV_CACHE_DIR": str(folder / "cache")}, check=True)
    after, seconds = os.times(), [time.perf_counter() - began]
    seconds.append(sum(after[2:4]) - sum(before[2:4]))  # of children, user and system
    for _ in range(2):
        began = time.perf_counter()
        subprocess.run([words["python"], "-c", IMPORTS], check=True)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SIDES, nargs="+", default=list(SIDES))
    print(header("torch", "fiftyone"), flush=True)
    print("| | seconds | of processors | first import | next |\n| --- | ---: | ---: | ---: | ---: |")
    for name in parser.parse_args().only:
        folder = Path(tempfile.mkdtemp(dir=ROOT / "artifacts"))  # on the project's disk, as .venv/ is
        try:
            print(f"| {name} |", " | ".join(f"{value:.1f}" for value in measure(SIDES[name], folder)), "|", flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
