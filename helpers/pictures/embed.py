"""Pictures inside an HTML page: bounded data URIs, so that a page needs nothing beside it."""

import base64
import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from helpers.pictures import draw

KEEP_BYTES = 250_000  # a PNG up to this size stays as it is: a figure's lines are sharper than in a JPEG


def data_uri(data: bytes, kind: str) -> str:
    """``kind`` is ``png`` or ``jpeg``."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg(image: Image.Image, side: int) -> str:
    """A picture as a JPEG data URI whose longest side is at most ``side`` pixels; transparent becomes white."""
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_uri(draw.jpeg(image, 80), "jpeg")


def picture(source: Path | bytes, side: int) -> str:
    """A PNG or JPEG file (or its bytes) as a data URI, re-encoded when large. ValueError: it does not decode."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if len(data) <= KEEP_BYTES and max(image.size) <= 2 * side and image.format in ("PNG", "JPEG"):
                return data_uri(data, image.format.lower())
            return jpeg(image, side)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        name = source.name if isinstance(source, Path) else "a picture"
        raise ValueError(f"{name} does not decode ({error})") from None
