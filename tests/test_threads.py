"""Waiting threads sleep where other work needs the cores, and nowhere else."""

from __future__ import annotations

import os
import sys

import pytest

from helpers import threads


def not_asked(monkeypatch) -> None:
    """No policy is set, and none is left behind: only what monkeypatch has set does it take back."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    "percent,cores,ours,asked,wanted",
    [
        (5, 2, 2, None, None),
        (80, 2, 2, None, "PASSIVE"),
        (80, 2, 2, "ACTIVE", "ACTIVE"),  # who sets the policy is not overruled
        (50, 64, 2, None, None),  # a container's two cores of a large machine that has others to spare
        (99, 64, 2, None, "PASSIVE"),
    ],
)
def test_spin_alone_and_sleep_beside_others(monkeypatch, percent, cores, ours, asked, wanted):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if asked:
        monkeypatch.setenv("OMP_WAIT_POLICY", asked)
    else:
        not_asked(monkeypatch)
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda interval: percent)
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda: cores)
    monkeypatch.setattr(threads, "cpu_count", lambda: ours)
    threads.wait_as_the_machine_allows()
    assert os.environ.get("OMP_WAIT_POLICY") == wanted


def test_what_ends_meanwhile_is_no_neighbour(monkeypatch):
    """The notebook before is still ending when the next one begins."""
    looks = iter([90, 90, 3])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    not_asked(monkeypatch)
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda interval: next(looks))
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda: 2)
    monkeypatch.setattr(threads, "cpu_count", lambda: 2)
    threads.wait_as_the_machine_allows()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_too_late_once_pytorch_is_there(monkeypatch):
    import torch  # noqa: F401, what the function looks for

    not_asked(monkeypatch)
    monkeypatch.setattr(threads.psutil, "cpu_percent", lambda interval: pytest.fail("it looked"))
    threads.wait_as_the_machine_allows()
