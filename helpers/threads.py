"""How a notebook's threads wait for each other on a machine that has other work."""

import os
import sys

import psutil
from joblib import cpu_count  # that this process may use: affinity and a container's quota are seen


def wait_as_the_machine_allows() -> None:
    """Set ``OMP_WAIT_POLICY=PASSIVE`` where other processes take some of the cores that this one would compute on.

    OpenMP's threads spin while they wait for each other: beside a neighbour that is half as fast as sleeping, alone
    half as fast again (benchmarks/shared_machine.py). It is read when PyTorch is loaded, so this comes before; what is
    set already stays. It takes 0.4 s on a machine without other work.
    """
    if "OMP_WAIT_POLICY" in os.environ or "torch" in sys.modules:
        return
    # up to three looks: what the notebook before leaves running ends meanwhile
    if all(_free_cores() < cpu_count() - 0.5 for _ in range(3)):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _free_cores() -> float:
    return psutil.cpu_count() * (1 - psutil.cpu_percent(0.4) / 100)
