"""What a checkpoint's image processor does to a photo, and which sizes its model takes."""

import math

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize as tv_resize

from helpers.collator import Preprocess
from helpers.files import UserError


def read_processor(processor) -> Preprocess:
    """What an image processor of transformers does, as a :class:`Preprocess`.

    ``processor.size`` must be ``{"max_height", "max_width"}`` or ``{"height", "width"}``, as ``load_processor`` sets
    it. Raises UserError for a processor that does something else.
    """
    size = processor.size
    keep_aspect = bool(size.get("max_height"))
    image_size = size.get("max_height") or size.get("height")
    if not image_size or (size.get("max_width") or size.get("width")) != image_size or not processor.do_resize:
        raise UserError(f"The checkpoint's image processor resizes to {dict(size)}, which this project does not know.")
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    mean = tuple(map(float, processor.image_mean)) if processor.do_normalize else (0.0,) * 3
    std = tuple(map(float, processor.image_std)) if processor.do_normalize else (1.0,) * 3
    interpolation = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}[int(processor.resample)]
    multiple = 64 if keep_aspect and torch.cuda.is_available() else 1
    antialias = _antialias(processor, interpolation)
    return Preprocess(int(image_size), keep_aspect, scale, mean, std, interpolation, antialias, multiple)


def _antialias(processor, interpolation: InterpolationMode) -> bool:
    """Whether the processor smooths a photo before it makes it smaller: its attributes do not say, some noise does."""
    noise = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    plain = {"do_normalize": False, "do_rescale": False, "return_tensors": "pt"}
    (theirs,) = processor(images=noise, size={"height": 9, "width": 9}, **plain)["pixel_values"]
    for antialias in (True, False):
        ours = tv_resize(noise, [9, 9], interpolation=interpolation, antialias=antialias)
        if (theirs.float() - ours.float()).abs().max() < 2:
            return antialias
    raise UserError("The checkpoint's image processor resizes photos in a way that this project does not know.")


def sides(config) -> tuple[int, int]:
    """What a photo's sides must be a multiple of, and their least length, in pixels; (1, 1) where any will do.

    Patches, and windows of them (LW-DETR, RF-DETR, YOLOS), must come out even, and so must feature maps that are laid
    over each other (RT-DETR and its kin). What takes its queries from the maps' cells needs as many cells.
    """
    backbone = getattr(config, "backbone_config", None) or config
    windows = getattr(backbone, "num_windows_side", None) or getattr(backbone, "num_windows", 1)  # along a side
    patch, strides = int(np.max(getattr(backbone, "patch_size", 1))), getattr(config, "feat_strides", None) or ()
    step = least = math.lcm(patch * windows, *strides)
    if hasattr(config, "group_detr"):  # LW-DETR and RF-DETR
        strides = [patch / scale for scale in getattr(config, "projector_scale_factors", None) or (1,)]
    while strides and sum((least // stride) ** 2 for stride in strides) < config.num_queries:
        least += step
    return step, least
