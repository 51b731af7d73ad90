"""The profiler's tables: where a GPU computes, on the events that the profiler gives there; and on this machine."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from helpers.train.profiling import ACTIVE, Profile, _breakdown, _operators

CPU, CUDA = DeviceType.CPU, DeviceType.CUDA


class Event:
    """A row of ``key_averages()``, times in milliseconds a step."""

    def __init__(self, key: str, device: DeviceType, cpu: float = 0, self_cpu: float = 0, self_device: float = 0):
        self.key, self.device_type, self.count = key, device, 2 * ACTIVE
        self.cpu_time_total, self.self_cpu_time_total = cpu * 1e3 * ACTIVE, self_cpu * 1e3 * ACTIVE
        self.self_device_time_total = self_device * 1e3 * ACTIVE


@pytest.fixture
def on_a_gpu() -> list[Event]:
    """What CUDA's tracer brings beside the operators: the kernels, the ranges as the GPU saw them, and the waits."""
    return [
        Event("ProfilerStep*", CPU, cpu=100),
        Event("ProfilerStep*", CUDA, self_device=60),
        Event("forward", CPU, cpu=40, self_cpu=1),
        Event("forward", CUDA, cpu=0, self_device=35),
        Event("loss and matcher", CPU, cpu=10),
        Event("backward", CPU, cpu=45),
        Event("backward", CUDA, self_device=44),
        Event("optimizer", CPU, cpu=3),
        Event("data", CPU, cpu=2),
        Event("cudaDeviceSynchronize", CPU, cpu=70, self_cpu=70),
        Event("cudaLaunchKernel", CPU, self_cpu=12),
        Event("aten::convolution", CPU, cpu=9, self_cpu=1),
        Event("aten::cudnn_convolution", CPU, cpu=8, self_cpu=8, self_device=20),
        Event("aten::mm", CPU, self_cpu=5, self_device=30),
        Event("aten::copy_", CPU, self_cpu=6, self_device=4),
        Event("sm90_xmma_gemm_bf16", CUDA, self_device=30),
        Event("cudnn::conv2d", CUDA, self_device=20),
        Event("Memcpy HtoD (Pinned -> Device)", CUDA, self_device=4),
    ]


def test_each_kernel_counts_once(on_a_gpu):
    """cudaDeviceSynchronize came first, by the processor's time, and each kernel stood beside its operator."""
    table = _operators(on_a_gpu)
    assert table["operator"].tolist() == ["aten::mm", "aten::cudnn_convolution", "aten::copy_"]
    assert table["self_ms"].tolist() == pytest.approx([30, 20, 4]) and table["calls"].tolist() == [2, 2, 2]


def test_ranges_are_the_hosts_clock(on_a_gpu):
    """It waits for the kernels at the end of each range; the GPU's rows of the same names are not added."""
    for event in on_a_gpu:
        if event.device_type == CUDA:
            event.cpu_time_total = 1e9  # must not be read
    table = _breakdown(on_a_gpu, step_ms=101.0).set_index("range")["ms"]
    assert table.to_dict() == pytest.approx(
        {"data": 2, "forward": 30, "loss and matcher": 10, "backward": 45, "optimizer": 3, "other": 11}
    )


def test_a_gpu_that_waits_for_the_processor_is_told_of(on_a_gpu):
    """Where its kernels fill half of a step and more, the slowest range is the bottleneck; else starting them is."""
    table, operators = _breakdown(on_a_gpu, step_ms=101.0), _operators(on_a_gpu)
    kernels = operators["self_ms"].sum()
    assert "bottleneck is backward" in Profile(table, operators, 8.0, kernels).sentence()
    sentence = Profile(table, operators, 8.0, kernels / 2).sentence()
    assert "27 of 101 ms a step (27%)" in sentence and "batch_size" in sentence


def test_without_a_gpu_the_processors_own_time():
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(ACTIVE):
            with record_function("forward"):
                torch.ones(64, 64) @ torch.ones(64, 64)
    table = _operators(profiler.key_averages())
    assert {"aten::mm"} <= set(table["operator"]) and "forward" not in set(table["operator"])
    assert (table["self_ms"] > 0).all() and table["self_ms"].is_monotonic_decreasing
