"""A training step of DETR-R50 on batches from memory, ours against the Hugging Face Trainer's: ``python
benchmarks/step.py``.

The model has the true shape and random weights. Both sides train on the same square pictures of 512 px, two at a time,
so that neither gains by padding less; ``padded`` is our step on batches as our collator makes them, of photos of 4:3:
512 x 384 px, where the recipe pads to the square. Each side and round has a process of its own. Ours freezes the stem
and the first stage, as DETR's paper does; the Trainer takes the model as transformers loads it.
"""

from __future__ import annotations

from helpers.threads import wait_as_the_machine_allows

if __name__ == "__main__":
    wait_as_the_machine_allows()  # before PyTorch is loaded

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import peer
import torch
from machine import header, in_own_process
from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor, TimmBackboneConfig

from helpers.config import load_config
from helpers.devices import resolve_precision
from helpers.download.prepare import prepare
from helpers.engine import train_loader, train_step
from helpers.families.loading import quiet
from helpers.train.training import build

SIZE, BATCH, BURN_IN = 512, 2, 2


def detr_r50(folder: Path, classes: tuple[str, ...]) -> Path:
    """A model folder like facebook/detr-resnet-50's, with random weights."""
    torch.manual_seed(0)
    config = DetrConfig(
        backbone_config=TimmBackboneConfig(backbone="resnet50", out_indices=[1, 2, 3, 4], features_only=True),
        id2label=dict(enumerate(classes)),
        label2id={name: k for k, name in enumerate(classes)},
        auxiliary_loss=True,
    )
    DetrForObjectDetection(config).save_pretrained(folder)
    DetrImageProcessor().save_pretrained(folder)
    return folder


def ours(folder: Path, model: Path, precision: str, height: int, count: int) -> list[float]:
    """Seconds of each of ``count`` steps on pictures of ``height`` x 512 px; leaves the batches in batches.pt."""
    quiet()
    cfg = load_config(
        "demo",
        model=str(model),
        data_dir=str(folder / "data"),
        output_dir=str(folder / "out"),
        image_size=SIZE,
        batch_size=BATCH,
        max_train_images=4 * BATCH,
        max_val_images=2,
        num_workers=0,
        precision=precision,
        ema=0.0,
        freeze_stages=2,
        clip_norm=0.1,
        run_name=f"{precision}_{height}",
    )
    prepare(cfg)
    run = build(cfg)
    batches = list(train_loader(run, 0))
    for batch in batches:  # the scenes' aspects differ: made one
        batch["pixel_values"] = torch.nn.functional.interpolate(batch["pixel_values"], (height, SIZE))
        batch["sizes"] = [(height, SIZE)] * BATCH
    if height == SIZE:
        torch.save([run.detector.preprocess.to_device(batch) for batch in batches], folder / "batches.pt")
    seconds = []
    for k in range(count):
        began = time.perf_counter()
        train_step(run, [batches[k % len(batches)]])
        seconds.append(time.perf_counter() - began)
    return seconds


def theirs(folder: Path, model: Path, classes: tuple[str, ...], bf16: bool, count: int) -> list[float]:
    """Seconds of each of the Trainer's steps on the square batches that ``ours`` left."""
    quiet()
    batches = torch.load(folder / "batches.pt", weights_only=True)
    return peer.train(peer.detector(model, list(classes)), peer.Held(batches), peer.one, 1, count + 1, bf16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of each side and round")
    usual = ["fp32"] + ["bf16"] * (resolve_precision("auto")[0] == "bf16")  # where it is emulated, it takes minutes
    parser.add_argument("--precision", nargs="+", default=usual, choices=["fp32", "bf16"])
    arguments = parser.parse_args()
    quiet()
    print(header("torch", "transformers", "timm", "accelerate"), f"{torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        folder, classes = Path(folder), load_config("demo").classes
        model = detr_r50(folder / "model", classes)
        sides = {}
        for precision in arguments.precision:
            sides[f"ours, {precision}"] = (ours, folder, model, precision, SIZE)
            sides[f"ours padded, {precision}"] = (ours, folder, model, precision, 384)
            sides[f"Trainer, {precision}"] = (theirs, folder, model, classes, precision == "bf16")
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(arguments.rounds):
            for name, side in sides.items():
                seconds[name].append(float(np.median(in_own_process(*side, BURN_IN + arguments.steps)[BURN_IN:])))
            print(
                f"round {number + 1}: " + "; ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()),
                flush=True,
            )
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name}: {value:.2f} s a step, {BATCH / value:.2f} photos/s")
    for mine in median:
        for peers in median:
            if mine.startswith("ours") and peers.startswith("Trainer"):
                print(f"{mine} is {median[peers] / median[mine]:.2f} times as fast as {peers}")


if __name__ == "__main__":
    main()
