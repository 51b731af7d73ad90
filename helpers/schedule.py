"""How the learning rate goes over a run, and how the weights are averaged along it."""
from __future__ import annotations

import math

import torch


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


def moving_average(decay: float):
    """The update of ``AveragedModel``: an exponential moving average whose decay grows with the count of updates.

    With the full decay from the start, the first weights, and above all the first variances of the batch norms, would still
    weigh a fifth after 1,500 steps at 0.999: the averaged detector would find nothing while the trained one learns.
    """

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count) -> None:
        now = min(decay, (1 + int(count)) / (10 + int(count)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - now)
        else:  # counters
            for old, new in zip(averaged, current):
                old.copy_(new)

    return update
