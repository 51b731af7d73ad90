"""Which detector a row of metrics.csv is about."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
import transformers

from helpers.engine import eval_loader, predict
from helpers.evaluate.checkpoint import evaluate_checkpoint, load_checkpoint
from helpers.families.loading import load_detector
from helpers.index import open_split

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def cfg(coco_source, tmp_path_factory):
    """A DETR of 16 classes, whose norms are no identities and whose classes differ; ours are four of them."""
    folder = tmp_path_factory.mktemp("rows")
    model = tiny.perturbed(transformers.AutoModelForObjectDetection.from_pretrained(tiny.detr(folder / "detr")))
    generator, head = torch.Generator().manual_seed(0), model.class_labels_classifier
    for parameter in (*model.model.encoder.parameters(), *model.model.decoder.parameters()):
        if parameter.ndim > 1:  # else all queries of a random detector say the same
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    torch.nn.init.normal_(model.model.query_position_embeddings.weight, std=8.0, generator=generator)
    torch.nn.init.normal_(head.weight, std=2.0, generator=generator)
    with torch.no_grad():
        head.bias -= model.eval()(torch.randn(4, 3, 96, 96, generator=generator)).logits.mean((0, 1))
    model.save_pretrained(folder / "detr")
    return tiny.config(folder, coco_source, "detr")


def detections(cfg, checkpoint: str):
    index = open_split(cfg, "val2017")
    detector = load_checkpoint(cfg, index.classes, checkpoint)
    loader = eval_loader(index, detector.preprocess, 4, 0)
    ids = detector.category_ids(index)
    return index, predict(detector, loader, ids)[0]


def test_row_one_is_the_published_detector(cfg):
    """``start`` is the plain library's checkpoint: every query's best of *all* classes, and of these our classes alone.

    A remapped softmax head is another detector: what the other classes had goes to ours, so a truck becomes a sure car.
    """
    index, ours = detections(cfg, "start")
    plain = transformers.AutoModelForObjectDetection.from_pretrained(cfg.model).eval()
    detector = load_detector(cfg, index.classes)
    expected, category = [], dict(zip(index.classes, index.category_ids))
    for batch in eval_loader(index, detector.preprocess, 4, 0):
        inputs = detector.preprocess.to_device(batch)
        inputs.pop("labels")
        with torch.no_grad():
            scores = plain(**inputs).logits.softmax(-1)[..., :-1]
        best, label = scores.max(-1)
        for image_id, values, labels in zip(batch["image_ids"], best.tolist(), label.tolist()):
            names = [plain.config.id2label[k] for k in labels]
            expected += [(image_id, category[n], round(v, 4)) for n, v in zip(names, values) if n in category]
    assert 0 < len(expected) < 30 * len(index), "every query is of our classes, or none: nothing is told apart"
    found = [(row["image_id"], row["category_id"], round(row["score"], 4)) for row in ours]
    assert sorted(found) == sorted(expected)
    _, remapped = detections(cfg, "remapped")
    assert len(remapped) == 30 * len(index), "a head for our classes alone gives each query one of them"
    assert np.mean(remapped.score) > np.mean(ours.score)


def test_a_checkpoint_that_knows_no_class_starts_with_a_new_head(cfg):
    """There is nothing to read off then; the row is that of the detector before training."""
    unknown = cfg.with_(classes=("unicorn", "dragon"), class_head="reset")
    assert load_checkpoint(unknown, unknown.classes, "start").model.config.num_labels == 2
    assert load_checkpoint(cfg, cfg.classes, "start").model.config.num_labels == len(tiny.SOURCE_CLASSES)


def test_each_checkpoint_has_its_row_and_its_file(cfg):
    index = open_split(cfg, "val2017")
    for name in ("remapped", "start"):
        evaluate_checkpoint(cfg.with_(checkpoint="remapped"), index, name)
    table = (cfg.output_dir / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in table] == ["checkpoint", "start", "remapped"]
    for ending in ("_start", "_remapped", ""):
        assert (cfg.run_dir / f"detections_val2017{ending}.json").is_file()
