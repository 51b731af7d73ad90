"""Which device, in which precision: a table of machines that are not here."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from helpers import devices
from helpers.files import UserError

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # of the pinned wheels


def machine(monkeypatch, capability: tuple[int, int] | None, cpu_flags: str = "") -> None:
    """A GPU of this compute capability, or none; PyTorch says that it "supports" bf16 wherever it can emulate it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "A card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ARCHITECTURES)
    native = capability is not None and capability >= (8, 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(devices, "_cpu_has_bf16", lambda: "bf16" in cpu_flags)


@pytest.mark.parametrize(
    "capability, cpu_flags, wanted, precision",
    [
        ((7, 5), "", "auto", "fp16"),  # T4: bf16 is emulated
        ((7, 0), "", "auto", "fp16"),  # V100
        ((8, 0), "", "auto", "bf16"),  # A100
        ((9, 0), "", "auto", "bf16"),  # H100
        (None, "avx512_bf16", "auto", "bf16"),
        (None, "", "auto", "fp32"),
        ((7, 5), "", "bf16", "bf16"),  # who asks for it gets it
        (None, "", "fp16", "fp32"),
    ],
    ids=["T4", "V100", "A100", "H100", "CPU-with-bf16", "CPU", "T4-asked-for-bf16", "CPU-asked-for-fp16"],
)
def test_precision_by_machine(monkeypatch, capability, cpu_flags, wanted, precision):
    """Trap 18: ``is_bf16_supported()`` counts emulation, and ``auto`` then chose bf16 on a T4, many times slower."""
    machine(monkeypatch, capability, cpu_flags)
    assert devices.resolve_precision(wanted)[0] == precision


@pytest.fixture
def no_request(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


@pytest.mark.parametrize("sign", ["device file", "nvidia-smi"])
def test_gpu_that_cannot_be_used_is_no_cpu_run(monkeypatch, no_request, sign):
    """Trap 19: with an old driver ``cuda.is_available()`` is false, and nobody notices that the CPU trains."""
    machine(monkeypatch, None)
    monkeypatch.setattr(devices.Path, "exists", lambda path: sign == "device file" and str(path) == "/dev/nvidia0")
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if sign == "nvidia-smi" else None)
    with pytest.raises(UserError, match="NVIDIA GPU here, .* newer driver .*580.* CUDA_VISIBLE_DEVICES= "):
        devices.pick_device()
    for asked in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
        assert devices.pick_device().type == "cpu"


def test_without_a_gpu_the_cpu_needs_no_words(monkeypatch, no_request):
    machine(monkeypatch, None)
    monkeypatch.setattr(devices.Path, "exists", lambda path: False)
    monkeypatch.setattr(devices.shutil, "which", lambda name: None)
    assert devices.pick_device().type == "cpu"


def test_card_that_is_too_old_is_refused(monkeypatch, no_request):
    """PyTorch finds it, and ends in "no kernel image is available" in the first step."""
    machine(monkeypatch, (7, 0))
    with pytest.raises(UserError, match=r"A card, compute capability 7\.0.*is older.*from 7\.5 on"):
        devices.pick_device()
    machine(monkeypatch, (7, 5))
    assert devices.pick_device().type == "cuda"


def test_switches_of_a_gpu(monkeypatch):
    """Fast where it may be; with ``deterministic``, kernels in a fixed order alone."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    try:
        devices.set_up(torch.device("cuda"), deterministic=False)
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
        devices.set_up(torch.device("cuda"), deterministic=True)
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.use_deterministic_algorithms(False)


def test_training_refuses_before_anything_is_written(tmp_path):
    """The sentence comes from the command, without a traceback.

    (Here /dev/nvidia0 is a stand-in named by a test hook.)
    """
    code = (
        "import torch; from helpers import devices; torch.version.cuda = '13.0';"
        "devices.shutil.which = lambda name: '/usr/bin/nvidia-smi'; torch.cuda.is_available = lambda: False;"
        "from helpers.cli import command; command(lambda _: devices.pick_device())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "newer driver" in done.stderr


@pytest.mark.parametrize(
    "cores, threads, asked, processes, gpu, workers, threads_then",
    [
        (2, 2, 2, 1, False, 0, 2),  # where the CPU computes, all of two or three cores do
        (3, 3, 4, 1, False, 0, 3),
        (8, 8, 4, 1, False, 2, 6),  # of more, three quarters
        (8, 8, 1, 1, False, 1, 7),
        (64, 64, 4, 1, False, 4, 60),
        (2, 64, 4, 1, False, 0, 2),  # a container with two of a machine's 64 cores
        (1, 64, 2, 1, False, 0, 1),
        (2, 1, 2, 1, False, 1, 1),  # OMP_NUM_THREADS=1 leaves a core
        (8, 4, 4, 2, False, 1, 3),  # two processes share them
        (2, 2, 4, 1, True, 1, 1),  # beside a GPU one thread is enough
        (16, 16, 8, 1, True, 8, 8),
        (16, 8, 8, 2, True, 7, 1),
    ],
)
def test_threads_and_workers_are_no_more_than_the_cores(
    monkeypatch, cores, threads, asked, processes, gpu, workers, threads_then
):
    """joblib reads affinity and the cgroup's quota; PyTorch sees the machine's cores."""
    now = [threads]
    monkeypatch.setattr(devices, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    if processes > 1:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    for _ in range(2):  # the loader of the validation, after the one of the training
        assert (devices.share_cores(asked), now[-1]) == (workers, threads_then)
    assert processes * (workers + threads_then) <= cores
