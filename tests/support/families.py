"""A small random detector of each family, made from its config: what `AutoModelForObjectDetection` knows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny import SOURCE_CLASSES, perturbed
from transformers import AutoModelForObjectDetection, TimmBackboneConfig

from helpers.config import Config, load_config
from helpers.families.loading import load_detector
from helpers.model import Detector, train_mode

SMALL = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 20}
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
PYRAMID = {
    "encoder_hidden_dim": 32,
    "hidden_expansion": 0.5,
    "encoder_in_channels": [64, 96, 128],
    "decoder_in_channels": [32] * 3,
    "num_denoising": 10,
    "freeze_backbone_batch_norms": False,
}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPS = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "group_detr": 3, "decoder_n_points": 2}


def resnet(*stages: int) -> TimmBackboneConfig:
    return TimmBackboneConfig(backbone="test_resnet", out_indices=list(stages), features_only=True)


def _detr(name: str, **more):
    more = {"backbone_config": resnet(1, 2, 3, 4), **SMALL, **HEADS, **STILL, **more}
    return getattr(transformers, f"{name}Config")(**more)


def _pyramid(name: str, **more):
    return getattr(transformers, f"{name}Config")(
        backbone_config=resnet(2, 3, 4), **{**SMALL, **HEADS, **PYRAMID, **STILL, **more}
    )


def _lw_detr():
    vit = transformers.LwDetrViTConfig(
        **VIT, window_block_indices=[0], out_indices=[1, 2], image_size=128, pretrain_image_size=64, num_windows=4
    )
    small = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 20}
    return transformers.LwDetrConfig(
        backbone_config=vit, projector_scale_factors=[1.0], c2f_num_blocks=1, **small, **GROUPS
    )


def _rf_detr():
    vit = transformers.RfDetrDinov2Config(**VIT, out_indices=[1, 2], image_size=64, patch_size=8, num_windows=2)
    small = {"d_model": 32, "decoder_layers": 2, "decoder_ffn_dim": 32, "num_queries": 20}
    return transformers.RfDetrConfig(backbone_config=vit, c2f_num_blocks=1, dropout=0.0, **small, **GROUPS)


def _yolos():
    return transformers.YolosConfig(
        **VIT, intermediate_size=64, image_size=[128, 128], num_detection_tokens=20, use_mid_position_embeddings=False
    )


def _dab():
    small = {key: value for key, value in SMALL.items() if key != "d_model"}
    return transformers.DabDetrConfig(backbone_config=resnet(1, 2, 3, 4), hidden_size=32, **small, **HEADS, **STILL)


# family: its config, its image processor, how its published checkpoints resize
ASPECT, SQUARE = {"shortest_edge": 800, "longest_edge": 1333}, {"height": 640, "width": 640}
FAMILIES = {
    "DETR": (lambda: _detr("Detr"), "DetrImageProcessor", ASPECT),
    "Conditional DETR": (lambda: _detr("ConditionalDetr"), "ConditionalDetrImageProcessor", ASPECT),
    "DAB-DETR": (_dab, "ConditionalDetrImageProcessor", ASPECT),
    "Deformable DETR": (
        lambda: _detr("DeformableDetr", backbone_config=resnet(2, 3, 4), encoder_n_points=2, decoder_n_points=2),
        "DeformableDetrImageProcessor",
        ASPECT,
    ),
    "RT-DETR": (lambda: _pyramid("RTDetr"), "RTDetrImageProcessor", SQUARE),
    "RT-DETRv2": (lambda: _pyramid("RTDetrV2"), "RTDetrImageProcessor", SQUARE),
    "D-FINE": (lambda: _pyramid("DFine", depth_mult=0.34), "RTDetrImageProcessor", SQUARE),
    "DEIMv2": (lambda: _pyramid("Deimv2", depth_mult=0.34), "RTDetrImageProcessor", SQUARE),
    "RF-DETR": (_rf_detr, "RfDetrImageProcessor", SQUARE),
    "LW-DETR": (_lw_detr, "DeformableDetrImageProcessor", SQUARE),
    "YOLOS": (_yolos, "YolosImageProcessor", ASPECT),
}


BY_CLASS = "its queries are the cells whose best class scores highest, and the best of fewer classes is another"
AT_THE_EDGE = "the convolutions of its backbone see across a photo's edge into the padding"
IN_MULTIPLES = "feature maps that are laid over each other, or windows of patches, must come out even"
CANNOT = {
    "keep the whole head's queries": dict.fromkeys(
        ("RT-DETR", "RT-DETRv2", "D-FINE", "DEIMv2", "RF-DETR", "LW-DETR"), BY_CLASS
    ),
    "see padded photos as single ones": dict.fromkeys(
        ("DETR", "Conditional DETR", "DAB-DETR", "Deformable DETR"), AT_THE_EDGE
    ),
    "take photos of any size": {
        **dict.fromkeys(("RT-DETR", "RT-DETRv2", "D-FINE", "DEIMv2", "RF-DETR", "LW-DETR"), IN_MULTIPLES),
        "YOLOS": "of a patch that is not whole, the pixels are cut off unseen",
    },
    "train with auxiliary losses": {"YOLOS": "it has no decoder, whose layers would have one each"},
    "show where a query looks": {"YOLOS": "it has no decoder, and so no cross-attention"},
    "train its backbone more slowly": {"YOLOS": "backbone and detector are one transformer"},
}


def can(what: str, family: str) -> bool:
    return family not in CANNOT[what]


def make(family: str, folder: Path, **changes) -> Path:
    """Write the family's detector into ``folder``: norms and their statistics of a trained one, its own processor."""
    config, processor, size = FAMILIES[family]
    torch.manual_seed(0)
    config = config()
    for name, value in changes.items():
        setattr(config, name, value)
    config.id2label = dict(enumerate(SOURCE_CLASSES))
    config.label2id = {name: k for k, name in enumerate(SOURCE_CLASSES)}
    model = perturbed(AutoModelForObjectDetection.from_config(config))
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "running_var"):
                module.running_var.uniform_(0.5, 2)
                module.running_mean.normal_(0, 0.1)
                module.momentum = 1.0
            if type(module).__name__.endswith(
                ("GroupNorm", "RMSNorm")
            ):  # LayerNorm and BatchNorm are perturbed already
                for key, parameter in module.named_parameters(recurse=False):
                    parameter.normal_(*((0, 0.2) if key == "bias" else (1, 0.3)))
            if isinstance(module, torch.nn.Linear) and re.search("class|score|bbox", name):
                module.weight.normal_(0, 0.2)  # new heads score all queries alike, and leave boxes where anchors are
        model.train()(torch.randn(4, 3, 128, 128))  # else, in evaluation, the norms would make all cells alike
    model.save_pretrained(folder)
    getattr(transformers, processor)(size=size).save_pretrained(folder)
    return folder


CLASSES = ("car", "person", "dining table")  # of which the detectors get a head


def settings(folder: Path, **changes) -> Config:
    return load_config("demo", model=str(folder), classes=CLASSES, **{"image_size": 128, "freeze_stages": 1, **changes})


def detector(folder: Path, **changes) -> Detector:
    """The detector of ``folder`` as the project loads it, at 128 pixels."""
    return load_detector(settings(folder, **changes), CLASSES)


def photos() -> list[dict]:
    """A portrait of two things and a landscape with one, as ``CocoDetection`` gives them before they are resized."""
    samples = []
    for key, (height, width, boxes) in enumerate(
        [(240, 180, [[20, 30, 90, 110], [60, 120, 170, 230]]), (180, 240, [[130, 40, 220, 160]])]
    ):
        random = np.random.default_rng(key)
        image = np.kron(random.integers(60, 120, (height // 6, width // 6, 3)), np.ones((6, 6, 1))).astype(np.uint8)
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            image[y0:y1, x0:x1] = random.permutation([240, 30 + 100 * k, 10]) + random.integers(
                0, 9, (y1 - y0, x1 - x0, 1)
            )
        samples.append(
            {
                "image": image,
                "boxes_xyxy": np.array(boxes, np.float32),
                "class_labels": np.arange(key, key + len(boxes)),
                "image_id": key + 1,
                "orig_size": (height, width),
            }
        )
    return samples


def collated(preprocess, samples: list[dict]) -> dict:
    """The photos as a batch of the loop."""
    resized = [dict(zip(("image", "boxes_xyxy"), preprocess.resize(s["image"], s["boxes_xyxy"]))) for s in samples]
    return preprocess.collate([{**s, **r} for s, r in zip(samples, resized)])


def inputs(loaded: Detector, samples: list[dict], labels: bool = False) -> dict:
    batch = loaded.preprocess.to_device(collated(loaded.preprocess, samples))
    return batch if labels else {name: value for name, value in batch.items() if name != "labels"}


def same(one, other, atol: float = 1e-4) -> bool:
    return torch.allclose(one.logits, other.logits, atol=atol) and torch.allclose(
        one.pred_boxes, other.pred_boxes, atol=atol
    )


def assert_same_step(plain, fast, batch: dict, atol: float = 1e-4) -> None:
    """Output, loss parts and gradients of a training step are the same, with the same denoising noise for both."""
    outputs, gradients = [], []
    for model in (plain, fast):
        train_mode(model)
        torch.manual_seed(5)
        outputs.append(model(**batch))
        outputs[-1].loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    one, other = outputs
    assert torch.allclose(one.logits, other.logits, atol=atol) and torch.isclose(one.loss, other.loss, rtol=1e-4)
    assert one.loss_dict.keys() == other.loss_dict.keys()
    for name, value in one.loss_dict.items():
        assert torch.isclose(value, other.loss_dict[name], rtol=1e-3, atol=1e-5), name
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values() if gradient is not None)
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:  # as a whole: of deep layers, single elements are differences of large sums
            apart = (gradient - gradients[1][name]).norm()
            assert apart <= 2e-2 * gradient.norm() + 2e-4 * largest, name


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory) -> Path:
    return make(family, tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def loaded(folder) -> Detector:
    """To be looked at: a test that trains loads its own."""
    found = detector(folder)
    found.model.eval()
    return found
