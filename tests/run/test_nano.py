"""The preset for a laptop without a GPU: FiftyOne's downloader, the hub's client, and a D-FINE of the published shape.

The two hosts are stand-ins on loopback, and that D-FINE's weights are random; where a detector that was trained on COCO
is at hand, it stands in as well.
"""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from coco_folder import COCO_REAL, TRAINED, coco_category_ids
from mirror import Mirror
from transformers import DFineConfig, DFineForObjectDetection, HGNetV2Config, RTDetrImageProcessor

BACKBONE = {  # HGNetV2-B0
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "hidden_sizes": [64, 256, 512, 1024],
    "embedding_size": 16,
    "use_learnable_affine_block": True,
    "out_indices": [3, 4],
}
DETECTOR = {
    "encoder_in_channels": [512, 1024],
    "feat_strides": [16, 32],
    "encoder_hidden_dim": 128,
    "encoder_ffn_dim": 512,
    "encode_proj_layers": [1],
    "hidden_expansion": 0.34,
    "depth_mult": 0.5,
    "d_model": 128,
    "num_feature_levels": 2,
    "decoder_in_channels": [128, 128],
    "decoder_layers": 3,
    "decoder_n_points": [6, 6],
    "decoder_ffn_dim": 512,
}


def published_shape(hub: Path) -> None:
    names = dict(enumerate(coco_category_ids()))
    torch.manual_seed(0)
    config = DFineConfig(backbone_config=HGNetV2Config(**BACKBONE), id2label=names, **DETECTOR)
    model = DFineForObjectDetection(config)
    assert 3.5e6 < sum(p.numel() for p in model.parameters()) < 4.3e6
    model.save_pretrained(hub)
    RTDetrImageProcessor(size={"height": 640, "width": 640}).save_pretrained(hub)


def trained(hub: Path) -> None:
    shutil.copytree(TRAINED, hub)


SHAPED = (published_shape, "d_fine", 256, 0.0)  # of fewer pixels the published detector cannot take 300 queries
KNOWS_COCO = (trained, "deimv2", 320, 0.05)
HERE = [SHAPED, KNOWS_COCO] if TRAINED.is_dir() and COCO_REAL.is_dir() else [SHAPED]


@pytest.mark.parametrize("put,kind,side,least", HERE, ids=["published", "trained"][: len(HERE)])
def test_preset_of_a_laptop(put, kind, side, least, coco_source, tmp_path):
    """It finds its model and its photos, and leaves a detector of ten classes; one that knows COCO finds things."""
    put(tmp_path / "hub" / "ustc-community" / "dfine-nano-coco")
    values = {
        "max_train_images": 4,
        "max_val_images": 8,
        "image_size": side,
        "batch_size": 2,
        "epochs": 1,
        "profile": False,
    }
    with Mirror(coco=coco_source, models=tmp_path / "hub") as mirror:
        mirror.run("nano", tmp_path, values, "--only", "01,03")
        asked = list(mirror.requests)
    assert any("ustc-community/dfine-nano-coco" in url and url.endswith("model.safetensors") for url in asked)
    assert sum(url.endswith(".jpg") for url in asked) == 4 + 8
    saved = json.loads((tmp_path / "artifacts" / "nano" / "checkpoint_best" / "config.json").read_text())
    assert saved["model_type"] == kind and len(saved["id2label"]) == 10
    assert len(pd.read_csv(tmp_path / "artifacts" / "nano" / "losses.csv")) == 2
    assert pd.read_csv(tmp_path / "artifacts" / "nano" / "epochs.csv")["mAP"].iloc[0] >= least
