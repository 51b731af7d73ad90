"""Small random detectors of the two families, and a small data set, for tests of the core."""

from __future__ import annotations

from pathlib import Path

import torch

from helpers.config import Config, load_config
from helpers.download.prepare import prepare

SOURCE_CLASSES = (
    "N/A",
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "bus",
    "traffic light",
    "handbag",
    "bottle",
    "cup",
    "bowl",
    "chair",
    "dining table",
    "book",
    "cat",
    "dog",
)


def detr(folder: Path, classes=SOURCE_CLASSES, backbone: str = "resnet10t") -> Path:
    """A DETR with a ResNet-10t (or timm's test_resnet, a tenth of it) and one layer of 64 channels: the true code
    path.
    """
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, TimmBackboneConfig

    torch.manual_seed(0)
    config = DetrConfig(
        backbone_config=TimmBackboneConfig(backbone=backbone, out_indices=[1, 2, 3, 4], features_only=True),
        id2label=dict(enumerate(classes)),
        label2id={name: k for k, name in enumerate(classes)},
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=30,
    )
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor().save_pretrained(folder)
    return folder


def dfine(folder: Path, classes=SOURCE_CLASSES, backbone: str = "efficientnet_lite0", channels=(40, 112, 320)) -> Path:
    """A D-FINE with an EfficientNet-Lite0 and two decoder layers of 32 channels."""
    from transformers import AutoModelForObjectDetection, DFineConfig, RTDetrImageProcessor, TimmBackboneConfig

    torch.manual_seed(0)
    config = DFineConfig(
        backbone_config=TimmBackboneConfig(backbone=backbone, out_indices=[2, 3, 4], features_only=True),
        id2label=dict(enumerate(classes)),
        label2id={name: k for k, name in enumerate(classes)},
        encoder_in_channels=list(channels),
        feat_strides=[8, 16, 32],
        encoder_hidden_dim=32,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        hidden_expansion=0.5,
        depth_mult=0.34,
        d_model=32,
        decoder_in_channels=[32] * 3,
        decoder_layers=2,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        num_queries=30,
        num_denoising=10,
        freeze_backbone_batch_norms=False,
    )
    AutoModelForObjectDetection.from_config(config).save_pretrained(folder)
    RTDetrImageProcessor(size={"height": 256, "width": 256}).save_pretrained(folder)
    return folder


def config(folder: Path, coco_source: Path, family: str, **changes) -> Config:
    """A run of three epochs of three steps in a few seconds: twelve photos, one of timm's test backbones."""
    model = folder / family
    if not model.exists():
        if family == "detr":
            detr(model, backbone="test_resnet")
        else:
            dfine(model, backbone="test_efficientnet", channels=(32, 48, 64))
    settings = {
        "data_source": "folder",
        "coco_root": str(coco_source),
        "data_dir": str(folder / "data"),
        "classes": ("person", "car", "chair", "cup"),
        "max_train_images": 12,
        "max_val_images": 6,
        "output_dir": str(folder / "out"),
        "image_size": 96,
        "batch_size": 4,
        "num_workers": 0,
        "epochs": 3,
        "overwrite": False,
        "augment": "full",
        "clip_norm": 1.0,
        "precision": "fp32",
        "ema": 0.9 if family == "dfine" else 0.0,
    }
    cfg = load_config("demo", model=str(model), **{**settings, **changes})
    prepare(cfg)
    return cfg


@torch.no_grad()
def perturbed(model: torch.nn.Module, seed: int = 2) -> torch.nn.Module:
    """Norm weights from N(1, 0.3) and biases from N(0, 0.2): as initialised, norms are identities and hide faults."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm) or hasattr(module, "running_var"):
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if weight is not None:
                weight.copy_(1 + 0.3 * torch.randn(weight.shape, generator=generator))
                bias.copy_(0.2 * torch.randn(bias.shape, generator=generator))
    return model


FAMILIES = {"detr": detr, "dfine": dfine}
