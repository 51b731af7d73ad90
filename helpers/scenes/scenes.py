"""The built-in data: photo-sized scenes of emoji and drawings in plain COCO files, made offline from a seed.

A scene is a background, then sprites pasted one over the other; boxes and masks are those of what stays visible. A
sprite is painted only where every labelled thing below it stays recognisable, so nothing visible of an asked class
lacks a label.
Pictures: OpenMoji (https://openmoji.org), CC BY-SA 4.0, and drawings of our own; the scenes carry the same licence.
"""

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import orjson
from joblib import cpu_count
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from helpers.files import UserError, write_atomic
from helpers.scenes.backgrounds import background, photograph
from helpers.scenes.compositor import Canvas, Layer, Sprite, cropped, premultiplied
from helpers.scenes.sprites import KINDS, pick_clutter, pick_sprite

VERSION = 1  # of what is drawn: raise it with every change of a pixel, and data sets of older scenes are made anew
SCENE_CLASSES = tuple(name for name, kind in KINDS.items() if not kind.extra)
FIRST_IMAGE_ID = {"train2017": 1, "val2017": 1_000_001}

MIN_VISIBLE = 0.45  # share of a labelled thing that occlusion and the border must leave
MIN_SIDE = 6  # pixels of the shorter side of its visible box
UNSEEN_SHARE = 0.39  # of the labelled things of validation: sprites that training never draws
SIDES = (26, 120)  # longest side of a sprite in a 256-pixel scene, two octaves, before the class's own scale


def write_scenes(
    root: Path, classes: Sequence[str], n_train: int, n_val: int, seed: int, size: int = 256, pretraining: bool = False
) -> None:
    """Write `n_train` + `n_val` scenes under `root` in COCO's layout; the same arguments give the same bytes.

    `pretraining`: scenes for the shipped checkpoint, both splits drawn from the sprites of the pool `first` alone.
    `size` is the longest side in pixels. Each scene depends on (seed, split, its number) alone. Validation annotations
    carry `unseen_sprite`. UserError: a class that there are no sprites of.
    """
    for name in classes:
        if name not in KINDS:
            near = difflib.get_close_matches(name.lower(), KINDS, n=1, cutoff=0)
            some = f"the nearest is {near[0]!r}, all of them are {', '.join(KINDS)}"
            raise UserError(f"There are no built-in scenes of class {name!r}; {some}.")
    for split, count in zip(FIRST_IMAGE_ID, (n_train, n_val)):
        folder = Path(root) / "images" / split
        folder.mkdir(parents=True, exist_ok=True)
        write = partial(_write_scene, folder, classes, split, seed, size=size, pretraining=pretraining)
        bar = {"tqdm_class": tqdm, "desc": f"scenes, {split}", "unit": "scene", "leave": False}
        written = thread_map(write, range(count), max_workers=cpu_count(), **bar)  # numpy and OpenCV let others run
        content = _header(classes, seed) | {"images": [image for image, _ in written]}
        content["annotations"] = [record for _, records in written for record in records]
        # last and in one step: where the annotations are, the images are complete
        write_atomic(Path(root) / "annotations" / f"instances_{split}.json", orjson.dumps(content))


def _write_scene(
    folder: Path, classes: Sequence[str], split: str, seed: int, index: int, size: int, pretraining: bool
) -> tuple[dict, list[dict]]:
    """Make a scene and write its JPEG; its image record and annotations, whose ids are unique over both splits."""
    picture, things = make_scene(classes, split, seed, index, size, pretraining)
    image_id, (height, width) = FIRST_IMAGE_ID[split] + index, picture.shape[:2]
    jpeg = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
    (folder / f"{image_id:012d}.jpg").write_bytes(jpeg.tobytes())
    records = []
    for number, thing in enumerate(things):
        kind, shape = KINDS[thing.label.name], polygons(thing.whole_mask(height, width))
        record = {"id": image_id * 16 + number, "image_id": image_id, "category_id": kind.id, "bbox": list(thing.bbox)}
        record |= {"area": thing.visible, "iscrowd": 0, "segmentation": shape}
        records.append(record | ({"unseen_sprite": thing.label.base in kind.unseen} if split == "val2017" else {}))
    image = {"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": height, "width": width, "license": 1}
    return image, records


def make_scene(
    classes: Sequence[str], split: str, seed: int, index: int, size: int = 256, pretraining: bool = False
) -> tuple[np.ndarray, list[Layer]]:
    """Scene number `index` of a split, by itself: uint8 RGB [H, W, 3] and its 2 to 9 labelled things, lowest first.

    A label is the sprite. Up to 3 more things are in the picture without one.
    """
    rng = np.random.default_rng((seed, int(split == "val2017"), index))
    short = int(round(size * rng.uniform(0.7, 1.0)))
    height, width = (size, short) if rng.random() < 0.4 else (short, size)
    canvas = Canvas(background(rng, height, width), MIN_VISIBLE, MIN_SIDE)
    wanted = [True] * rng.integers(2, 10) + [False] * rng.integers(0, 4)
    # mostly large ones first, as near things hide far ones less often than they hide all of them
    sides = [float(np.exp(rng.uniform(*np.log(SIDES)))) for _ in wanted]
    plan = sorted(zip(wanted, sides), key=lambda p: -p[1] * rng.uniform(0.5, 1.5))
    pools = ("first", "first") if pretraining else ("train", "unseen" if split == "val2017" else "train")
    for label, side in plan:
        _add(canvas, rng, classes, pools, label, side * size / 256)
    while sum(layer.label is not None for layer in canvas.layers) < 2:
        _add(canvas, rng, classes, pools, True, SIDES[0] * 1.5 * size / 256)
    return photograph(rng, canvas.image), [layer for layer in canvas.layers if layer.label]


def _add(
    canvas: Canvas, rng: np.random.Generator, classes: Sequence[str], pools: tuple[str, str], label: bool, side: float
) -> None:
    """Pick a sprite and try some places for it; a crowded scene may refuse them all.

    `pools`: where most sprites come from, and where a share of `UNSEEN_SHARE` does.
    """
    pool = pools[int(rng.random() < UNSEEN_SHARE)]
    if label:
        weights = 1 / np.sqrt(np.arange(1, len(classes) + 1))  # mildly long-tailed in the order of the list
        name = classes[rng.choice(len(classes), p=weights / weights.sum())]
        sprite = pick_sprite(rng, name, pool)
    else:
        others = [name for name in KINDS if name not in classes]
        from_coco = others and rng.random() < 0.5
        sprite = pick_sprite(rng, others[rng.integers(len(others))], pool) if from_coco else pick_clutter(rng)
    patch = _warp(rng, sprite, side)
    height, width = canvas.image.shape[:2]
    for _ in range(8):
        # most things stand inside the picture, a quarter may be cut by its border
        inset = side / 2 if rng.random() < 0.75 else 0
        x, y = (rng.uniform(min(inset, n / 2), max(n - inset, n / 2)) for n in (width, height))
        if canvas.layers and rng.random() < 0.18:  # near another thing, so that occlusion is common
            near = canvas.layers[rng.integers(len(canvas.layers))]
            ys, xs = np.nonzero(near.mask)
            if len(xs):
                x, y = (v.mean() + rng.normal(0, 0.7) * side for v in (xs + near.left, ys + near.top))
        left, top = int(x - patch.shape[1] / 2), int(y - patch.shape[0] / 2)
        inside = -patch.shape[1] < left < width and -patch.shape[0] < top < height
        if inside and canvas.paste(patch, left, top, sprite if label else None):
            return


def _warp(rng: np.random.Generator, sprite: Sprite, side: float) -> np.ndarray:
    """The sprite at about `side` pixels, turned, flipped and recoloured: premultiplied RGBA uint8, cropped."""
    kind = KINDS.get(sprite.name)
    height, width = sprite.rgba.shape[:2]
    scale = side * (kind.scale if kind else 1) / max(height, width)
    stretch = rng.uniform(0.85, 1.18)
    new = (max(3, round(width * scale * stretch)), max(3, round(height * scale / stretch)))
    rgba = sprite.rgba[:, ::-1] if rng.random() < 0.5 else sprite.rgba
    rgba = cv2.resize(premultiplied(rgba), new, interpolation=cv2.INTER_AREA)
    angle = np.clip(rng.normal(0, 12), -40, 40)
    turn = cv2.getRotationMatrix2D((new[0] / 2, new[1] / 2), angle, 1)
    reach = int(np.hypot(*new)) + 3
    turn[:, 2] += (reach - new[0]) / 2, (reach - new[1]) / 2
    return cropped(_recolour(rng, cv2.warpAffine(rgba, turn, (reach, reach)), kind.hue if kind else 1))


def _recolour(rng: np.random.Generator, rgba: np.ndarray, hue: float) -> np.ndarray:
    """Turn the hue by up to `hue` half circles, change saturation and brightness; linear, so premultiplied is fine."""
    angle, saturation, brightness = np.pi * hue * rng.uniform(-1, 1), rng.uniform(0.5, 1.2), rng.uniform(0.65, 1.15)
    grey = np.tile([0.299, 0.587, 0.114], (3, 1))
    quarter = np.array([[0.168, 0.330, -0.497], [-0.328, 0.035, 0.292], [1.25, -1.05, -0.203]])
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3, :3] = brightness * (grey + saturation * (np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * quarter))
    out = cv2.transform(rgba, matrix)
    out[..., :3] = np.minimum(out[..., :3], out[..., 3:])
    return out


def polygons(mask: np.ndarray) -> list[list[float]]:
    """COCO polygons [[x, y, x, y, ...], ...] of a bool mask [H, W], in pixels; holes hang on their outline by a seam.

    Outlines run through pixel centres, half a pixel inside; traced at twice the size they run a quarter pixel inside.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    crop = mask[top : top + height, left : left + width].view(np.uint8).repeat(2, 0).repeat(2, 1)
    lines, links = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    lines = [cv2.approxPolyDP(line, 0.75, True)[:, 0] for line in lines]
    found = []
    for i, line in enumerate(lines):
        if links[0][i][3] >= 0 or len(line) < 3:
            continue
        for j, hole in enumerate(lines):
            if links[0][j][3] == i and cv2.contourArea(hole) > 24:
                gap = ((line[:, None] - hole[None]) ** 2).sum(-1)
                a, b = np.unravel_index(gap.argmin(), gap.shape)
                line = np.concatenate([line[: a + 1], hole[b:], hole[: b + 1], line[a:]])
        found.append((line / 2 + 0.25 + [left, top]).ravel().tolist())
    return found or [[left, top, left + width, top, left + width, top + height, left, top + height]]


def _header(classes: Sequence[str], seed: int) -> dict:
    text = f"Built-in scenes, seed {seed}. Emoji: OpenMoji (https://openmoji.org), CC BY-SA 4.0."
    kinds = [(name, KINDS[name]) for name in classes]
    return {
        "info": {"description": text, "url": "https://openmoji.org", "version": "1", "seed": seed},
        "licenses": [{"id": 1, "name": "CC BY-SA 4.0", "url": "https://creativecommons.org/licenses/by-sa/4.0/"}],
        "categories": [{"id": kind.id, "name": name, "supercategory": kind.supercategory} for name, kind in kinds],
    }
