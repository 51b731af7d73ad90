"""What the checks of ``gpu_check.py`` share: photos, detectors, configs, and the row that a check gives."""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, TimmBackboneConfig

from helpers.config import Config, load_config
from helpers.devices import pick_device
from helpers.download.prepare import prepare
from helpers.engine import Run, train_loader
from helpers.scenes.scenes import SCENE_CLASSES, write_scenes

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from tiny import perturbed

CLASSES = load_config("demo").classes


@dataclass
class Row:
    """A line of the table. ``bound`` says what had to hold; ``measured`` where it is only a number to know."""

    name: str
    holds: bool
    figure: str
    bound: str = "measured"
    numbers: dict = field(default_factory=dict)

    def as_json(self) -> dict:
        numbers = {k: v if math.isfinite(v) else str(v) for k, v in self.numbers.items()}
        return {**asdict(self), "holds": bool(self.holds), "numbers": numbers}


@dataclass
class Lab:
    """``quick``: the smallest sizes, for a test. On a CPU the sizes are between those and a GPU's."""

    folder: Path
    quick: bool = False

    @cached_property
    def device(self) -> torch.device:
        return pick_device()

    @property
    def gpu(self) -> bool:
        return self.device.type == "cuda"

    def by_size(self, gpu, cpu, quick):
        return quick if self.quick else gpu if self.gpu else cpu

    @property
    def precisions(self) -> list[str]:
        """That this device computes in. bf16 is in it for a CPU without bf16 too: only its numbers are looked at."""
        native = self.gpu and torch.cuda.get_device_capability() >= (8, 0)
        return ["fp32", *(["fp16"] if self.gpu else []), *(["bf16"] if native or not self.gpu else [])]

    @cached_property
    def photos(self) -> Path:
        """A COCO folder of generated photos, 640 pixels long."""
        train, val, size = self.by_size((384, 16, 640), (16, 4, 640), (8, 4, 128))
        write_scenes(self.folder / "photos", SCENE_CLASSES, train, val, seed=0, size=size)
        return self.folder / "photos"

    @cached_property
    def detr(self) -> Path:
        """A DETR-R50 in its true shape (``quick``: a small one), with weights that hide as little as a trained one's:
        norms from N(1, 0.3), biases from N(0, 0.2), the backbone's statistics those of its inputs, and linear layers
        whose outputs spread as their inputs do (initial ones give every query the same box).
        """
        torch.manual_seed(0)
        small = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
        small |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 30}
        backbone = "test_resnet" if self.quick else "resnet50"
        config = DetrConfig(
            backbone_config=TimmBackboneConfig(backbone=backbone, out_indices=[1, 2, 3, 4], features_only=True),
            id2label=dict(enumerate(CLASSES)),
            label2id={name: k for k, name in enumerate(CLASSES)},
            **(small if self.quick else {}),
        )
        model = perturbed(DetrForObjectDetection(config))
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=module.in_features**-0.5)
                torch.nn.init.normal_(module.bias, std=0.2)
        files = sorted((self.photos / "images" / "train2017").iterdir())[:4]
        processor = DetrImageProcessor()
        pixels = processor(
            [Image.open(file) for file in files], size={"height": 256, "width": 256}, return_tensors="pt"
        )
        statistics_of_inputs(model.model.backbone, pixels["pixel_values"])
        spread_of_one(model.model, pixels["pixel_values"])
        model.save_pretrained(self.folder / "detr")
        processor.save_pretrained(self.folder / "detr")
        return self.folder / "detr"

    @property
    def workers(self) -> int:
        return 0 if self.quick else min(8, len(os.sched_getaffinity(0)))

    def config(self, run_name: str, **changes) -> Config:
        """The assignment's training, on the generated photos with the random DETR."""
        settings = {
            "data_source": "folder",
            "coco_root": str(self.photos),
            "data_dir": str(self.folder / "data"),
            "output_dir": str(self.folder / "out"),
            "model": str(self.detr),
            "image_size": self.by_size(512, 256, 96),
            "batch_size": self.by_size(8, 2, 2),
            "max_train_images": 100_000,
            "max_val_images": 100_000,
            "num_workers": 0,
            "precision": "fp32",
            "epochs": 1,
            "augment": "full",
            "lr": 1e-4,
            "lr_backbone": 1e-5,
            "freeze_stages": 2,
            "clip_norm": 0.1,
            "ema": 0.0,
            "scheduler": "cosine",
            "overwrite": True,
            "run_name": run_name,
        }
        cfg = load_config("demo", **{**settings, **changes})
        prepare(cfg)
        return cfg


@torch.no_grad()
def statistics_of_inputs(module: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Set the fixed batch norms' mean and variance to those of what reaches them: activations stay in half precision's
    range.
    """

    def measure(norm, inputs):
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)).clamp(min=1e-6))

    hooks = [m.register_forward_pre_hook(measure) for m in module.modules() if hasattr(m, "running_var")]
    module.eval()(pixels, torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.long))
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def spread_of_one(detr: torch.nn.Module, pixels: torch.Tensor) -> None:
    """Scale the projection in front of the encoder so that its tokens have a spread of one, about as a trained one's.

    With larger ones attention looks at one token alone, and half precision chooses which.
    """

    def scale(projection, _, tokens) -> None:
        projection.weight.div_(tokens.std())

    handle = detr.input_projection.register_forward_hook(scale)
    detr.eval()(pixels)
    handle.remove()


def held_batches(run: Run, count: int) -> list[dict]:
    """The first batches of an epoch, in memory; pinned where a GPU copies them without a wait."""
    batches = []
    for batch in train_loader(replace(run, cfg=run.cfg.with_(num_workers=0)), 0):
        batches.append(batch)
        if len(batches) == count:
            break
    return batches


def made_up_batch(size: int, photos: int) -> dict:
    """A batch of 4:3 photos of noise with seven objects each, as the collator gives it."""
    height, random = -(-3 * size // 4 // 64) * 64, torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (photos, 3, height, size), dtype=torch.uint8, generator=random)
    labels = [
        {
            "class_labels": torch.randint(len(CLASSES), (7,), generator=random),
            "boxes": torch.rand(7, 4, generator=random) * 0.3 + 0.2,
        }
        for _ in range(photos)
    ]
    return {
        "pixel_values": pixels.pin_memory() if torch.cuda.is_available() else pixels,
        "sizes": [(height, size)] * photos,
        "labels": labels,
        "image_ids": list(range(photos)),
        "orig_sizes": [(height, size)] * photos,
        "unreadable": [],
    }


def seconds_each(work: Iterator, first: int) -> float:
    """Mean seconds of the items of ``work`` after the ``first`` ones, which warm up; nothing waits in between."""
    for _ in itertools.islice(work, first):
        pass
    began = now()
    count = sum(1 for _ in work)
    return (now() - began) / count


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
