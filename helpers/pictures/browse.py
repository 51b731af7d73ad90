"""Look at predictions photo by photo: :func:`draw` makes one picture, :func:`browse` a slider over all of them in
Jupyter.

Red dashed boxes are predicted, green solid ones are the ground truth.
"""

from __future__ import annotations

import html

import ipywidgets
import pandas as pd

from helpers.index import CocoIndex
from helpers.pictures.draw import message, picture, visible_boxes

EVERYTHING, ALL_ERRORS, ALL_CLASSES = "all predictions", "all errors", "all classes"
DATA_SET_ORDER, WORST_FIRST, CONFIDENT_FIRST = "data set order", "worst photo first", "most confident error first"


def browse(
    index: CocoIndex,
    detections: list[dict],
    errors: pd.DataFrame | None = None,
    order: list[int] | None = None,
    threshold: float = 0.5,
) -> Browser:
    """A slider over the photos of ``index``, to be shown in a notebook.

    ``errors``: rows of ``error_table``, gives a filter by error type; ``order``: image ids, worst photo first;
    ``threshold``: the score threshold to start with. Works without Jupyter too, where nobody can move it.
    """
    return Browser(index, detections, errors, order, threshold)


class Browser(ipywidgets.VBox):
    """The widgets of :func:`browse`. ``picture`` holds the JPEG; ``count`` is the number of predicted boxes on it."""

    def __init__(
        self,
        index: CocoIndex,
        detections: list[dict],
        errors: pd.DataFrame | None,
        order: list[int] | None,
        threshold: float,
    ):
        self.index, self.errors, self.order, self.count = index, errors, order, 0
        self._detections: dict[int, list[dict]] = {}
        for row in detections:
            self._detections.setdefault(row["image_id"], []).append(row)
        wide = {"description_width": "7em"}
        rules = [DATA_SET_ORDER] + [WORST_FIRST] * (order is not None) + [CONFIDENT_FIRST] * (errors is not None)
        types = (
            [EVERYTHING, ALL_ERRORS, *sorted(set(errors["type"].astype(str)))] if errors is not None else [EVERYTHING]
        )
        self.sort = ipywidgets.Dropdown(options=rules, value=rules[-1], description="order", style=wide)
        self.kind = ipywidgets.Dropdown(
            options=types, value=types[min(1, len(types) - 1)], description="show", style=wide
        )
        self.of_class = ipywidgets.Dropdown(
            options=[(ALL_CLASSES, None), *((str(c), c) for c in index.classes)], description="class", style=wide
        )
        self.slider = ipywidgets.IntSlider(
            1,
            min=1,
            max=1,
            description="photo",
            continuous_update=False,
            style=wide,
            layout=ipywidgets.Layout(width="34em"),
        )
        self.threshold = ipywidgets.FloatSlider(
            threshold,
            min=0,
            max=1,
            step=0.01,
            description="score from",
            continuous_update=False,
            style=wide,
            layout=ipywidgets.Layout(width="34em"),
        )
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
        super().__init__(
            [
                ipywidgets.HBox([self.slider, self.previous, self.next]),
                ipywidgets.HBox([self.threshold, self.truth]),
                ipywidgets.HBox(filters),
                self.caption,
                self.picture,
            ]
        )
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
            ids = list(
                dict.fromkeys([*by_score.sort_values("score", ascending=False, kind="stable")["image_id"], *ids])
            )
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
            d["category_id"] == self.index.category_ids[k] and d["score"] >= self.threshold.value for d in self._of(i)
        )

    def _of(self, i: int) -> list[dict]:
        return self._detections.get(int(self.index.image_ids[i]), [])

    def _show(self, _change=None) -> None:
        if not self.photos:
            self.count = 0
            self.caption.value, self.picture.value = "no photo to show", message("No photo fits these filters.")
            return
        i = self.photos[min(self.slider.value, len(self.photos)) - 1]
        classes = None if self.of_class.value is None else [self.of_class.value]
        boxes = visible_boxes(
            self.index, i, self._of(i), self.threshold.value, self.truth.value, classes, self._shown_errors()
        )
        self.count = sum(box.predicted for box in boxes)
        self.caption.value = (
            f"photo {self.slider.value} of {len(self.photos)}: <b>{html.escape(str(self.index.file_names[i]))}</b> "
            f"(id {int(self.index.image_ids[i])}), {self.count} predicted, {len(boxes) - self.count} ground truth"
            + ("" if classes is None else f", only {html.escape(str(classes[0]))}")
        )
        self.picture.value = picture(self.index, i, boxes)
