"""What transformers computes otherwise than was published, held against the published function."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
import transformers
from tiny import SOURCE_CLASSES, detr, dfine, perturbed

from helpers.config import load_config
from helpers.families.loading import load_detector
from helpers.families.patches import HEADS, decoder_norm_aside, heads_in_fp32, mend
from helpers.model import Detector, train_mode

CLASSES = ("person", "car", "cup")
SIZES = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 3, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}


def family(name: str) -> torch.nn.Module:
    """A random detector of DETR's kind, whose norms are no identities; no dropout, so that two passes can be
    compared.
    """
    torch.manual_seed(0)
    backbone = transformers.TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3, 4], features_only=True)
    of = {"detr": transformers.DetrConfig, "conditional_detr": transformers.ConditionalDetrConfig}[name]
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 20, "num_labels": 3}
    config = of(backbone_config=backbone, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, **SIZES, **heads)
    return perturbed(transformers.AutoModelForObjectDetection.from_config(config))


def batch() -> dict:
    generator = torch.Generator().manual_seed(3)
    boxes = torch.rand(2, 4, generator=generator) * 0.3 + 0.2
    labels = [
        {"class_labels": torch.tensor([0, 2]), "boxes": boxes},
        {"class_labels": torch.tensor([1]), "boxes": boxes[:1]},
    ]
    return {"pixel_values": torch.randn(2, 3, 96, 96, generator=generator), "labels": labels}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["detr", "conditional_detr"])
def test_auxiliary_losses_leave_the_published_function(name, mode):
    """Trap 4: with ``auxiliary_loss`` each decoder layer read the normed state, and the last was normed twice.

    Outputs, and the gradients of the last layer's loss, are those of the same weights without auxiliary outputs.
    """
    plain = family(name)
    plain.config.auxiliary_loss = False
    ours = copy.deepcopy(plain)
    ours.config.auxiliary_loss = True
    faulty = copy.deepcopy(ours)
    decoder_norm_aside(ours)
    outputs, gradients = {}, {}
    for key, model in (("plain", plain), ("ours", ours), ("faulty", faulty)):
        train_mode(model) if mode == "train" else model.eval()
        outputs[key] = model(**batch())
        parts = outputs[key].loss_dict
        (parts["loss_ce"] + parts["loss_bbox"]).backward()
        gradients[key] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert torch.allclose(outputs["plain"].logits, outputs["ours"].logits, atol=1e-5)
    assert torch.allclose(outputs["plain"].pred_boxes, outputs["ours"].pred_boxes, atol=1e-5)
    assert not torch.allclose(outputs["plain"].logits, outputs["faulty"].logits, atol=1e-2), "the fault does not show"
    for key, gradient in gradients["plain"].items():
        assert torch.allclose(gradient, gradients["ours"][key], atol=1e-5, rtol=1e-4), key


@pytest.mark.parametrize("name", ["detr", "conditional_detr"])
def test_auxiliary_outputs_are_the_normed_states(name):
    """Each earlier layer's auxiliary output is the head on ``norm(its own output)``, and the last one is the output."""
    model = family(name).eval()
    model.config.auxiliary_loss = True
    decoder_norm_aside(model)
    states = []
    for layer in model.model.decoder.layers:
        layer.register_forward_hook(
            lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output)
        )
    with torch.no_grad():
        output = model(**batch())
        expected = [model.class_labels_classifier(model.model.decoder.layernorm(state)) for state in states]
    assert len(expected) == 3 and torch.allclose(expected[-1], output.logits, atol=1e-5)
    for wanted, auxiliary in zip(expected, output.auxiliary_outputs):
        assert torch.allclose(wanted, auxiliary["logits"], atol=1e-5)


def test_mending_steps_aside_where_there_is_no_fault(monkeypatch):
    """A transformers whose decoder goes on with the raw state: there, nothing may change, to the last bit."""
    model = family("detr").eval()
    with torch.no_grad():
        before = model(batch()["pixel_values"]).logits  # without auxiliary outputs the decoder has no fault
        decoder_norm_aside(model)
        assert torch.equal(before, model(batch()["pixel_values"]).logits)


def test_decoder_keeps_no_graph():
    """The states of a pass are let go with it: else every step would hold the memory of the one before."""
    model, states = family("detr"), []
    model.config.auxiliary_loss = True
    decoder_norm_aside(model)
    for layer in model.model.decoder.layers:
        layer.register_forward_hook(lambda _, __, output: states.append(weakref.ref(output)))
    output = model(**batch())
    assert len(states) == 3 and states[-1]() is not None, "the states' graph is there as long as the output is"
    del output
    assert all(state() is None for state in states)


def test_saved_folder_has_no_auxiliary_losses(tmp_path):
    """``pipeline`` and the Trainer would compute the faulty function from a folder that has the switch on."""
    cfg = load_config("demo", model=str(detr(tmp_path / "source", backbone="test_resnet")), classes=CLASSES)
    detector = load_detector(cfg, CLASSES)
    assert detector.model.config.auxiliary_loss
    perturbed(detector.model)
    detector.save(tmp_path / "saved")
    assert detector.model.config.auxiliary_loss, "saving must not switch it off for the training that goes on"
    plain = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "saved").eval()
    assert plain.config.auxiliary_loss is False
    with torch.no_grad():
        pixels = batch()["pixel_values"]
        assert torch.allclose(plain(pixels).logits, detector.model.eval()(pixels).logits, atol=1e-5)


@pytest.mark.parametrize("make", [detr, dfine])
def test_boxes_and_scores_are_fp32_under_autocast(make, tmp_path):
    """In bf16 a box lies on a grid of 2.5 pixels at 640, which small objects do not survive."""
    model = perturbed(transformers.AutoModelForObjectDetection.from_pretrained(make(tmp_path))).eval()
    for name, module in model.named_modules():
        if "bbox" in name and isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.2)  # new ones are zero, and leave a box where its anchor is
    heads_in_fp32(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    assert output.pred_boxes.dtype == output.logits.dtype == torch.float32
    coarse = output.pred_boxes.bfloat16().float()
    assert (output.pred_boxes != coarse).float().mean() > 0.9, "they are fp32 in name only"


def test_every_head_is_found():
    """A head that the pattern misses would compute in half precision, unseen."""
    for name in (
        "class_labels_classifier",
        "bbox_predictor",
        "class_embed",
        "bbox_embed",
        "enc_score_head",
        "enc_bbox_head",
    ):
        assert HEADS.fullmatch(name), name
    for name in ("input_projection", "query_position_embeddings", "layernorm", "self_attn", "backbone"):
        assert not HEADS.fullmatch(name), name


def test_mended_model_is_the_plain_one(tmp_path):
    """All corrections together, in fp32 and without auxiliary outputs, change no bit of a detector's output."""
    assert Detector and len(SOURCE_CLASSES) == 16
    for make in (detr, dfine):
        plain = perturbed(
            transformers.AutoModelForObjectDetection.from_pretrained(make(tmp_path / make.__name__))
        ).eval()
        ours = copy.deepcopy(plain)
        mend(ours)
        with torch.no_grad():
            assert torch.equal(plain(batch()["pixel_values"]).logits, ours(batch()["pixel_values"]).logits)


def test_denoising_queries_are_not_the_photos_own(tmp_path):
    """Without auxiliary losses they stayed among the queries that objects are paired with: a trained detector forgot
    what it knew within an epoch.
    """
    source = dfine(tmp_path)
    cfg = load_config("demo", model=str(source), classes=CLASSES, auxiliary_loss=False)
    queries = {}
    for key, auxiliary in (("ours", False), ("with its losses", True)):
        model = train_mode(load_detector(cfg.with_(auxiliary_loss=auxiliary), CLASSES).model)
        queries[key] = model(**batch()).logits.shape[1]
    faulty = transformers.AutoModelForObjectDetection.from_pretrained(source, auxiliary_loss=False)
    queries["as it comes"] = faulty.train()(**batch()).logits.shape[1]
    own = faulty.config.num_queries
    assert queries["ours"] == own < queries["as it comes"] == queries["with its losses"]
