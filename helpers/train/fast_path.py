"""The same model in less time: what is changed in a detector's computation before it is trained or evaluated.

Parameters, their names and the saved folders stay what they were; outputs and gradients are the same but for rounding
(tests/test_fast_path.py compares them with the untouched model's).
"""

from __future__ import annotations

import contextlib
import ctypes
import types

import torch
from torch import nn

from helpers.train.folding import convolve, fold_norms


def take_fast_path(model: nn.Module) -> None:
    """Fold the backbone's norms, lay feature maps out channels-last, and compute the boxes of chosen tokens only.

    After ``freeze`` of ``helpers.model``; the backbone's norms must stay in evaluation mode.
    """
    keep_freed_memory()
    fold_norms(model)
    channels_last(model)
    boxes_of_chosen_tokens(model)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed: a feature map of 32 MB and more else costs a page fault per 4 KB, each time it is
    made.

    Elsewhere (musl, macOS, Windows) nothing is changed.
    """
    mmap_threshold, trim_threshold = -3, -1  # glibc's malloc.h
    with contextlib.suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(mmap_threshold, 2**30)
        glibc.mallopt(trim_threshold, 2**31 - 1)


def channels_last(model: nn.Module) -> None:
    """Every convolution reads its input with the channels of a pixel side by side, as vector units and tensor cores
    want it.

    The weights keep their layout, so that optimizer and checkpoints see no difference.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_input_channels_last)
            if (
                getattr(module.forward, "__func__", None) is nn.Conv2d.forward and module.padding_mode == "zeros"
            ):  # not folded
                module.forward = types.MethodType(_convolution, module)


def _input_channels_last(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    return inputs[0].contiguous(memory_format=torch.channels_last)


def _convolution(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return convolve(self, x, self.weight, self.bias)


def boxes_of_chosen_tokens(model: nn.Module) -> None:
    """RT-DETR and D-FINE give each of the encoder's tokens a box, and read those of the best-scored ``num_queries``:
    skip the others.

    The box head then returns zeros for tokens that are not chosen, as nothing reads them.
    """
    for module in model.modules():
        if hasattr(module, "enc_score_head") and hasattr(module, "enc_bbox_head"):
            chosen: dict = {"count": module.config.num_queries}  # shared by both heads, also in a deep copy
            module.enc_score_head.chosen = module.enc_bbox_head.chosen = chosen
            module.enc_score_head.register_forward_hook(_choose)
            module.enc_bbox_head.forward = types.MethodType(_boxes_of_chosen, module.enc_bbox_head)


@torch.no_grad()
def _choose(head: nn.Module, _, scores: torch.Tensor) -> None:
    head.chosen["tokens"] = scores.max(-1).values.topk(head.chosen["count"], dim=1).indices[..., None]  # [B, Q, 1]


def _boxes_of_chosen(self: nn.Module, memory: torch.Tensor) -> torch.Tensor:
    tokens = self.chosen.pop("tokens")
    boxes = type(self).forward(self, memory.gather(1, tokens.expand(-1, -1, memory.shape[-1])))
    return boxes.new_zeros(*memory.shape[:2], boxes.shape[-1]).scatter(1, tokens.expand_as(boxes), boxes)
