"""``make gpu-check`` on this machine, at its smallest: the whole table is made and written, and a check that fails is a
line of it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import orjson
import torch

from helpers.files import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.py"


def table(folder, *arguments: str) -> tuple[int, str, dict]:
    """Status, output, and the rows by name."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(folder), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    about = orjson.loads((folder / "gpu_check.json").read_bytes())
    return ended.returncode, ended.stdout, {row["name"]: row for row in about["rows"]}


def test_what_runs_without_a_gpu_holds(tmp_path):
    """Every check that needs none, with the smallest sizes: what they find of right and wrong, not of speed."""
    status, output, rows = table(tmp_path)
    assert "No GPU here" in output
    assert status == 0, output
    wanted = (
        "device", "plain transformers", "batched loss", "boxes in bf16", "AP of", "by heart", "two runs", "resumed",
        "stays no number", "loss that is no number", "a step of", "from the loader", "loader alone", "batches at",
        "profiled step", "Trainer's recipe",
    )  # fmt: skip
    for part in wanted:
        assert any(part in name for name in rows), part
    assert output.count("holds ") >= len(rows) and all(row["holds"] and row["figure"] for row in rows.values())


def test_a_check_that_fails_is_a_line(tmp_path, monkeypatch):
    """Whatever goes wrong in one, the others are made, and the status says so."""
    sys.path.insert(0, str(SCRIPT.parent))
    import gpu_check

    def broken(lab):
        yield gpu_check.Row("first", True, "1")
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(lab):
        yield gpu_check.Row("second", False, "3 px", "1 px")

    lab = gpu_check.Lab(tmp_path, quick=True)
    rows = [row for check in (broken, wrong) for row in gpu_check.rows_of(check, lab, 60.0)]
    assert [(row.name, row.holds) for row in rows] == [("first", True), ("broken", False), ("second", False)]
    assert "OutOfMemoryError: CUDA out of memory" in rows[1].figure
    late = list(gpu_check.rows_of(wrong, lab, -1.0))
    assert [(row.holds, row.figure) for row in late] == [(False, "not begun")]
    monkeypatch.setattr(gpu_check, "CHECKS", (broken, wrong))
    assert gpu_check.main(["--quick", "--out", str(tmp_path)]) == 1
