"""Where the seconds of ``make run`` go: ``python benchmarks/whole_run.py [--slowest 4]``, after a run.

Read from the executed notebooks in ``artifacts/notebooks``, where papermill has noted when each cell began and ended.
What lies outside of the cells is the start and the end of the kernel; what a cell imports is part of the cell.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
import orjson
from machine import header

from helpers.cli import command
from helpers.files import ROOT, UserError


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slowest", type=int, default=4, help="cells shown of each notebook")
    options = parser.parse_args(argv)
    folder = ROOT / "artifacts" / "notebooks"
    if not (folder / "timings.json").exists():
        raise UserError("There is no run in artifacts/notebooks: call make run first.")
    times = orjson.loads((folder / "timings.json").read_bytes())
    print(header("torch", "papermill"), end="\n\n")
    print("| notebook | seconds | the cell, or what else |\n| --- | ---: | --- |")
    for name, row in times.items():
        cells = cell_seconds(folder / f"{name}.ipynb")
        print(f"| **{name}** | **{row['seconds']:.1f}** | |")
        print(f"| | {row['seconds'] - sum(cells.values()):.1f} | start and end of the kernel, between the cells |")
        slowest = sorted(cells, key=cells.get, reverse=True)[: options.slowest]
        for cell in slowest:
            print(f"| | {cells[cell]:.1f} | {cell} |")
        print(
            f"| | {sum(cells.values()) - sum(cells[cell] for cell in slowest):.1f} | {len(cells) - len(slowest)} "
            f"other cells |"
        )
    print(f"| **all** | **{sum(row['seconds'] for row in times.values()):.1f}** | |")
    return 0


def cell_seconds(notebook: Path) -> dict[str, float]:
    """Seconds of each code cell that was run, by its number and the last line of its code."""
    code = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    return {
        f"[{number}] `{_last_line(cell.source)}`": cell.metadata["papermill"].get("duration") or 0.0
        for number, cell in enumerate(code, 1)
        if "papermill" in cell.metadata
    }


def _last_line(source: str) -> str:
    lines = [line.strip() for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]
    return (lines[-1] if lines else "")[:90].replace("|", "/")


if __name__ == "__main__":
    command(main)
