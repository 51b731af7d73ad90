"""The fast path against the untouched model: same outputs, same gradients, same saved folder (the other families:
tests/train/test_families_learn.py).
"""

import copy

import pytest
import torch
import transformers
from families import assert_same_step
from tiny import FAMILIES, detr, dfine, perturbed
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.config import load_config
from helpers.families.loading import load_detector
from helpers.model import train_mode
from helpers.train.fast_path import take_fast_path, without_waits

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("car", "person", "dining table")


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request, tmp_path_factory):
    """A model of each family, as ``load_detector`` gives it, with the norms' statistics of a trained one."""
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    model = load_detector(
        load_config("demo", model=str(folder), classes=CLASSES, image_size=128, freeze_stages=1), CLASSES
    ).model
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # its noise is drawn in the order of memory, which the fast path changes
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    return perturbed(model)


def batch(n: int = 3, size: int = 128) -> dict:
    """The last photo shows nothing."""
    generator = torch.Generator().manual_seed(3)
    labels = [
        {"class_labels": torch.arange(k) % 3, "boxes": torch.rand(k, 4, generator=generator) * 0.3 + 0.2}
        for k in range(n)[::-1]
    ]
    return {"pixel_values": torch.randn(n, 3, size, size, generator=generator), "labels": labels}


def test_fast_path_changes_nothing_but_the_time(plain, tmp_path):
    """Output, loss parts and gradients of a training step, for each family; also of a deep copy, as averaged weights
    are one.
    """
    model, fast = copy.deepcopy(plain), copy.deepcopy(plain)
    take_fast_path(fast)
    fast = copy.deepcopy(fast)
    assert_same_step(model, fast, batch())
    assert list(model.state_dict()) == list(fast.state_dict())
    fast.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForObjectDetection.from_pretrained(
        tmp_path, output_loading_info=True, auxiliary_loss=False
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        pixels = batch()["pixel_values"]
        assert torch.allclose(loaded.eval()(pixels).logits, fast.eval()(pixels).logits, atol=1e-4)


class Reads(TorchDispatchMode):
    """Counts what waits for a GPU: reads of single values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [detr, dfine])
def test_encoder_asks_the_device_nothing(make, tmp_path):
    """transformers' encoder layers read from the device whether their output is finite, in every layer of every
    step.
    """
    plain = train_mode(perturbed(transformers.AutoModelForObjectDetection.from_pretrained(make(tmp_path))))
    ours = copy.deepcopy(plain)
    without_waits(ours)
    reads, outputs = [], []
    for model in (plain, ours):
        torch.manual_seed(1)
        with Reads() as counted, torch.no_grad():
            outputs.append(model(batch()["pixel_values"]).logits)
        reads.append(counted.count)
    assert torch.equal(*outputs) and reads[1] < reads[0]
