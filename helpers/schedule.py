"""How the learning rate goes over a run, and how the weights are averaged along it."""

import copy
import math

import torch
from torch import nn


def lr_factor(step: int, total: int, scheduler: str, warmup_ratio: float) -> float:
    """What the base learning rates are multiplied by at an optimizer step (0-based) of ``total``.

    All rise linearly over the first ``warmup_ratio``; then ``constant`` stays, ``cosine`` falls to 0, and
    ``flat_cosine`` stays until half of the steps are done and falls then.
    """
    warmup = round(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    if scheduler == "constant":
        return 1.0
    start = max(warmup, total // 2) if scheduler == "flat_cosine" else warmup
    done = (step - start) / max(1, total - start)
    return 1.0 if done < 0 else 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class MovingAverage:
    """An exponential moving average of a model's weights and buffers (``module``), whose decay grows with ``count``.

    With the full decay from the start, the first weights, and above all the first variances of the batch norms, would
    still weigh a fifth after 1,500 steps at 0.999: the averaged detector would find nothing while the trained one
    learns. What is frozen is its own average, and left alone.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.module, self.decay, self.count = copy.deepcopy(model), decay, 0
        parameters = zip(self.module.parameters(), model.parameters(), strict=True)
        pairs = [(old, new) for old, new in parameters if new.requires_grad]
        pairs += zip(self.module.buffers(), model.buffers(), strict=True)
        self.averaged = [old for old, _ in pairs if old.is_floating_point()]
        self.current = [new for _, new in pairs if new.is_floating_point()]
        self.counters = [(old, new) for old, new in pairs if not old.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        torch._foreach_lerp_(self.averaged, self.current, 1 - decay)
        for old, new in self.counters:
            old.copy_(new)
        self.count += 1
