"""Our own drawings, for the classes where OpenMoji has too few pictures to hold some back for validation.

The shapes are in ``drawings.svg``, the colours here. All colour variants of one drawing count as the same base sprite:
they are on the same side of the train / validation split.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

PALETTES = {  # light, dark and accent colour of each variant
    "wood": (
        ("#c99a5b", "#a57939", "#fff"),
        ("#a57939", "#6a462f", "#92d3f5"),
        ("#e3c99b", "#c19a6b", "#ea5a47"),
        ("#f4f4f4", "#d0cfce", "#b1cc33"),
    ),
    "paint": (
        ("#ea5a47", "#b5261f", "#fff"),
        ("#61b2e4", "#1e50a0", "#fcea2b"),
        ("#b1cc33", "#5c9e31", "#fff"),
        ("#fcea2b", "#f1b31c", "#ea5a47"),
        ("#f4f4f4", "#d0cfce", "#61b2e4"),
        ("#8a8a8a", "#3f3f3f", "#f1b31c"),
    ),
    "fur": (
        ("#e8a33d", "#c77c1e", "#fff"),
        ("#8d8d8d", "#5e5e5e", "#fff"),
        ("#a57939", "#6a462f", "#f3d9b1"),
        ("#f2efe9", "#cfc8bc", "#ffa7c0"),
        ("#454545", "#222", "#fff"),
    ),
    "body": (("#3f3f3f", "#222", "#d0cfce"), ("#f1b31c", "#c98b10", "#3f3f3f"), ("#3d5a45", "#26382b", "#9b9b9a")),
    "stop_pole": (("#d22f27", "#9b9b9a", "#fff"), ("#b5261f", "#d0cfce", "#fff")),
    "stop_rim": (("#d22f27", "#9b9b9a", "#fff"), ("#e03c31", "#d0cfce", "#fff")),
    "stop_plate": (("#a8201a", "#6a462f", "#fff"), ("#d22f27", "#9b9b9a", "#f4f4f4")),
    "stop_turned": (("#d22f27", "#9b9b9a", "#fff"), ("#c4302b", "#5e5e5e", "#fff")),
}
LAMPS = {"r": ("#ff2a1a", "#5a1512"), "y": ("#ffd21f", "#5f4c0c"), "g": ("#38d84a", "#12421a")}  # lit and dark


@cache
def _drawings() -> dict[str, tuple[str, str]]:
    """Name -> (palette, the shapes)."""
    text = Path(__file__).with_suffix(".svg").read_text()
    return {
        name: (palette, shapes)
        for name, palette, shapes in re.findall(
            r'^<g id="(\w+)" data-palette="(\w+)">\n(.*?)^</g>', text, re.DOTALL | re.MULTILINE
        )
    }


def drawing_svg(name: str, variant: int) -> str:
    """The SVG document of colour variant ``variant`` of a drawing. KeyError: there is no drawing of that name."""
    palette, shapes = _drawings()[name]
    colours = dict(zip("abc", PALETTES[palette][variant]))
    lamps = {lamp: pair[0 if variant == i else 1] for i, (lamp, pair) in enumerate(LAMPS.items())}
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><g stroke="#000" stroke-width="2" '
        'stroke-linejoin="round" '
        f'stroke-linecap="round">{shapes.format(**colours, **lamps)}</g></svg>'
    )


def drawing_variants(name: str) -> int:
    return len(PALETTES[_drawings()[name][0]])
