"""From samples to a batch, the way the checkpoint's own image processor would do it.

How to resize, normalise and pad is read from that processor once (``helpers.families``). Images stay uint8 until they
are on the device; :func:`to_device` normalises there.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad
from torch.utils.data import default_collate
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as tv_resize

from helpers.boxes import xyxy_to_cxcywh


@dataclass(frozen=True)
class Preprocess:
    """What the checkpoint's processor does to a photo.

    ``keep_aspect``: the longest side becomes ``image_size`` and a batch is padded (DETR); otherwise it becomes an
    ``image_size`` square and nothing is padded (RT-DETR, D-FINE).
    """

    image_size: int
    keep_aspect: bool
    scale: float  # pixel values are multiplied by it first, 1/255
    mean: tuple[float, ...]  # per channel, after scaling
    std: tuple[float, ...]
    interpolation: InterpolationMode
    antialias: bool = True  # smoothed before it is made smaller; RF-DETR's is not
    multiple: int = 1  # a padded batch's sides are multiples of it: few different sizes, for which a GPU finds kernels

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels after the resize."""
        if not self.keep_aspect:
            return self.image_size, self.image_size
        ratio = min(self.image_size / height, self.image_size / width)
        return max(1, int(height * ratio)), max(1, int(width * ratio))

    def resize(self, image: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [H, W, 3] and boxes in its pixels, to the target size as the processor does it, boxes clipped to it."""
        height, width = image.shape[:2]
        new_height, new_width = self.target_size(height, width)
        factor = np.float32([new_width / width, new_height / height] * 2)
        boxes_xyxy = np.clip(boxes_xyxy * factor, 0, np.float32([new_width, new_height] * 2))
        if (new_height, new_width) != (height, width):
            tensor = torch.from_numpy(image).permute(2, 0, 1)  # [3, H, W], channels last in memory: the fast path
            tensor = tv_resize(tensor, [new_height, new_width], self.interpolation, antialias=self.antialias)
            image = tensor.permute(1, 2, 0).numpy()
        return np.ascontiguousarray(image), boxes_xyxy

    def collate(self, samples: list[dict]) -> dict:
        """Samples of ``CocoDetection`` to a batch.

        ``pixel_values`` uint8 [B, 3, H, W], zero where padded; ``sizes``: each photo's (height, width) in it;
        ``labels``: per photo ``class_labels`` int64 [n] and ``boxes``, cxcywh as fractions of the photo *without*
        padding, float32 [n, 4] (the names that transformers asks for); ``image_ids``; ``orig_sizes``: (height, width)
        before the resize; ``unreadable``: ids of the photos that were left out. Without one readable photo,
        ``pixel_values`` is None.

        The pixels alone are a tensor: a data-loader worker would give each of the many small ones a file descriptor of
        its own, where arrays are sent by value.
        """
        unreadable = [sample["image_id"] for sample in samples if sample["image"] is None]
        samples = [sample for sample in samples if sample["image"] is not None]
        if not samples:
            return {"pixel_values": None, "unreadable": unreadable}
        sizes = [sample["image"].shape[:2] for sample in samples]
        height, width = (-(-max(side) // self.multiple) * self.multiple for side in zip(*sizes))
        images = [torch.from_numpy(sample["image"]) for sample in samples]
        padding = [(0, 0, 0, width - w, 0, height - h) for h, w in sizes]
        images = [pad(image, by) if any(by) else image for image, by in zip(images, padding)]
        pixels = default_collate(images)  # [B, H, W, 3]; in a data-loader worker it stacks straight into shared memory
        boxes_cxcywh = [xyxy_to_cxcywh(sample["boxes_xyxy"], h, w) for sample, (h, w) in zip(samples, sizes)]
        return {
            "pixel_values": pixels.permute(0, 3, 1, 2),  # [B, 3, H, W]
            "sizes": sizes,
            "labels": [{"class_labels": s["class_labels"], "boxes": b} for s, b in zip(samples, boxes_cxcywh)],
            "image_ids": [sample["image_id"] for sample in samples],
            "orig_sizes": [sample["orig_size"] for sample in samples],
            "unreadable": unreadable,
        }

    def to_device(self, batch: dict, device: torch.device | str = "cpu") -> dict:
        """The model's inputs on ``device``: pixels scaled and normalised there, padding zero as the processor's.

        ``pixel_mask`` int64 [B, H, W], one on the photo: only where the model pads.
        """
        mean, std = _statistics(self, torch.device(device))
        pixels = batch["pixel_values"].to(device, non_blocking=True).float()
        pixels = pixels.sub_(mean).div_(std)  # in place: on a CPU, new memory costs more than the sum
        move = {"device": device, "non_blocking": True}
        labels = [{name: torch.as_tensor(v).to(**move) for name, v in label.items()} for label in batch["labels"]]
        inputs = {"pixel_values": pixels, "labels": labels}
        if self.keep_aspect:
            heights, widths = torch.tensor(batch["sizes"]).to(**move)[..., None, None].unbind(1)  # [B, 1, 1] each
            rows, columns = (torch.arange(side, device=device) for side in pixels.shape[2:])
            mask = (rows[:, None] < heights) & (columns < widths)  # [B, H, W]
            pixels.mul_(mask[:, None])
            inputs["pixel_mask"] = mask.long()  # as the processor gives it
        return inputs

    def to_images(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Back from normalised [B, 3, H, W] to uint8 [B, H, W, 3], to look at what the model sees."""
        mean, std = _statistics(self, torch.device("cpu"))
        return (pixel_values.cpu() * std + mean).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@functools.lru_cache(maxsize=4)
def _statistics(preprocess: Preprocess, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of unscaled pixels, [1, 3, 1, 1], on the device: copied there once, not with every
    batch, which would wait for it.
    """
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return mean / preprocess.scale, std / preprocess.scale
