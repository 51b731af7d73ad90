"""One training step with device ``cuda`` under FakeTensorMode: devices, types and shapes, without a GPU or a number.

As in training: the batch's way to the device, forward under autocast, the loss, clipping, the scaler, fused AdamW, the
averaged weights. Stubbed: the gradients (a backward pass needs a driver) and what the host reads. Guards: a tensor that
is left on the CPU, a type that an operation does not take, a loss in half precision, a new wait for the device. Only
DETR: what D-FINE's loss reads has no shape before it is computed.
"""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from tiny import config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from helpers.engine import Run, train_loader, train_step
from helpers.model import parameter_groups
from helpers.schedule import MovingAverage
from helpers.train.training import build


class Accelerator:
    """What the loop asks of accelerate's, for a GPU that is not there."""

    device, num_processes, process_index = torch.device("cuda"), 1, 0

    def __init__(self, run: Run, dtype: torch.dtype | None):
        self.run, self.dtype = run, dtype
        self.scaler = torch.amp.GradScaler("cuda") if dtype == torch.float16 else None

    def no_sync(self, model):
        return contextlib.nullcontext()

    def forward(self, **inputs):
        assert {value.device.type for value in (inputs["pixel_values"], inputs["labels"][0]["boxes"])} == {"cuda"}
        with torch.autocast("cuda", dtype=self.dtype, enabled=self.dtype is not None):
            return convert_outputs_to_fp32(self.run.detector.model)(**inputs)

    def backward(self, loss: torch.Tensor) -> None:
        assert loss.device.type == "cuda" and loss.dtype == torch.float32 and loss.requires_grad
        if self.scaler is not None:
            self.scaler.scale(loss)
        for parameter in self.run.detector.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    def clip_grad_norm_(self, parameters, norm: float) -> torch.Tensor:
        if self.scaler is not None:
            self.scaler.unscale_(self.run.optimizer)
        return nn.utils.clip_grad_norm_(parameters, norm)


@pytest.fixture
def waits(monkeypatch) -> list[str]:
    """PyTorch believes in a GPU as far as a step asks for one; what the host reads are ones, and is noted here. Any
    other way to read a value raises.
    """
    noted = []

    def read_list(tensor):
        noted.append("finite")
        return [True] * tensor.numel()

    def read_array(tensor):
        noted.append("matching")
        return np.ones(tuple(tensor.shape), np.float32)

    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(FakeTensor, "tolist", read_list)
    monkeypatch.setattr(FakeTensor, "numpy", read_array)
    monkeypatch.setattr(FakeTensor, "pin_memory", lambda tensor: tensor)
    return noted


@pytest.fixture(scope="module")
def cfg(tmp_path_factory, coco_source):
    return config(tmp_path_factory.mktemp("cuda"), coco_source, "detr", grad_accumulation=2)


def move_to_cuda(model: nn.Module) -> None:
    """Under FakeTensorMode: every parameter and buffer is replaced, shared ones by one."""
    moved = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = nn.Parameter(torch.empty_like(value, device="cuda"), requires_grad=value.requires_grad)
                module._parameters[name] = moved.setdefault(id(value), (fake, value))[0]
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty_like(value, device="cuda")


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, None], ids=["fp16", "bf16", "fp32"])
def test_a_step_on_cuda(cfg, waits, dtype):
    run = build(cfg)
    batches = list(train_loader(run, 0))[:2]
    matmuls = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = run.detector.model
        move_to_cuda(model)
        model.model.encoder.layers[0].mlp.fc1.register_forward_hook(lambda _, __, output: matmuls.append(output.dtype))
        run.optimizer = torch.optim.AdamW(parameter_groups(run.detector, run.cfg), fused=True)
        run.averaged, run.accelerator = MovingAverage(model, 0.9), Accelerator(run, dtype)
        run.model = run.accelerator.forward
        if run.accelerator.scaler is not None:
            run.optimizer = Scaled(run.optimizer, run.accelerator.scaler)
        row = train_step(run, batches)
    assert waits == ["matching"] * 2 + ["finite"]  # a step of two batches; accelerate adds its own for fp16
    assert matmuls == [dtype or torch.float32] * 2  # autocast was on
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou", "loss_auxiliary", "grad_norm"} <= row.keys()
    for name, value in row.items():
        assert isinstance(value, FakeTensor) and value.device.type == "cuda" and value.dtype == torch.float32, name
    assert run.averaged.count == 1
    assert {value.device.type for value in run.averaged.module.state_dict().values()} == {"cuda"}
    states = run.optimizer.state.values()
    assert len(states) == sum(p.requires_grad for p in model.parameters())
    assert {state["exp_avg"].device.type for state in states} == {"cuda"}


class Scaled:
    """An optimizer whose steps the scaler takes, as accelerate wraps it."""

    def __init__(self, inner: torch.optim.Optimizer, scaler: torch.amp.GradScaler):
        self.inner, self.scaler = inner, scaler

    def __getattr__(self, name: str):
        return getattr(self.inner, name)

    def step(self) -> None:
        self.scaler.step(self.inner)
        self.scaler.update()
