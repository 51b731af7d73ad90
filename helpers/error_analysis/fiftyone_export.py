"""A run as a FiftyOne dataset, for those who want to browse there: 05's errors as tags, and FiftyOne's own
evaluation.
"""

from __future__ import annotations

import numpy as np

from helpers.config import Config
from helpers.download.zoo import open_database
from helpers.error_analysis.analysis import analyse, table_of_errors
from helpers.error_analysis.tide import BOX, Verdicts
from helpers.files import require
from helpers.index import CocoIndex, open_split
from helpers.metrics import ground_truth, load_detections

EVALUATION = "eval"  # FiftyOne's name for its evaluation: fields eval, eval_tp, eval_fp, eval_fn, ...


def run_dataset_name(cfg: Config) -> str:
    """The name of a run in FiftyOne's database, for ``fiftyone.load_dataset(name)``."""
    return f"detr-{cfg.data_dir.name}-run-{cfg.run_name}"


def to_fiftyone(cfg: Config, threshold: float | None = None):
    """The validation split with the run's predictions of ``score >= threshold`` as a ``fiftyone.Dataset``, kept in the
    database.

    ``threshold``: 05's best-F1 score by default; 0 takes every prediction, up to 100 a photo. ``ground_truth`` and
    ``predictions`` hold the boxes. A prediction is tagged with the type of its error (a key of TYPES), with "correct"
    or, where a crowd region excuses it, with "ignored"; an annotation with "missed" where 05 says so. So a tag is found
    as often as its type in ``table_of_errors``. FiftyOne's COCO evaluation at IoU 0.5 is under ``eval``; it calls
    predictions in crowd regions true positives. A dataset of an earlier call is replaced. Raises UserError when 01 or
    04 has not run, and when FiftyOne's database does not start.
    """
    detections = load_detections(require(cfg.run_dir / "detections_val2017.json", "04_evaluate"))
    index = open_split(cfg, "val2017")
    analysis = analyse(ground_truth(index), detections)
    threshold = analysis.threshold if threshold is None else threshold
    fiftyone = open_database(cfg)
    dataset = fiftyone.Dataset(run_dataset_name(cfg), persistent=True, overwrite=True)
    dataset.default_classes = list(index.classes)
    dataset.info = {"run": cfg.run_name, "checkpoint": cfg.checkpoint, "threshold": threshold}
    dataset.add_samples(_samples(fiftyone, index, analysis.verdicts, threshold), progress=False, num_samples=len(index))
    if len(index):
        dataset.evaluate_detections(
            "predictions",
            gt_field="ground_truth",
            eval_key=EVALUATION,
            method="coco",
            iou=0.5,
            classes=list(index.classes),
            progress=False,
        )
    return dataset


def _samples(fiftyone, index: CocoIndex, verdicts: Verdicts, threshold: float):
    """A sample per photo, in the split's order."""
    errors = table_of_errors(verdicts, threshold)
    missed = set(errors.loc[errors["type"] == "missed", "annotation_id"])
    rows = verdicts.predictions[verdicts.predictions["score"] >= threshold]
    rows = rows.assign(annotation_id=np.append(verdicts.objects["annotation_id"], -1)[rows["object"]])
    ends = np.searchsorted(rows["photo"], np.arange(len(index) + 1))
    for i in range(len(index)):
        size = np.array([index.widths[i], index.heights[i]], dtype=float)
        truth = [
            fiftyone.Detection(
                label=index.classes[index.labels[k]],
                bounding_box=_relative(index.bbox[k], size),
                iscrowd=bool(index.iscrowd[k]),
                area=float(index.areas[k]),
                annotation_id=int(index.annotation_ids[k]),
                tags=["missed"] if index.annotation_ids[k] in missed else [],
            )
            for k in range(index.starts[i], index.starts[i + 1])
        ]
        predicted = [
            fiftyone.Detection(
                label=index.classes[row["label"]],
                confidence=row["score"],
                tags=[str(row["kind"])],
                bounding_box=_relative([row[side] for side in BOX], size),
                iou=row["iou"],
                annotation_id=row["annotation_id"],
            )
            for row in rows.iloc[ends[i] : ends[i + 1]].to_dict("records")
        ]
        yield fiftyone.Sample(
            filepath=str(index.path(i)),
            tags=["val2017"],
            image_id=int(index.image_ids[i]),
            metadata=fiftyone.ImageMetadata(width=int(size[0]), height=int(size[1]), num_channels=3),
            ground_truth=fiftyone.Detections(detections=truth),
            predictions=fiftyone.Detections(detections=predicted),
        )


def _relative(bbox, size: np.ndarray) -> list[float]:
    """COCO's bbox in pixels as FiftyOne's: the same four numbers relative to the photo's ``size`` (width, height)."""
    return (np.asarray(bbox, dtype=float) / np.tile(size, 2)).tolist()
