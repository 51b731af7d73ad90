"""What one would write without this project: Hugging Face's object-detection recipe, from its documented API.

As in the task guide: albumentations on the full photo, the image processor on each sample, padded to a square, so that a
batch is a stack. Nothing here imports ``helpers``.
"""
from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version at import
import albumentations as A  # noqa: E402


def square_processor(model: str | Path, size: int):
    """The model's image processor: the longest side becomes ``size`` pixels, and every photo is padded to ``size`` x ``size``."""
    return AutoImageProcessor.from_pretrained(model, do_resize=True, size={"max_height": size, "max_width": size}, do_pad=True,
                                              pad_size={"height": size, "width": size})


class Photos(torch.utils.data.Dataset):
    """The photos of a COCO file that show one of ``classes`` (names, in the order of the class indices), ready for the model.

    ``steps``: other transforms of albumentations than the recipe's.
    """

    def __init__(self, annotation_file: Path, image_dir: Path, processor, classes: list[str], steps: list | None = None):
        coco = json.loads(Path(annotation_file).read_text())
        ids = {category["name"]: category["id"] for category in coco["categories"]}
        self.label_of = {ids[name]: k for k, name in enumerate(classes)}
        self.objects = defaultdict(list)
        for record in coco["annotations"]:
            if record["category_id"] in self.label_of and not record.get("iscrowd", 0):
                self.objects[record["image_id"]].append(record)
        self.images = [image for image in coco["images"] if image["id"] in self.objects]
        self.image_dir, self.processor = Path(image_dir), processor
        steps = steps or [A.HorizontalFlip(p=0.5), A.RandomBrightnessContrast(p=0.5), A.HueSaturationValue(p=0.3),
                          A.Affine(scale=(0.8, 1.2), p=0.3), A.Blur(p=0.1), A.GaussNoise(p=0.1)]
        self.transform = A.Compose(steps, bbox_params=A.BboxParams("coco", label_fields=["labels"], clip=True,
                                                                   filter_invalid_bboxes=True, min_area=1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict:
        key, objects = self.images[i]["id"], self.objects[self.images[i]["id"]]
        with Image.open(self.image_dir / self.images[i]["file_name"]) as file:
            photo = np.array(file.convert("RGB"))
        changed = self.transform(image=photo, bboxes=[record["bbox"] for record in objects],
                                 labels=[self.label_of[record["category_id"]] for record in objects])
        annotations = [{"image_id": key, "category_id": int(label), "bbox": [float(value) for value in bbox],
                        "area": float(bbox[2] * bbox[3]), "iscrowd": 0} for bbox, label in zip(changed["bboxes"], changed["labels"])]
        features = self.processor(images=[changed["image"]], annotations=[{"image_id": key, "annotations": annotations}],
                                  return_tensors="pt")
        return {name: value[0] for name, value in features.items()}


def collate(samples: list[dict]) -> dict:
    """Samples of one size to a batch: ``pixel_values`` float32 [B, 3, S, S], ``pixel_mask`` where there is one, ``labels`` as a list."""
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "pixel_mask") if name in samples[0]}
    return {**batch, "labels": [sample["labels"] for sample in samples]}
