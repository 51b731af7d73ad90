"""COCO results as arrays: half a million small dicts are slow to read and take ten times the memory."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter

import numpy as np


@dataclass(frozen=True, eq=False)
class Detections(Sequence):
    """D detections: ``image_id`` [D], ``category_id`` [D], ``bbox`` [D, 4] in pixels, ``score`` [D].

    It can be read like the COCO results list that it was made of: each item is a dict.
    """

    image_id: np.ndarray
    category_id: np.ndarray
    bbox: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, records: Sequence[dict]) -> Detections:
        """From a COCO results list. Raises KeyError, TypeError or ValueError where a record lacks a number."""
        if isinstance(records, cls):
            return records

        def column(name: str, kind) -> np.ndarray:
            return np.fromiter(map(itemgetter(name), records), kind, len(records))

        return cls(column("image_id", np.int64), column("category_id", np.int64), bboxes(records), column("score", float))

    @classmethod
    def joined(cls, parts: Sequence[Detections]) -> Detections:
        """One after the other."""
        if not parts:
            return cls.of([])
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("image_id", "category_id", "bbox", "score")))

    def table(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """[D, 7], as pycocotools and hotcoco read it: image id, x, y, w, h, score, category id."""
        return np.column_stack([self.image_id[rows], self.bbox[rows], self.score[rows], self.category_id[rows]])

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, k: int) -> dict:
        return {"image_id": int(self.image_id[k]), "category_id": int(self.category_id[k]), "bbox": self.bbox[k].tolist(),
                "score": float(self.score[k])}

    def __iter__(self) -> Iterator[dict]:
        names = ("image_id", "category_id", "bbox", "score")
        for start in range(0, len(self), 10_000):
            part = (getattr(self, name)[start:start + 10_000].tolist() for name in names)
            yield from (dict(zip(names, row)) for row in zip(*part))


def bboxes(records: Sequence[dict]) -> np.ndarray:
    """``bbox`` of records with four numbers each, [n, 4]."""
    numbers = chain.from_iterable(map(itemgetter("bbox"), records))
    return np.fromiter(numbers, float, 4 * len(records)).reshape(-1, 4)
