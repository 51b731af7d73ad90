"""Checks of the data path: what goes into a batch must come back out of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from helpers.augment import augmentation
from helpers.boxes import cxcywh_to_xyxy, xyxy_to_xywh
from helpers.collator import Preprocess
from helpers.dataset import CocoDetection
from helpers.download.photos import THREADS, photo_problem
from helpers.index import CocoIndex
from helpers.pictures.charts import chart
from helpers.pictures.colours import BLUE, GREY, ORANGE

VERSIONS = (4, 1, 2)  # seeds of the augmentations that are shown: the first one flips at every level


def class_table(indices: dict[str, CocoIndex]) -> pd.DataFrame:
    """Instances (without crowd regions) per class, a column per split."""
    classes = pd.Index(next(iter(indices.values())).classes, name="class")
    columns = {name: np.bincount(i.labels[~i.iscrowd], minlength=len(classes)) for name, i in indices.items()}
    return pd.DataFrame(columns, index=classes)


def size_table(indices: dict[str, CocoIndex]) -> pd.DataFrame:
    """Share of small (< 32² px), medium and large (> 96² px) objects by COCO's area, a column per split."""
    shares = {}
    for split, index in indices.items():
        areas = index.areas[~index.iscrowd]
        small, large = (areas < 32**2).sum(), (areas > 96**2).sum()
        shares[split] = np.array([small, len(areas) - small - large, large]) / max(1, len(areas))
    return pd.DataFrame(shares, index=["small", "medium", "large"])


def is_bijective(index: CocoIndex) -> bool:
    """Whether category ids and class indices map one to one, and image and annotation ids are unique."""
    names = (index.category_ids, index.classes, index.image_ids, index.annotation_ids)
    known = (index.labels >= 0) & (index.labels < len(index.classes))
    return all(pd.Index(values).is_unique for values in names) and bool(known.all())


def collated(index: CocoIndex, preprocess: Preprocess, positions: list[int]) -> dict:
    """The batch of the photos at ``positions``, not augmented, with ``pixel_values`` normalised as for the model."""
    dataset = CocoDetection(index, preprocess.resize)
    batch = preprocess.collate([dataset[int(i)] for i in positions])
    return {**batch, **preprocess.to_device(batch)}


def drawn_back(batch: dict, preprocess: Preprocess, classes: tuple[str, ...]) -> tuple[np.ndarray, list, list]:
    """From a batch's tensors back to pictures [B, H, W, 3], their ``boxes_xyxy`` (pixels) and class names."""
    images = preprocess.to_images(batch["pixel_values"])
    if "pixel_mask" in batch:
        images = images * batch["pixel_mask"].numpy().astype(np.uint8)[..., None]
    boxes = [cxcywh_to_xyxy(label["boxes"], *size).numpy() for label, size in zip(batch["labels"], batch["sizes"])]
    return images, boxes, [[classes[k] for k in label["class_labels"].tolist()] for label in batch["labels"]]


def augmented(sample: dict, classes: tuple[str, ...], level: str) -> dict[str, tuple[np.ndarray, np.ndarray, list]]:
    """A ``sample`` of CocoDetection as ``before_after`` wants it, then three versions of it by their titles.

    ``level`` as in the config's ``augment``: the photo alone for ``none``.
    """
    parts = (sample["image"], sample["boxes_xyxy"], sample["class_labels"])
    augment, versions = augmentation(level), {"original": parts}
    for k, seed in enumerate(VERSIONS if augment else (), 1):
        versions[f"version {k}"] = augment(*parts, seed)
    return {title: (image, boxes, [classes[k] for k in labels]) for title, (image, boxes, labels) in versions.items()}


def oracle_detections(index: CocoIndex, preprocess: Preprocess) -> list[dict]:
    """The ground truth, sent through resize and collation, decoded as a model's output would be: AP must come out as 1.

    Any mix-up of formats, padding, sizes or ids on the way shows here, before hours of training do.
    """
    detections = []
    for batch in DataLoader(CocoDetection(index, preprocess.resize), 16, collate_fn=preprocess.collate):
        for image_id, (height, width), label in zip(batch["image_ids"], batch["orig_sizes"], batch["labels"]):
            bbox = xyxy_to_xywh(cxcywh_to_xyxy(label["boxes"].astype(float), height, width)).tolist()
            for k, box in zip(label["class_labels"].tolist(), bbox):
                category_id = index.category_ids[k]
                detections.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": 1.0})
    return detections


def countable(index: CocoIndex) -> np.ndarray:
    """Positions of the photos with at most 100 objects of each class: COCO gives no credit for more than that."""
    owner, k = np.repeat(np.arange(len(index)), np.diff(index.starts)), len(index.classes)
    counts = np.bincount((owner * k + index.labels)[~index.iscrowd], minlength=len(index) * k)
    return np.flatnonzero(counts.reshape(-1, k).max(axis=1) <= 100)


def drop_broken_images(index: CocoIndex) -> CocoIndex:
    """Decode every photo once; the index without those that fail, each listed in ``dropped`` with the reason."""
    sizes = ({"height": height, "width": width} for height, width in zip(index.heights.tolist(), index.widths.tolist()))
    with ThreadPoolExecutor(THREADS) as pool:
        problems = list(pool.map(photo_problem, map(index.path, range(len(index))), sizes))
    dropped = [{"file": str(index.file_names[i]), "why": why} for i, why in enumerate(problems) if why]
    return index.take(np.array([i for i, why in enumerate(problems) if not why], dtype=int), dropped)


def class_counts(table: pd.DataFrame) -> Figure:
    """Bars of instances per class; ``table`` is indexed by class with one column per split."""
    figure, axis = chart(8, 0.32 * len(table) + 1.2, xlabel="instances (crowd regions not counted)")
    position = np.arange(len(table))
    for k, (split, colour) in enumerate(zip(table.columns, (BLUE, ORANGE))):
        bars = axis.barh(position + (k - 0.5) * 0.4, table[split], height=0.38, color=colour, label=split)
        axis.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
    axis.set_yticks(position, table.index, parse_math=False)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    axis.legend()
    return figure


def box_sizes(indices: dict[str, CocoIndex]) -> Figure:
    """Histograms of the square root of COCO's area, with COCO's limits between small, medium and large."""
    names = {"xlabel": "square root of the object's area (pixels)", "ylabel": "share of objects (%)"}
    figure, axis = chart(8, 3.2, xscale="log", **names)
    for (split, index), colour in zip(indices.items(), (BLUE, ORANGE)):
        sides = np.sqrt(index.areas[~index.iscrowd])
        look = {"histtype": "step", "linewidth": 2, "color": colour, "label": split}
        axis.hist(sides, np.geomspace(2, 800, 50), weights=np.full(len(sides), 100 / max(1, len(sides))), **look)
    for limit, name in ((32, "small | medium"), (96, "medium | large")):
        axis.axvline(limit, color=GREY, linestyle=":")
        axis.annotate(name, (limit, 1.01), xycoords=axis.get_xaxis_transform(), ha="center", fontsize=8)
    ticks = [4, 8, 16, 32, 64, 96, 200, 400]
    axis.set_xticks(ticks, map(str, ticks))
    axis.minorticks_off()
    axis.legend()
    return figure
