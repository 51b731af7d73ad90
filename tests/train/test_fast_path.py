"""The fast path against the untouched model: same outputs, same gradients, same saved folder."""

import copy

import pytest
import torch
import transformers
from tiny import FAMILIES, SOURCE_CLASSES, perturbed

from helpers.config import load_config
from helpers.model import load_detector, train_mode
from helpers.train.fast_path import take_fast_path

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = ("car", "person", "dining table")


def rtdetr(version: str):
    """An RT-DETR, or its second version, with a tiny ResNet."""

    def make(folder):
        torch.manual_seed(0)
        config = getattr(transformers, f"{version}Config")(
            backbone_config=transformers.TimmBackboneConfig(
                backbone="test_resnet", out_indices=[2, 3, 4], features_only=True
            ),
            id2label=dict(enumerate(SOURCE_CLASSES)),
            label2id={name: k for k, name in enumerate(SOURCE_CLASSES)},
            encoder_in_channels=[64, 96, 128],
            feat_strides=[8, 16, 32],
            encoder_hidden_dim=32,
            encoder_layers=1,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            hidden_expansion=0.5,
            d_model=32,
            decoder_in_channels=[32] * 3,
            decoder_layers=3,
            decoder_attention_heads=4,
            decoder_ffn_dim=64,
            num_queries=30,
            num_denoising=10,
            freeze_backbone_batch_norms=False,
        )
        transformers.AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
        transformers.RTDetrImageProcessor(size={"height": 128, "width": 128}).save_pretrained(folder)
        return folder

    return make


MODELS = {**FAMILIES, "rtdetr": rtdetr("RTDetr"), "rtdetr_v2": rtdetr("RTDetrV2")}


@pytest.fixture(scope="module", params=MODELS)
def plain(request, tmp_path_factory):
    """A model of each family, as ``load_detector`` gives it, with the norms' statistics of a trained one."""
    folder = MODELS[request.param](tmp_path_factory.mktemp(request.param))
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


def trained_once(model) -> tuple:
    """Output and gradients of a training step; the same denoising noise for each model."""
    train_mode(model)
    torch.manual_seed(5)
    output = model(**batch())
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters()}


def assert_same_step(plain, fast) -> None:
    (output, gradients), (fast_output, fast_gradients) = trained_once(plain), trained_once(fast)
    assert torch.allclose(output.logits, fast_output.logits, atol=1e-4) and torch.isclose(
        output.loss, fast_output.loss, rtol=1e-4
    )
    assert output.loss_dict.keys() == fast_output.loss_dict.keys()
    for name, value in output.loss_dict.items():
        assert torch.isclose(value, fast_output.loss_dict[name], rtol=1e-3, atol=1e-5), name
    largest = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None)
    for name, gradient in gradients.items():
        assert (gradient is None) == (fast_gradients[name] is None), name
        if gradient is not None:  # as a whole: of deep layers, single elements are differences of large sums
            apart = (gradient - fast_gradients[name]).norm()
            assert apart <= 2e-2 * gradient.norm() + 2e-4 * largest, name


def test_fast_path_changes_nothing_but_the_time(plain, tmp_path):
    """Output, loss parts and gradients of a training step, for each family; also of a deep copy, as averaged weights
    are one.
    """
    model, fast = copy.deepcopy(plain), copy.deepcopy(plain)
    take_fast_path(fast)
    fast = copy.deepcopy(fast)
    assert_same_step(model, fast)
    assert list(model.state_dict()) == list(fast.state_dict())
    fast.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForObjectDetection.from_pretrained(
        tmp_path, output_loading_info=True, auxiliary_loss=False
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        pixels = batch()["pixel_values"]
        assert torch.allclose(loaded.eval()(pixels).logits, fast.eval()(pixels).logits, atol=1e-4)
