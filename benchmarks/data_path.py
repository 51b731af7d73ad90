"""How long a photo takes from the file to the batch, against Hugging Face's recipe: ``python benchmarks/data_path.py
[--coco DIR]``.

Both sides decode, resize to 512 px, augment and collate the same photos into batches of eight, in turns: in this
process, and in one data-loader worker, which also has to hand the batch over. The peer (benchmarks/peer.py) runs twice:
with our list of augmentations, which is the comparison, and with its own. Without ``--coco`` the photos are made-up
scenes.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import orjson
import peer
import psutil
import torch
from machine import header
from torch.utils.data import DataLoader
from transformers import DetrImageProcessor

from helpers.augment import Augment
from helpers.collator import Preprocess
from helpers.dataset import CocoDetection, epoch_batches, read_image, sample_seed
from helpers.download.coco import read_index
from helpers.families.processors import read_processor
from helpers.scenes.scenes import SCENE_CLASSES, write_scenes

BATCH, SIZE = 8, 512
# The shapes (width, height) that came most often among 978 photos of COCO, and how often; only used without --coco
COMMON_SHAPES = {
    (640, 480): 243,
    (640, 427): 110,
    (480, 640): 75,
    (500, 375): 47,
    (640, 426): 45,
    (640, 425): 31,
    (427, 640): 31,
    (375, 500): 27,
    (640, 428): 25,
    (500, 333): 19,
    (640, 424): 14,
    (612, 612): 11,
    (426, 640): 11,
    (640, 360): 9,
}


def photos_of(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The annotation file and the folder of the photos: those of ``--coco``, or 640-pixel scenes written into
    ``folder``.
    """
    root, split = arguments.coco or folder, arguments.split
    if arguments.coco is None:
        write_scenes(folder, SCENE_CLASSES, arguments.photos, 1, seed=arguments.seed, size=640)
    images = root / "images" / split
    return root / "annotations" / f"instances_{split}.json", images if images.is_dir() else root / split


def our_list() -> list:
    """What ``Augment("full")`` does, as one would write it with albumentations alone."""
    import albumentations as A

    return [
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(p=0.5),
        A.HueSaturationValue(p=0.3),
        A.Affine(scale=(0.8, 1.2), translate_percent=(-0.05, 0.05), p=0.5),
        A.Blur(blur_limit=3, p=0.1),
        A.GaussNoise(std_range=(0.02, 0.08), p=0.1),
    ]


class Sides:
    """The same photos through both sides; ``batches`` of a side are lists of positions in its data set."""

    def __init__(self, annotation_file: Path, image_dir: Path, photos: int, seed: int):
        with tempfile.TemporaryDirectory() as folder:
            DetrImageProcessor().save_pretrained(folder)
            processor = peer.square_processor(folder, SIZE)
        classes = [category["name"] for category in orjson.loads(annotation_file.read_bytes())["categories"]]
        self.peer = peer.Photos(annotation_file, image_dir, processor, classes)
        self.peer_our_list = peer.Photos(annotation_file, image_dir, processor, classes, our_list())
        index = read_index(annotation_file, image_dir)
        theirs = {image["id"]: i for i, image in enumerate(self.peer.images)}
        both = np.array([i for i, key in enumerate(index.image_ids) if int(key) in theirs])
        self.index = index.take(np.random.default_rng(seed).permutation(both)[:photos])
        self.preprocess = read_processor(DetrImageProcessor(size={"max_height": SIZE, "max_width": SIZE}))
        self.augment = Augment("full")
        self.ours = CocoDetection(self.index, self.preprocess.resize, self.augment, seed)
        grouped = [batch.tolist() for batch in epoch_batches(self.index, BATCH, seed, 0) if len(batch) == BATCH]
        same = [[theirs[int(key)] for key in self.index.image_ids[batch]] for batch in grouped]
        self.all = {
            "peer, our augmentations": (self.peer_our_list, peer.collate, same),
            "peer, its own": (self.peer, peer.collate, same),
            "ours": (self.ours, self.preprocess.collate, grouped),
        }


def in_process(dataset, collate, batches: list[list[int]]) -> tuple[float, float]:
    """Milliseconds a photo, on the wall and of processor time: samples and collation in this process."""
    begin, processor = time.perf_counter(), time.process_time()
    for batch in batches:
        collate([dataset[i] for i in batch])
    return tuple(
        1e3 * seconds / (len(batches) * BATCH)
        for seconds in (time.perf_counter() - begin, time.process_time() - processor)
    )


def in_worker(dataset, collate, batches: list[list[int]]) -> tuple[float, float]:
    """Milliseconds between two photos that one data-loader worker hands over, and the worker's processor time for
    one.
    """
    loader = DataLoader(
        dataset, batch_sampler=batches[:4] + batches, num_workers=1, collate_fn=collate, persistent_workers=True
    )
    received = iter(loader)
    for _ in range(4):
        next(received)
    worker = psutil.Process(received._workers[0].pid)
    begin, before = time.perf_counter(), sum(worker.cpu_times()[:2])
    count = sum(1 for _ in received)
    return tuple(
        1e3 * seconds / (count * BATCH)
        for seconds in (time.perf_counter() - begin, sum(worker.cpu_times()[:2]) - before)
    )


def our_steps(sides: Sides) -> dict[str, float]:
    """Milliseconds of processor time a photo of each of our steps, one after the other for all photos."""
    index, preprocess, seconds = sides.index, sides.preprocess, {}

    def timed(step: str, work) -> list:
        begin = time.process_time()
        made = work()
        seconds[step] = 1e3 * (time.process_time() - begin) / len(index)
        return made

    photos = timed(
        "decode",
        lambda: [read_image(index.path(i), int(index.heights[i]), int(index.widths[i])) for i in range(len(index))],
    )
    boxes = [index.boxes_xyxy[index.rows(i, crowd=False)] for i in range(len(index))]
    labels = [index.labels[index.rows(i, crowd=False)] for i in range(len(index))]
    resized = timed("resize", lambda: [preprocess.resize(photo, b) for photo, b in zip(photos, boxes)])
    changed = timed(
        "augment",
        lambda: [
            sides.augment(image, b, y, sample_seed(0, 0, i)) for i, ((image, b), y) in enumerate(zip(resized, labels))
        ],
    )
    samples = [
        {"image": image, "boxes_xyxy": b, "class_labels": y, "image_id": i, "orig_size": photos[i].shape[:2]}
        for i, (image, b, y) in enumerate(changed)
    ]
    batches = timed(
        "collate", lambda: [preprocess.collate([samples[i] for i in batch]) for batch in sides.all["ours"][2]]
    )
    timed("normalise on the device (here the CPU)", lambda: [preprocess.to_device(batch) and None for batch in batches])
    return seconds


def padding(preprocess: Preprocess, heights: np.ndarray, widths: np.ndarray, batches: list[np.ndarray]) -> float:
    """The part of all pixels in the batches that is padding."""
    sizes = np.array([preprocess.target_size(int(h), int(w)) for h, w in zip(heights, widths)])
    photos = sum(sizes[batch].prod(axis=1).sum() for batch in batches)
    return 1 - photos / sum(sizes[batch].max(axis=0).prod() * len(batch) for batch in batches)


def padding_report(sides: Sides, from_coco: bool, seed: int) -> str:
    random, index = np.random.default_rng(seed), sides.index
    if not from_coco:
        often = np.array(list(COMMON_SHAPES.values()))
        shapes = random.choice(np.array(list(COMMON_SHAPES)), 2000, p=often / often.sum())
        index = index.take(np.resize(np.arange(len(index)), 2000))
        index.widths[:], index.heights[:] = shapes.T
    order = random.permutation(len(index))
    mixed = [order[k : k + BATCH] for k in range(0, len(order), BATCH)]
    values = [
        padding(sides.preprocess, index.heights, index.widths, batches)
        for batches in (mixed, epoch_batches(index, BATCH, seed, 0))
    ]
    square = 1 - np.mean(
        [np.prod(sides.preprocess.target_size(int(h), int(w))) / SIZE**2 for h, w in zip(index.heights, index.widths)]
    )
    return (
        f"padding: {square:.1%} of the pixels in squares, {values[0]:.1%} in random batches, {values[1]:.1%} "
        f"in batches of like shape"
    )


def worker_memory(dataset, collate, batches: list[list[int]], workers: int) -> float:
    """MB that the workers have resident together, pages that they share counted once in all (PSS), while they work."""
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    received = iter(loader)
    for _ in range(len(batches) // 2):
        next(received)
    pids = [worker.pid for worker in received._workers]
    return (
        sum(int(re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) for pid in pids)
        / 1e3
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco", type=Path, help="a COCO folder")
    parser.add_argument("--split", default="train2017")
    for name, value in (("photos", 160), ("rounds", 3), ("workers", 4), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # as in a data-loader worker
    cv2.setNumThreads(1)
    print(header("torch", "torchvision", "opencv-python-headless", "albumentations", "transformers", "pillow"))
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(*photos_of(arguments, Path(folder)), arguments.photos, arguments.seed)
        print(
            f"{len(sides.index)} photos of {arguments.coco.name if arguments.coco else 'scenes'}, longest side "
            f"{SIZE}, batches of {BATCH}, {arguments.rounds} rounds"
        )
        report(sides, arguments)


def report(sides: Sides, arguments: argparse.Namespace) -> None:
    measured: dict[tuple[str, str], list[tuple[float, float]]] = {}
    steps = []
    for turn in range(arguments.rounds + 1):
        for where, measure in (("in this process", in_process), ("one worker", in_worker)):
            for name, side in sides.all.items():
                value = measure(*side)
                if turn:  # the first turn warms up
                    measured.setdefault((where, name), []).append(value)
        steps.append(our_steps(sides))
    for where in ("in this process", "one worker"):
        for column, clock in enumerate(("on the wall", "processor time, which a busy machine changes less")):
            print(f"{where}, {clock}:")
            ours = np.array(measured[where, "ours"])[:, column]
            for name in sides.all:
                values = np.array(measured[where, name])[:, column]
                ratios = values / ours
                times = (
                    ""
                    if name == "ours"
                    else f"   {np.median(values) / np.median(ours):.2f} times ours ({ratios.min():.2f} to "
                    f"{ratios.max():.2f})"
                )
                print(
                    f"  {name:24} {np.median(values):6.2f} ms a photo, {1e3 / np.median(values):5.0f} photos/s{times}"
                )
    print("our steps, processor time:")
    for step in steps[0]:
        print(f"  {step:38} {np.median([row[step] for row in steps[1:]]):6.2f} ms a photo")
    print("the aim is 3.5 times, per worker")
    print(padding_report(sides, arguments.coco is not None, arguments.seed))
    for name, side in sides.all.items():
        print(f"{arguments.workers} workers, {name:24} {worker_memory(*side, arguments.workers):6.0f} MB together")


if __name__ == "__main__":
    main()
