"""Each family learns: its loss, two photos by heart, the fast path (tests/test_families.py has the rest)."""

from __future__ import annotations

import copy
from dataclasses import replace

import families
import numpy as np
import pytest
import torch
import transformers
from families import assert_same_step, can, detector, inputs, make, photos, same
from transformers.loss.loss_utils import LOSS_MAPPING

from helpers.model import freeze, loss_parts, train_mode
from helpers.train.fast_path import take_fast_path

pytestmark = pytest.mark.usefixtures("one_thread")
family, folder, loaded = families.family, families.folder, families.loaded  # fixtures


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_loss_is_finite_and_adds_up(family, loaded, mode):
    """Also on a photo that shows nothing."""
    model, config = loaded.model, loaded.model.config
    train_mode(model) if mode == "train" else model.eval()
    empty = {**photos()[0], "boxes_xyxy": np.zeros((0, 4), np.float32), "class_labels": np.zeros(0, np.int64)}
    batch = inputs(loaded, [*photos(), empty], labels=True)
    asked = {}
    for switch in (True, False):
        config.auxiliary_loss = switch and can("train with auxiliary losses", family)
        torch.manual_seed(1)
        with torch.no_grad():
            asked[switch] = loss_parts(model(**batch), config)
    model.eval()
    config.auxiliary_loss = can("train with auxiliary losses", family)
    for parts in asked.values():
        assert all(value.isfinite() for value in parts.values())
        assert torch.isclose(sum(parts.values()) - parts["loss"], parts["loss"], rtol=1e-4)
    more = asked[True]["loss_auxiliary"] - asked[False]["loss_auxiliary"]
    assert (more > 0.1) == can("train with auxiliary losses", family)
    two_stages = "enc_out_class_embed" in str([name for name, _ in model.named_modules()])  # trained at the encoder too
    assert two_stages or abs(asked[False]["loss_auxiliary"]) < 1e-4, "a weight is not the library's"


def test_auxiliary_losses_are_not_asked_of_what_has_none(family, loaded, folder):
    """YOLOS ended in an error of the library's: its heads got no hidden states."""
    assert loaded.model.config.auxiliary_loss == can("train with auxiliary losses", family)
    assert any("no auxiliary losses" in line for line in loaded.report) != can("train with auxiliary losses", family)
    if not can("train with auxiliary losses", family):
        theirs = transformers.AutoModelForObjectDetection.from_pretrained(folder, auxiliary_loss=True)
        with pytest.raises((AttributeError, TypeError)):
            theirs(torch.zeros(1, 3, 128, 128), labels=[{"class_labels": torch.ones(1), "boxes": torch.ones(1, 4) / 2}])


def test_two_photos_are_learnt_by_heart(loaded):
    """On the fast path: the loss falls to a fraction."""
    learner = replace(loaded, model=copy.deepcopy(loaded.model), preprocess=replace(loaded.preprocess, image_size=96))
    model, batch = learner.model, inputs(learner, photos(), labels=True)
    freeze(model, 0)
    take_fast_path(model)
    train_mode(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    torch.manual_seed(1)
    losses = []
    for _ in range(40):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if max(losses[-5:]) < 0.6 * losses[0]:  # and stays there
            break
    assert min(losses[-5:]) < 0.6 * losses[0], losses[::5]


def test_fast_path_changes_nothing_but_the_time(loaded):
    plain, fast = copy.deepcopy(loaded.model), copy.deepcopy(loaded.model)
    take_fast_path(fast)
    batch = inputs(loaded, photos(), labels=True)
    with torch.no_grad():
        assert same(plain.eval()(**batch), fast.eval()(**batch), atol=5e-4)
    assert_same_step(plain, fast, batch, atol=5e-4)


@pytest.mark.parametrize("name", ["RF-DETR", "LW-DETR"])
def test_validation_loss_matches_one_group(name, tmp_path):
    """The library's divides the one group of an evaluation into ``group_detr``, and matches objects in each part."""
    model, asked = detector(make(name, tmp_path)).model.eval(), []
    mended, theirs = model.loss_function, LOSS_MAPPING[model.loss_type]
    model.loss_function = lambda *args: asked.append(args) or mended(*args)
    batch = {"pixel_values": torch.randn(1, 3, 128, 128), "labels": [{"class_labels": torch.tensor([1])}]}
    batch["labels"][0]["boxes"] = torch.tensor([[0.5, 0.5, 0.3, 0.4]])
    with torch.no_grad():
        loss = model(**batch).loss
        one = copy.copy(model.config)
        one.group_detr = 1
        (logits, labels, device, boxes, config, *rest) = asked[0]
        assert model.config.group_detr > 1 and logits.shape[1] == config.num_queries
        assert torch.isclose(loss, theirs(logits, labels, device, boxes, one, *rest)[0])
        assert not torch.isclose(loss, theirs(logits, labels, device, boxes, config, *rest)[0]), "mended upstream"
