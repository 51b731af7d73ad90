"""The same model in less time: what is changed in a detector's computation before it is trained or evaluated.

Parameters, their names and the saved folders stay what they were; outputs and gradients are the same but for rounding
(tests/train/test_fast_path.py compares them with the untouched model's).
"""

import contextlib
import ctypes
import types

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from helpers.families.patches import loss_in_fp32
from helpers.model import backbone_of
from helpers.train.losses import batched_loss_for


def take_fast_path(model: nn.Module) -> None:
    """All of this module's changes, and DETR's loss in batches; after ``load_detector`` and on its final device."""
    keep_freed_memory()
    without_waits(model)
    fold_norms(model)
    channels_last(model, weights=next(model.parameters()).is_cuda)
    if loss := batched_loss_for(model):
        model.loss_function = loss_in_fp32(loss)


def keep_freed_memory() -> None:
    """Let glibc, where it is the C library, keep what is freed: a feature map of 32 MB and more else costs a page fault
    per 4 KB, each time it is made.
    """
    mmap_threshold, trim_threshold = -3, -1  # glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_threshold, 2**30)
        glibc.mallopt(trim_threshold, 2**31 - 1)


def channels_last(model: nn.Module, weights: bool) -> None:
    """Every convolution reads its input with the channels of a pixel side by side, as vector units and tensor cores
    want it. ``weights``: they too, which saves a GPU a copy in each step; a CPU reorders them anyway.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: inputs[0].contiguous(memory_format=torch.channels_last))
            if weights:
                module.to(memory_format=torch.channels_last)


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm of the backbone that follows a convolution into it; returns how many were folded.

    A batch norm with fixed statistics multiplies and shifts each channel, and so does a convolution:
    y = s(Wx) + t = (sW)x + t. Scaling the few weights instead of the large feature map saves its memory traffic,
    forward and backward. Weights that are trained stay the parameters (the product is formed in every forward pass),
    so gradients, optimizer and saved folders are unchanged; of frozen ones the product is formed once.

    Only right while these norms are fixed (evaluation statistics, no gradient), which ``freeze`` and ``train_mode`` of
    ``helpers.model`` see to. The pairs are found by passing a small image through.
    """
    backbone = backbone_of(model)
    has_norms = any(hasattr(module, "running_var") for module in (backbone or nn.Identity()).modules())
    pairs = _pairs(backbone, next(model.parameters())) if has_norms else []
    for convolution, norm in pairs:
        scale = norm.weight * (norm.running_var + getattr(norm, "eps", 1e-5)).rsqrt()
        bias = 0 if convolution.bias is None else convolution.bias
        scale_of_rows, shift = scale[:, None, None, None], norm.bias + (bias - norm.running_mean) * scale
        convolution.register_buffer("folded_shift", shift.detach().clone(), persistent=False)
        convolution.folded_once = not convolution.weight.requires_grad
        factor = convolution.weight * scale_of_rows if convolution.folded_once else scale_of_rows
        convolution.register_buffer("folded_factor", factor.detach().clone(), persistent=False)
        convolution.forward = types.MethodType(_folded, convolution)
        norm.forward = types.MethodType(_only_activation, norm)
    return len(pairs)


def _pairs(backbone: nn.Module, like: torch.Tensor) -> list[tuple[nn.Conv2d, nn.Module]]:
    """Each convolution of the backbone whose output goes into a batch norm, and that norm."""
    produced, pairs, hooks = {}, [], []

    def after_convolution(module, _, output):
        produced[id(output)] = (module, output)  # the tensor too: its id must not be used again meanwhile

    def before_norm(module, inputs):
        if id(inputs[0]) in produced:
            pairs.append((produced[id(inputs[0])][0], module))

    for module in backbone.modules():
        if type(module).forward is nn.Conv2d.forward and module.padding_mode == "zeros":
            hooks.append(module.register_forward_hook(after_convolution))
        elif hasattr(module, "running_var"):
            hooks.append(module.register_forward_pre_hook(before_norm))
    training = backbone.training
    backbone.eval()  # so that the pass leaves the statistics alone
    backbone(torch.zeros(1, 3, 64, 64, dtype=like.dtype, device=like.device))
    backbone.train(training)
    for hook in hooks:
        hook.remove()
    return pairs


def _folded(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    weight = self.folded_factor if self.folded_once else self.weight * self.folded_factor
    return F.conv2d(x, weight, self.folded_shift, self.stride, self.padding, self.dilation, self.groups)


def _only_activation(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return self.act(x) if hasattr(self, "act") else x  # timm's BatchNormAct2d holds the activation


def without_waits(model: nn.Module) -> None:
    """Encoder layers do not ask the device whether their output is finite, in each layer of each step.

    They would clamp what is not, which cannot be in the fp32 that a norm's output has under autocast; and a loss or a
    gradient that is not finite is found anyway.
    """
    for module in model.modules():
        if type(module).__name__.endswith("EncoderLayer"):
            module.forward = types.MethodType(_forward_without_asking, module)


def _forward_without_asking(self: nn.Module, *args, **kwargs):
    with _NothingIsAsked():
        return type(self).forward(self, *args, **kwargs)


class _NothingIsAsked(TorchFunctionMode):
    def __torch_function__(self, function, types_, args=(), kwargs=None):
        if function is torch.isfinite:
            return types.SimpleNamespace(all=lambda: True)  # the answer, without a look
        return function(*args, **(kwargs or {}))
