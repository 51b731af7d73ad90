"""Look at predictions photo by photo, in Jupyter."""

import html
import threading

import numpy as np
import pandas as pd
from ipywidgets import HTML, Button, Checkbox, Dropdown, FloatSlider, HBox, Image, IntSlider, Layout, VBox

from helpers.index import CocoIndex
from helpers.metrics import Detections
from helpers.pictures.draw import jpeg, message, show, visible_boxes

EVERYTHING, ALL_ERRORS, ALL_CLASSES = "all predictions", "all errors", "all classes"
DATA_SET_ORDER, WORST_FIRST, CONFIDENT_FIRST = "data set order", "worst photo first", "most confident error first"


class Browser(VBox):
    """A slider over the photos of ``index``, to be shown in a notebook.

    ``errors``: rows of ``error_table``, gives a filter by error type; ``order``: image ids, worst photo first;
    ``threshold``: the score threshold to start with. Works without Jupyter too, where nobody can move it. ``picture``
    holds the JPEG; ``count`` is the number of predicted boxes on it.
    """

    def __init__(
        self, index: CocoIndex, detections: list[dict], errors: pd.DataFrame | None = None, order=None, threshold=0.5
    ):
        self.index, self.errors, self.order, self.count = index, errors, order, 0
        self._turn = threading.RLock()  # messages of JupyterLab may come in two threads (the kernel and its subshell)
        self.detections = Detections.of(detections)
        rules = [DATA_SET_ORDER] + [WORST_FIRST] * (order is not None) + [CONFIDENT_FIRST] * (errors is not None)
        types = [EVERYTHING] if errors is None else [EVERYTHING, ALL_ERRORS, *sorted({*errors["type"].astype(str)})]
        names = [(ALL_CLASSES, None), *((str(name), name) for name in index.classes)]
        wide = {"style": {"description_width": "7em"}}
        slow = {**wide, "continuous_update": False, "layout": Layout(width="34em")}  # else a picture per pixel moved
        self.sort = Dropdown(options=rules, value=rules[-1], description="order", **wide)
        self.kind = Dropdown(options=types, value=types[min(1, len(types) - 1)], description="show", **wide)
        self.of_class = Dropdown(options=names, description="class", **wide)
        self.slider = IntSlider(1, min=1, max=1, description="photo", **slow)
        self.threshold = FloatSlider(threshold, min=0, max=1, step=0.01, description="score from", **slow)
        self.truth = Checkbox(True, description="ground truth (green)", indent=False)
        self.previous = Button(description="previous", icon="arrow-left")
        self.next = Button(description="next", icon="arrow-right")
        whole = Layout(max_width="100%", max_height="75vh", object_fit="contain", align_self="flex-start")
        self.picture = Image(format="jpeg", layout=whole)  # a portrait too is seen together with the sliders
        self.caption = HTML()
        self.previous.on_click(lambda _: self.step(-1))
        self.next.on_click(lambda _: self.step(1))
        for widget in (self.sort, self.kind, self.of_class):
            widget.observe(lambda _: self._in_turn(self._select), "value")
        for widget in (self.slider, self.threshold, self.truth):
            widget.observe(lambda _: self._in_turn(self._show), "value")
        filters = [self.sort, self.of_class] + [self.kind] * (errors is not None)
        rows = [self.slider, self.previous, self.next], [self.threshold, self.truth], filters
        super().__init__([*map(HBox, rows), self.caption, self.picture])
        self._select()

    def step(self, by: int) -> None:
        """Go ``by`` photos on, round and round."""
        if self.photos:
            self.slider.value = (self.slider.value - 1 + by) % len(self.photos) + 1

    def _in_turn(self, act) -> None:
        """One after the other: else the caption of one control stands above the picture of another."""
        with self._turn:
            act()

    def _shown_errors(self) -> pd.DataFrame | None:
        if self.errors is None or self.kind.value == EVERYTHING:
            return None
        return self.errors if self.kind.value == ALL_ERRORS else self.errors[self.errors["type"] == self.kind.value]

    def _select(self) -> None:
        """The photos that the filters leave, in the order asked for; the first of them is shown."""
        errors, name = self._shown_errors(), self.of_class.value
        if errors is not None and name is not None:
            errors = errors[(errors["class"] == name) | (errors["predicted_class"] == name)]
        position = {int(image_id): i for i, image_id in enumerate(self.index.image_ids)}
        ids = list(position)
        if self.sort.value == WORST_FIRST:
            ids = self.order
        elif self.sort.value == CONFIDENT_FIRST:
            by_score = (self.errors if errors is None else errors).sort_values("score", ascending=False, kind="stable")
            ids = [*by_score["image_id"], *ids]
        self.photos = [position[image_id] for image_id in dict.fromkeys(ids) if image_id in position]
        if errors is not None or name is not None:
            keep = self._with_class(name) if errors is None else set(errors["image_id"])
            self.photos = [i for i in self.photos if self.index.image_ids[i] in keep]
        with self.slider.hold_trait_notifications():
            self.slider.max = max(1, len(self.photos))
            self.slider.value = 1
        self._show()

    def _with_class(self, name: str) -> set[int]:
        """Ids of the photos where the class is annotated, or predicted from the threshold on."""
        k, found = self.index.classes.index(name), self.detections
        annotated = np.repeat(self.index.image_ids, np.diff(self.index.starts))[self.index.labels == k]
        predicted = (found.category_id == self.index.category_ids[k]) & (found.score >= self.threshold.value)
        return {*annotated, *found.image_id[predicted]}

    def _show(self) -> None:
        if not self.photos:
            self.count = 0
            self.caption.value, self.picture.value = "no photo to show", jpeg(message("No photo fits these filters."))
            return
        i, name = self.photos[min(self.slider.value, len(self.photos)) - 1], self.of_class.value
        classes, errors = None if name is None else [name], self._shown_errors()
        boxes = visible_boxes(self.index, i, self.detections, self.threshold.value, self.truth.value, classes, errors)
        self.count, crowds = sum(box.predicted for box in boxes), sum(box.dotted for box in boxes)
        crowd = f" and {crowds} crowd region{'s' * (crowds > 1)}" if crowds else ""
        only = "" if name is None else f", only {html.escape(str(name))}"
        self.caption.value = (
            f"photo {self.slider.value} of {len(self.photos)}: <b>{html.escape(str(self.index.file_names[i]))}</b> "
            f"(id {self.index.image_ids[i]}), {self.count} predicted, "
            f"{len(boxes) - self.count - crowds} ground truth{crowd}{only}"
        )
        self.picture.value = jpeg(show(self.index, i, boxes))
