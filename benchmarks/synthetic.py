"""What copy-paste on the fly costs a photo and worker: ``python benchmarks/synthetic.py [--coco DIR]``.

The same photos go through the data path (decode, resize, augment, collate) with and without copy-paste, in turns, in
this process and in one data-loader worker. Without ``--coco`` the photos are made-up scenes of 640 pixels.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from data_path import BATCH, in_process, in_worker, photos_of
from machine import header
from transformers import DetrImageProcessor

from helpers.augment import Augment
from helpers.dataset import CocoDetection, epoch_batches
from helpers.download.coco import read_index
from helpers.families.processors import read_processor
from helpers.synthetic_data.copy_paste import CopyPaste
from helpers.synthetic_data.objects import Segmentations, cut_pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco", type=Path, help="a COCO folder")
    parser.add_argument("--split", default="train2017")
    for name, value in (("photos", 96), ("rounds", 3), ("seed", 0), ("size", 512), ("objects", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a data-loader worker
    cv2.setNumThreads(1)
    print(header("torch", "opencv-python-headless", "albumentations", "pycocotools"))
    with tempfile.TemporaryDirectory() as folder:
        report(*photos_of(arguments, Path(folder)), arguments)


def report(annotation_file: Path, image_dir: Path, arguments: argparse.Namespace) -> None:
    whole = read_index(annotation_file, image_dir)
    index = whole.take(np.random.default_rng(arguments.seed).permutation(len(whole))[: arguments.photos])
    segmentations, size = Segmentations.read(index, annotation_file), arguments.size
    pool = cut_pool(segmentations, arguments.seed)
    preprocess = read_processor(DetrImageProcessor(size={"max_height": size, "max_width": size}))
    batches = [batch.tolist() for batch in epoch_batches(index, BATCH, arguments.seed, 0) if len(batch) == BATCH]
    steps = {"without": None}
    for places in ("random", "context"):
        steps[f"copy-paste, {places}"] = CopyPaste(segmentations, pool, arguments.objects, places).in_loader
    print(
        f"{len(index)} photos of {arguments.coco.name if arguments.coco else 'scenes'}, longest side {size}, "
        f"{arguments.objects} objects a photo from a pool of {len(pool.sprites)} "
        f"({sum(sprite.rgba.nbytes for sprite in pool.sprites) / 1e6:.0f} MB), {arguments.rounds} rounds"
    )
    data = {
        name: CocoDetection(index, preprocess.resize, Augment("full"), arguments.seed, paste=step)
        for name, step in steps.items()
    }
    measured: dict[tuple[str, str], list[float]] = {}
    for turn in range(arguments.rounds + 1):
        for where, measure in (("in this process", in_process), ("one worker", in_worker)):
            for name, dataset in data.items():
                value = measure(dataset, preprocess.collate, batches)[1]
                if turn:  # the first turn warms up
                    measured.setdefault((where, name), []).append(value)
    for where in ("in this process", "one worker"):
        print(f"{where}, processor time:")
        base = np.array(measured[where, "without"])
        for name in data:
            values = np.array(measured[where, name])
            ratios = values / base
            times = (
                ""
                if name == "without"
                else f"   {np.median(ratios):.2f} times ({ratios.min():.2f} to {ratios.max():.2f})"
            )
            print(f"  {name:20} {np.median(values):6.2f} ms a photo{times}")
    print("the aim is at most 2 times")


if __name__ == "__main__":
    main()
