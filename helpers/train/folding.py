"""Fixed batch norms, computed inside the convolutions before them.

A batch norm with fixed statistics multiplies and shifts each channel, and so does a convolution: y = s(Wx) + t = (sW)x
+ t. Scaling the few weights instead of the large feature map saves its memory traffic, forward and backward. The
weights stay the parameters (the product is formed in every forward pass), so gradients, optimizer and saved folders are
unchanged.
"""

from __future__ import annotations

import types

import torch
from torch import nn
from torch.nn import functional as F


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm of the backbone that follows a convolution; returns how many were folded.

    Only right while these norms are fixed (evaluation statistics, no gradient), which ``freeze`` and ``train_mode`` of
    ``helpers.model`` see to. The pairs are found by passing a small image through.
    """
    backbone = next(module for name, module in model.named_modules() if name.endswith("backbone.model"))
    produced, pairs, hooks = {}, [], []

    def after_convolution(module, _, output):
        produced[id(output)] = (module, output)  # the tensor too: its id must not be used again meanwhile

    def before_norm(module, inputs):
        if id(inputs[0]) in produced:
            pairs.append((produced[id(inputs[0])][0], module))

    for module in backbone.modules():
        if type(module).forward is nn.Conv2d.forward:
            hooks.append(module.register_forward_hook(after_convolution))
        elif hasattr(module, "running_var"):
            hooks.append(module.register_forward_pre_hook(before_norm))
    parameter = next(model.parameters())
    training = model.training
    model.eval()  # so that the pass leaves the statistics alone
    backbone(torch.zeros(1, 3, 64, 64, dtype=parameter.dtype, device=parameter.device))
    model.train(training)
    for hook in hooks:
        hook.remove()
    for convolution, norm in pairs:
        scale = norm.weight * (norm.running_var + getattr(norm, "eps", 1e-5)).rsqrt()
        bias = 0 if convolution.bias is None else convolution.bias
        convolution.register_buffer("folded_scale", scale.detach().clone()[:, None, None, None], persistent=False)
        convolution.register_buffer(
            "folded_shift", (norm.bias + (bias - norm.running_mean) * scale).detach().clone(), persistent=False
        )
        convolution.forward = types.MethodType(_folded_convolution, convolution)
        norm.forward = types.MethodType(_only_activation, norm)
    return len(pairs)


def _folded_convolution(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return convolve(self, x, self.weight * self.folded_scale, self.folded_shift)


def convolve(module: nn.Conv2d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The convolution of ``module`` with these weights.

    With one thread, PyTorch does convolutions of a single pixel without oneDNN, slower: there it is asked for.
    """
    if (
        x.device.type == "cpu"
        and torch.get_num_threads() == 1
        and not isinstance(module.padding, str)
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    ):
        return torch.mkldnn_convolution(x, weight, bias, module.padding, module.stride, module.dilation, module.groups)
    return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)


def _only_activation(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return self.act(x) if hasattr(self, "act") else x  # timm's BatchNormAct2d holds the activation
