"""A run as a FiftyOne dataset, to browse there: 05's errors as tags, and FiftyOne's own evaluation."""

import numpy as np

from helpers.config import Config
from helpers.download.zoo import open_database
from helpers.error_analysis.analysis import analyse, error_table
from helpers.error_analysis.tide import Verdicts
from helpers.files import require
from helpers.index import open_split
from helpers.metrics import Detections, ground_truth, load_detections


def to_fiftyone(cfg: Config, threshold: float | None = None):
    """The validation split with the run's predictions of ``score >= threshold`` in FiftyOne's database, a ``Dataset``.

    ``threshold``: 05's best-F1 score by default; 0 takes every prediction, up to 100 a photo. ``ground_truth`` and
    ``predictions`` hold the boxes. A prediction is tagged with the type of its error (a key of TYPES), with "correct"
    or, where a crowd region excuses it, with "ignored"; an annotation with "missed" where 05 says so. So a tag is found
    as often as its type in ``error_table``. FiftyOne's COCO evaluation at IoU 0.5 is under ``eval``, ``eval_tp`` and so
    on; it calls predictions in crowd regions true positives. A dataset of an earlier call is replaced. Raises UserError
    when 01 or 04 has not run, and when FiftyOne's database does not start.
    """
    detections = load_detections(require(cfg.run_dir / "detections_val2017.json", "04_evaluate"))
    index = open_split(cfg, "val2017")
    gt = ground_truth(index)
    analysis = analyse(gt, detections)
    threshold = analysis.threshold if threshold is None else threshold
    fiftyone = open_database(cfg)
    from fiftyone.utils.coco import add_coco_labels

    dataset = fiftyone.Dataset(f"detr-{cfg.data_dir.name}-run-{cfg.run_name}", persistent=True, overwrite=True)
    dataset.default_classes = list(index.classes)
    dataset.info = {"run": cfg.run_name, "checkpoint": cfg.checkpoint, "threshold": threshold}
    size = lambda i: fiftyone.ImageMetadata(width=int(index.widths[i]), height=int(index.heights[i]), num_channels=3)
    samples = [
        fiftyone.Sample(str(index.path(i)), tags=["val2017"], image_id=int(image_id), metadata=size(i))
        for i, image_id in enumerate(index.image_ids)
    ]
    dataset.add_samples(samples, progress=False)
    for field, records in zip(("ground_truth", "predictions"), _tagged(gt, detections, analysis.verdicts, threshold)):
        dataset.add_sample_field(field, fiftyone.EmbeddedDocumentField, embedded_doc_type=fiftyone.Detections)
        if records:
            add_coco_labels(dataset, field, records, gt["categories"], coco_id_field="image_id")
    if len(index):
        kind = {"method": "coco", "iou": 0.5, "classes": list(index.classes), "progress": False}
        dataset.evaluate_detections("predictions", "ground_truth", "eval", **kind)
    return dataset


def _tagged(gt: dict, detections: list[dict], verdicts: Verdicts, threshold: float) -> tuple[list[dict], list[dict]]:
    """The annotations and the predictions at the threshold as COCO's records; what COCO has no field for, tags among
    it, becomes an attribute of the box. (FiftyOne drops a record's ``area``: it stays under another name.)
    """
    errors = error_table(verdicts, threshold)
    missed = set(errors.loc[errors["type"] == "missed", "annotation_id"])
    attributes = lambda a: {"annotation_id": a["id"], "coco_area": a["area"], "tags": ["missed"] * (a["id"] in missed)}
    truth = [{**a, "iscrowd": bool(a["iscrowd"]), **attributes(a)} for a in gt["annotations"]]
    rows = verdicts.predictions[verdicts.predictions["score"] >= threshold]
    annotation_ids = np.append(verdicts.objects["annotation_id"], -1)[rows["object"]].tolist()
    predicted = [
        {**record, "iou": iou, "tags": [kind], "annotation_id": annotation_id}
        for record, iou, kind, annotation_id in zip(
            Detections.of(detections).rows(rows["detection"]), rows["iou"], rows["kind"], annotation_ids
        )
    ]
    return truth, predicted
