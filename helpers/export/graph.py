"""A detector as an ONNX graph, and an ONNX graph as a detector."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import onnxruntime
import torch
from torch import nn
from torch.onnx.errors import OnnxExporterError
from torch.overrides import TorchFunctionMode

from helpers.files import UserError

OPSET = 20
OUTPUTS = ("logits", "pred_boxes")  # [B, Q, C] and [B, Q, 4], relative cxcywh: the names that transformers gives them


@torch.no_grad()
def write_graph(model: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    """``model`` as it computes in evaluation, on the CPU; ``inputs``: an example of the loop's, without labels.

    The number of photos stays open, and where the loop pads (there is a ``pixel_mask``) their height and width too.
    torch's tracing exporter writes it: the one that follows ``torch.export`` takes several times as long, writes this
    machine's paths into the file, and has no operator for the checks in transformers' deformable attention. Raises
    UserError where a part of the model is not in ONNX.
    """
    axes = {name: {0: "batch"} for name in (*inputs, *OUTPUTS)}
    if "pixel_mask" in inputs:
        axes["pixel_values"] |= {2: "height", 3: "width"}
        axes["pixel_mask"] |= {1: "height", 2: "width"}
    graph = _Graph(copy.deepcopy(model).eval(), list(inputs))
    graph(*inputs.values())  # for `_once`
    names = {"input_names": list(inputs), "output_names": list(OUTPUTS), "dynamic_axes": axes}
    with warnings.catch_warnings(), mock.patch.object(torch._C, "_jit_onnx_log"):  # what fails is logged at full length
        warnings.simplefilter("ignore")  # each size of a constant that is looked at
        try:
            torch.onnx.export(graph, tuple(inputs.values()), path, dynamo=False, opset_version=OPSET, **names)
        except OnnxExporterError as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"torch's exporter cannot write this {type(model).__name__} as ONNX: {reason}") from None


class _Graph(nn.Module):
    """The model with tensors for arguments and result."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names
        for module in model.modules():  # RF-DETR: of photos of one size a constant, and not in ONNX as it is smoothed
            if hasattr(module, "interpolate_pos_encoding"):
                module.interpolate_pos_encoding = _once(module.interpolate_pos_encoding)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _SizesStayOpen():
            output = self.model(**dict(zip(self.names, inputs)))
        return tuple(output[name] for name in OUTPUTS)


def _once(function: Callable) -> Callable:
    """What the first call returned."""
    results = []

    def remembered(*args):
        if not results:
            results.append(function(*args))
        return results[0]

    return remembered


class _SizesStayOpen(TorchFunctionMode):
    """Deformable DETR's table of its maps' sizes, which tracing would take as those of the example for good."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.as_tensor and torch.jit.is_tracing() and isinstance(args[0], list):
            rows = [row for row in args[0] if all(map(torch.is_tensor, row))]
            if rows:
                return torch.stack([torch.stack(row) for row in rows])
        return function(*args, **(kwargs or {}))


class OnnxModel(nn.Module):
    """A graph of :func:`write_graph` in onnxruntime on the CPU, called as ``helpers.engine.predict`` calls a model."""

    def __init__(self, path: Path):
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(self, labels=None, **inputs: torch.Tensor) -> SimpleNamespace:
        found = self.session.run(OUTPUTS, {name: tensor.numpy() for name, tensor in inputs.items()})
        return SimpleNamespace(**dict(zip(OUTPUTS, map(torch.from_numpy, found))))
