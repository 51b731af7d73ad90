"""What one would write without this project: Hugging Face's object-detection recipe, from its documented API.

As in the task guide: albumentations on the full photo, the image processor on each sample, padded to a square, so that
a batch is a stack. Nothing here imports ``helpers``.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, Trainer, TrainerCallback, TrainingArguments

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version at import
import albumentations as A


def square_processor(model: str | Path, size: int):
    """The model's image processor: the longest side becomes ``size`` pixels, and every photo is padded to ``size`` x
    ``size``.
    """
    return AutoImageProcessor.from_pretrained(
        model,
        do_resize=True,
        size={"max_height": size, "max_width": size},
        do_pad=True,
        pad_size={"height": size, "width": size},
    )


class Photos(torch.utils.data.Dataset):
    """The photos of a COCO file that show one of ``classes`` (names, in the order of the class indices), ready for the
    model.

    ``steps``: other transforms of albumentations than the recipe's.
    """

    def __init__(
        self, annotation_file: Path, image_dir: Path, processor, classes: list[str], steps: list | None = None
    ):
        coco = json.loads(Path(annotation_file).read_text())
        ids = {category["name"]: category["id"] for category in coco["categories"]}
        self.label_of = {ids[name]: k for k, name in enumerate(classes)}
        self.objects = defaultdict(list)
        for record in coco["annotations"]:
            if record["category_id"] in self.label_of and not record.get("iscrowd", 0):
                self.objects[record["image_id"]].append(record)
        self.images = [image for image in coco["images"] if image["id"] in self.objects]
        self.image_dir, self.processor = Path(image_dir), processor
        steps = steps or [
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(p=0.5),
            A.HueSaturationValue(p=0.3),
            A.Affine(scale=(0.8, 1.2), p=0.3),
            A.Blur(p=0.1),
            A.GaussNoise(p=0.1),
        ]
        self.transform = A.Compose(
            steps,
            bbox_params=A.BboxParams(
                "coco", label_fields=["labels"], clip=True, filter_invalid_bboxes=True, min_area=1
            ),
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        key, objects = self.images[i]["id"], self.objects[self.images[i]["id"]]
        with Image.open(self.image_dir / self.images[i]["file_name"]) as file:
            photo = np.array(file.convert("RGB"))
        changed = self.transform(
            image=photo,
            bboxes=[record["bbox"] for record in objects],
            labels=[self.label_of[record["category_id"]] for record in objects],
        )
        annotations = [
            {
                "image_id": key,
                "category_id": int(label),
                "bbox": [float(value) for value in bbox],
                "area": float(bbox[2] * bbox[3]),
                "iscrowd": 0,
            }
            for bbox, label in zip(changed["bboxes"], changed["labels"])
        ]
        features = self.processor(
            images=[changed["image"]], annotations=[{"image_id": key, "annotations": annotations}], return_tensors="pt"
        )
        return {name: value[0] for name, value in features.items()}


def collate(samples: list[dict]) -> dict:
    """Samples of one size to a batch: ``pixel_values`` float32 [B, 3, S, S], ``pixel_mask`` where there is one,
    ``labels`` as a list.
    """
    batch = {
        name: torch.stack([sample[name] for sample in samples])
        for name in ("pixel_values", "pixel_mask")
        if name in samples[0]
    }
    return {**batch, "labels": [sample["labels"] for sample in samples]}


def detector(model: str | Path, classes: list[str]) -> torch.nn.Module:
    """The checkpoint with a new head for ``classes`` (a mismatch is not an error), in fp32, all of it trained."""
    return AutoModelForObjectDetection.from_pretrained(
        model,
        id2label=dict(enumerate(classes)),
        dtype=torch.float32,
        label2id={name: k for k, name in enumerate(classes)},
        ignore_mismatched_sizes=True,
    )


class Held(torch.utils.data.IterableDataset):
    """Collated batches from memory, again and again: for steps without a data path (``batch_size=1``,
    ``collate=one``).
    """

    def __init__(self, batches: list[dict]):
        self.batches = batches

    def __iter__(self):
        while True:
            yield from self.batches


def one(rows: list[dict]) -> dict:
    return rows[0]


class _Clock(TrainerCallback):
    def __init__(self):
        self.marks = []

    def on_step_end(self, *_, **__) -> None:
        self.marks.append(time.perf_counter())


def train(
    model: torch.nn.Module,
    photos,
    collate,
    batch_size: int,
    steps: int,
    bf16: bool = False,
    workers: int = 0,
    fp16: bool = False,
) -> list[float]:
    """Train ``steps`` steps with the Trainer, as the task guide sets it; the seconds from each step's end to the next
    one's.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=5e-5,
            weight_decay=1e-4,
            max_grad_norm=0.1,
            lr_scheduler_type="cosine",
            bf16=bf16,
            fp16=fp16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_num_workers=workers,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=10 * steps,
        )
        clock = _Clock()
        Trainer(model=model, args=arguments, train_dataset=photos, data_collator=collate, callbacks=[clock]).train()
    return np.diff(clock.marks).tolist()
