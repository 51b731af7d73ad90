"""Look at predictions photo by photo: :func:`draw` makes one picture, :func:`browse` a slider over all of them in Jupyter.

Red dashed boxes are predicted, green solid ones are the ground truth.
"""
from __future__ import annotations

import functools
import html
import io
from dataclasses import dataclass
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from helpers.boxes import xywh_to_xyxy
from helpers.dataset import CocoIndex, read_image

PREDICTED, TRUTH = (205, 0, 0), (0, 128, 60)
EVERYTHING, ALL_ERRORS, ALL_CLASSES = "all predictions", "all errors", "all classes"
DATA_SET_ORDER, WORST_FIRST, CONFIDENT_FIRST = "data set order", "worst photo first", "most confident error first"


@dataclass(frozen=True)
class Box:
    """A box of the picture; ``xyxy`` in the photo's pixels."""

    xyxy: tuple[float, float, float, float]
    text: str
    predicted: bool
    width: int = 2


def visible_boxes(index: CocoIndex, i: int, detections: list[dict], threshold: float, show_truth: bool = True,
                  classes: list[str] | None = None, errors: pd.DataFrame | None = None) -> list[Box]:
    """What :func:`draw` puts on image ``i``: its ground truth, and predictions with ``score >= threshold``.

    ``classes`` (names) keeps only these. With ``errors`` (rows of ``error_table``) the predictions are only the false ones,
    their label says why, and what was missed is drawn thick.
    """
    wanted = set(index.classes if classes is None else classes)
    missed = set() if errors is None else set(errors.loc[errors["type"] == "missed", "annotation_id"])
    boxes = []
    for row in index.rows(i) if show_truth else ():
        name, lost = index.classes[index.labels[row]], index.annotation_ids[row] in missed
        text = f"crowd of {name}" if index.iscrowd[row] else f"missed: {name}" if lost else name
        if name in wanted:
            boxes.append(Box(_xyxy(index.bbox[row]), text, False, 4 if lost else 1 if index.iscrowd[row] else 2))
    if errors is not None:
        return boxes + _false_predictions(errors[errors["image_id"] == index.image_ids[i]], threshold, wanted)
    name_of = {category: name for category, name in zip(index.category_ids, index.classes) if name in wanted}
    rows = [d for d in detections
            if d["image_id"] == index.image_ids[i] and d["score"] >= threshold and d["category_id"] in name_of]
    return boxes + [Box(_xyxy(d["bbox"]), f"{name_of[d['category_id']]} {d['score']:.2f}", True)
                    for d in sorted(rows, key=lambda d: d["score"])]


def _false_predictions(errors: pd.DataFrame, threshold: float, wanted: set[str]) -> list[Box]:
    """Boxes of the wrong predictions of one photo; a class is meant when it was predicted or should have been."""
    errors = errors[(errors["type"] != "missed") & (errors["score"] >= threshold)]
    errors = errors[errors["predicted_class"].isin(wanted) | errors["class"].isin(wanted)].sort_values("score")
    return [Box(_xyxy(bbox), f"{kind}: {name} {score:.2f}", True) for kind, name, score, bbox in
            zip(errors["type"], errors["predicted_class"], errors["score"], errors[["x", "y", "w", "h"]].to_numpy(dtype=float))]


def draw(index: CocoIndex, i: int, detections: list[dict], threshold: float, show_truth: bool = True,
         classes: list[str] | None = None, errors: pd.DataFrame | None = None, max_side: int = 640) -> bytes:
    """Image ``i`` with its boxes as JPEG, longest side ``max_side`` pixels at most (small photos are doubled at most).

    ``detections``: COCO results, those of other photos are left out; the rest as in :func:`visible_boxes`. A photo that
    cannot be read gives a grey picture that says so.
    """
    return picture(index, i, visible_boxes(index, i, detections, threshold, show_truth, classes, errors), max_side)


def picture(index: CocoIndex, i: int, boxes: list[Box], max_side: int = 640) -> bytes:
    """Image ``i`` with ``boxes``, as JPEG."""
    height, width = int(index.heights[i]), int(index.widths[i])
    factor = min(max_side / max(height, width), 2.0)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    try:
        image = Image.fromarray(read_image(index.path(i), height, width)).resize(size, Image.BILINEAR)
    except OSError as error:
        return message(f"This photo cannot be shown: {error}", size)
    canvas = ImageDraw.Draw(image)
    limit = np.array([size[0] - 1, size[1] - 1] * 2)
    corners = [np.clip(np.array(box.xyxy) * factor, 0, limit) for box in boxes]
    for box, at in zip(boxes, corners):
        _rectangle(canvas, at.tolist(), box)
    font, taken = _font(13 if len(boxes) <= 30 else 11), []
    for box, at in sorted(zip(reversed(boxes), reversed(corners)), key=lambda pair: pair[0].width, reverse=True):
        _label(canvas, at.tolist(), box, font, size, taken)  # what was missed first, then the most confident predictions
    return _jpeg(image)


def message(text: str, size: tuple[int, int] = (640, 480)) -> bytes:
    """A grey picture with a sentence, as JPEG."""
    image = Image.new("RGB", size, (120, 120, 120))
    lines = [text[k : k + max(size[0] // 9, 8)] for k in range(0, min(len(text), 600), max(size[0] // 9, 8))]
    ImageDraw.Draw(image).multiline_text((8, 8), "\n".join(lines), fill="white", font=_font(13))
    return _jpeg(image)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _xyxy(bbox) -> tuple[float, ...]:
    return tuple(xywh_to_xyxy(np.asarray(bbox, dtype=float)).tolist())


@functools.lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # its DejaVu Sans knows more letters than Pillow's own font

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _rectangle(canvas: ImageDraw.ImageDraw, xyxy: list[float], box: Box) -> None:
    """Solid green for the truth; red dashes on a thin white line for a prediction, to be told apart without colour."""
    if not box.predicted:
        canvas.rectangle(xyxy, outline=TRUTH, width=box.width)
        return
    x0, y0, x1, y1 = xyxy
    canvas.rectangle(xyxy, outline="white", width=1)
    for start, stop, fixed, across in ((x0, x1, y0, False), (x0, x1, y1, False), (y0, y1, x0, True), (y0, y1, x1, True)):
        for at in np.arange(start, stop, 11.0):
            end = min(at + 7.0, stop)
            canvas.line((fixed, at, fixed, end) if across else (at, fixed, end, fixed), fill=PREDICTED, width=box.width)


def _label(canvas: ImageDraw.ImageDraw, xyxy: list[float], box: Box, font, size: tuple[int, int],
           taken: list[tuple]) -> None:
    """Write the text on a filled rectangle inside the picture, at the box's corner that hides the least of the labels ``taken``.

    Where every place would hide another label the box stays without one: half a name helps nobody.
    """
    text = _plain(box.text)
    width, height = font.getlength(text) + 6, font.size + 5
    x0, y0, x1, y1 = xyxy
    above, below = [(x0, y0 - height), (x1 - width, y0 - height)], [(x0, y1), (x1 - width, y1)]
    inside = [(x0, y0), (x0, y1 - height), (x1 - width, y0), (x1 - width, y1 - height)]
    places = [(min(max(x, 0), max(size[0] - width - 1, 0)), min(max(y, 0), max(size[1] - height - 1, 0)))
              for x, y in (above + below if box.predicted else below + above) + inside]
    hidden = _overlaps(np.array([(x, y, x + width, y + height) for x, y in places]), np.array(taken).reshape(-1, 4))
    if hidden.min() <= 0.15 * width * height:
        x, y = places[int(hidden.argmin())]
        taken.append((x, y, x + width, y + height))
        canvas.rectangle(taken[-1], fill=PREDICTED if box.predicted else TRUTH)
        canvas.text((x + 3, y + 1), text, fill="white", font=font)


def _overlaps(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """How much of each rectangle of [n, 4] those of [m, 4] cover together, in square pixels, [n]."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])  # [n, m, 2]
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(axis=2).sum(axis=1)


def _plain(text: str) -> str:
    """One short line without control characters: a class name comes from a file."""
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= 36 else text[:35] + "…"


def browse(index: CocoIndex, detections: list[dict], errors: pd.DataFrame | None = None, order: list[int] | None = None,
           threshold: float = 0.5) -> "Browser":
    """A slider over the photos of ``index``, to be shown in a notebook.

    ``errors``: rows of ``error_table``, gives a filter by error type; ``order``: image ids, worst photo first; ``threshold``:
    the score threshold to start with. Works without Jupyter too, where nobody can move it.
    """
    return Browser(index, detections, errors, order, threshold)


class Browser(ipywidgets.VBox):
    """The widgets of :func:`browse`. ``picture`` holds the JPEG; ``count`` is the number of predicted boxes on it."""

    def __init__(self, index: CocoIndex, detections: list[dict], errors: pd.DataFrame | None, order: list[int] | None,
                 threshold: float):
        self.index, self.errors, self.order, self.count = index, errors, order, 0
        self._detections: dict[int, list[dict]] = {}
        for row in detections:
            self._detections.setdefault(row["image_id"], []).append(row)
        wide = {"description_width": "7em"}
        rules = [DATA_SET_ORDER] + [WORST_FIRST] * (order is not None) + [CONFIDENT_FIRST] * (errors is not None)
        types = [EVERYTHING, ALL_ERRORS, *sorted(set(errors["type"].astype(str)))] if errors is not None else [EVERYTHING]
        self.sort = ipywidgets.Dropdown(options=rules, value=rules[-1], description="order", style=wide)
        self.kind = ipywidgets.Dropdown(options=types, value=types[min(1, len(types) - 1)], description="show", style=wide)
        self.of_class = ipywidgets.Dropdown(options=[(ALL_CLASSES, None), *((str(c), c) for c in index.classes)],
                                            description="class", style=wide)
        self.slider = ipywidgets.IntSlider(1, min=1, max=1, description="photo", continuous_update=False, style=wide,
                                           layout=ipywidgets.Layout(width="34em"))
        self.threshold = ipywidgets.FloatSlider(threshold, min=0, max=1, step=0.01, description="score from",
                                                continuous_update=False, style=wide, layout=ipywidgets.Layout(width="34em"))
        self.truth = ipywidgets.Checkbox(True, description="ground truth (green)", indent=False)
        self.previous = ipywidgets.Button(description="previous", icon="arrow-left")
        self.next = ipywidgets.Button(description="next", icon="arrow-right")
        self.picture = ipywidgets.Image(format="jpeg", layout=ipywidgets.Layout(max_width="100%", object_fit="contain"))
        self.caption = ipywidgets.HTML()
        self.previous.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        for widget in (self.sort, self.kind, self.of_class):
            widget.observe(self._select, "value")
        for widget in (self.slider, self.threshold, self.truth):
            widget.observe(self._show, "value")
        filters = [self.sort, self.of_class] + [self.kind] * (errors is not None)
        super().__init__([ipywidgets.HBox([self.slider, self.previous, self.next]), ipywidgets.HBox([self.threshold, self.truth]),
                          ipywidgets.HBox(filters), self.caption, self.picture])
        self._select()

    def step(self, by: int) -> None:
        """Go ``by`` photos on, round and round."""
        if self.photos:
            self.slider.value = (self.slider.value - 1 + by) % len(self.photos) + 1

    def _shown_errors(self) -> pd.DataFrame | None:
        if self.errors is None or self.kind.value == EVERYTHING:
            return None
        return self.errors if self.kind.value == ALL_ERRORS else self.errors[self.errors["type"] == self.kind.value]

    def _select(self, _change=None) -> None:
        """The photos that the filters leave, in the order asked for; the first of them is shown."""
        errors, name = self._shown_errors(), self.of_class.value
        if errors is not None and name is not None:
            errors = errors[(errors["class"] == name) | (errors["predicted_class"] == name)]
        position = {int(image_id): i for i, image_id in enumerate(self.index.image_ids)}
        ids = list(position)
        if self.sort.value == WORST_FIRST:
            ids = list(dict.fromkeys(self.order))
        elif self.sort.value == CONFIDENT_FIRST:
            by_score = self.errors if errors is None else errors
            ids = list(dict.fromkeys([*by_score.sort_values("score", ascending=False, kind="stable")["image_id"], *ids]))
        self.photos = [position[image_id] for image_id in ids if image_id in position]
        if errors is not None:
            keep = set(errors["image_id"])
            self.photos = [i for i in self.photos if self.index.image_ids[i] in keep]
        elif name is not None:
            self.photos = [i for i in self.photos if self._has(i, name)]
        with self.slider.hold_trait_notifications():
            self.slider.max = max(1, len(self.photos))
            self.slider.value = 1
        self._show()

    def _has(self, i: int, name: str) -> bool:
        """Whether the class is annotated in photo ``i``, or predicted there above the threshold."""
        k = self.index.classes.index(name)
        return bool((self.index.labels[self.index.rows(i)] == k).any()) or any(
            d["category_id"] == self.index.category_ids[k] and d["score"] >= self.threshold.value for d in self._of(i))

    def _of(self, i: int) -> list[dict]:
        return self._detections.get(int(self.index.image_ids[i]), [])

    def _show(self, _change=None) -> None:
        if not self.photos:
            self.count = 0
            self.caption.value, self.picture.value = "no photo to show", message("No photo fits these filters.")
            return
        i = self.photos[min(self.slider.value, len(self.photos)) - 1]
        classes = None if self.of_class.value is None else [self.of_class.value]
        boxes = visible_boxes(self.index, i, self._of(i), self.threshold.value, self.truth.value, classes, self._shown_errors())
        self.count = sum(box.predicted for box in boxes)
        self.caption.value = (
            f"photo {self.slider.value} of {len(self.photos)}: <b>{html.escape(str(self.index.file_names[i]))}</b> "
            f"(id {int(self.index.image_ids[i])}), {self.count} predicted, {len(boxes) - self.count} ground truth"
            + ("" if classes is None else f", only {html.escape(str(classes[0]))}"))
        self.picture.value = picture(self.index, i, boxes)
