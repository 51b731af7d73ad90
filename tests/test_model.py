"""Class heads, frozen parts, parameter groups, losses."""

import copy

import pytest
import torch
import transformers
from tiny import FAMILIES, SOURCE_CLASSES

from helpers.config import load_config
from helpers.families.loading import load_detector
from helpers.families.patches import loss_in_fp32
from helpers.files import UserError
from helpers.model import backbone_parameters, freeze, loss_parts, parameter_groups, stage_of, train_mode
from helpers.train.fast_path import fold_norms

CLASSES = ("car", "person", "dining table")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    folder = FAMILIES[request.param](tmp_path_factory.mktemp(request.param))
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    torch.manual_seed(1)
    for module in model.modules():  # statistics of a trained model, not those of a new one
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


def config(checkpoint, **changes):
    return load_config("demo", model=str(checkpoint), classes=CLASSES, image_size=128, **changes)


def batch(n: int = 2, size: int = 128) -> dict:
    generator = torch.Generator().manual_seed(3)
    labels = [
        {"class_labels": torch.arange(k + 1) % 3, "boxes": torch.rand(k + 1, 4, generator=generator) * 0.3 + 0.2}
        for k in range(n)
    ]
    return {"pixel_values": torch.randn(n, 3, size, size, generator=generator), "labels": labels}


def test_remapped_head_gives_the_checkpoints_logits(checkpoint):
    """A fresh head is the slow road to 0.006; with rows copied by name, the logits are what they were. Class order
    differs.
    """
    source = transformers.AutoModelForObjectDetection.from_pretrained(checkpoint).eval()
    detector = load_detector(config(checkpoint), CLASSES)
    pixels = batch()["pixel_values"]
    with torch.no_grad():
        theirs, ours = source(pixels).logits, detector.model.eval()(pixels).logits
    columns = [SOURCE_CLASSES.index(name) for name in CLASSES]
    if theirs.shape[-1] == len(SOURCE_CLASSES) + 1:
        columns.append(-1)  # no object
        assert torch.allclose(ours, theirs[..., columns], atol=1e-5)
    else:  # D-FINE chooses its queries by the classes it knows: compare where both chose from the same
        assert ours.shape[-1] == len(CLASSES)
        head, source_head = detector.model.state_dict(), source.state_dict()
        compared = [
            name
            for name in head
            if name.endswith(("class_embed.0.weight", "enc_score_head.bias", "denoising_class_embed.weight"))
        ]
        assert len(compared) >= 3
        for name in compared:
            assert torch.equal(head[name][: len(CLASSES)], source_head[name][columns]), name
            assert not name.startswith("model.denoising") or torch.equal(head[name][-1], source_head[name][-1])
    assert detector.fresh == set()


def test_logits_of_dfine_decoder_are_the_checkpoints(tmp_path):
    """Same decoder input, same logits: checked on the class layers themselves, since D-FINE picks queries by class."""
    folder = FAMILIES["dfine"](tmp_path)
    source = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    detector = load_detector(config(folder), CLASSES)
    columns, hidden = [SOURCE_CLASSES.index(name) for name in CLASSES], torch.randn(5, 32)
    for theirs, ours in zip(source.model.decoder.class_embed, detector.model.model.decoder.class_embed):
        assert torch.allclose(ours(hidden), theirs(hidden)[:, columns], atol=1e-5)
    assert torch.allclose(
        detector.model.model.enc_score_head(hidden), source.model.enc_score_head(hidden)[:, columns], atol=1e-5
    )


def test_reset_head_forgets_and_the_rest_stays(checkpoint):
    """``reset`` with the same number of classes must not keep the old rows in silence."""
    same = load_config("demo", model=str(checkpoint), classes=SOURCE_CLASSES, image_size=128, class_head="reset")
    detector = load_detector(same, SOURCE_CLASSES)
    source = transformers.AutoModelForObjectDetection.from_pretrained(checkpoint).state_dict()
    ours = detector.model.state_dict()
    weights = [name for name in detector.fresh if name.endswith("weight")]
    assert weights and all(not torch.equal(ours[name], source[name]) for name in weights)
    assert all(torch.equal(ours[name], source[name]) for name in ours if name not in detector.fresh)
    again = load_detector(same, SOURCE_CLASSES).model.state_dict()
    assert all(torch.equal(ours[name], again[name]) for name in ours), "the same seed gives the same fresh rows"


def test_unknown_classes_are_said(checkpoint):
    """A class that the checkpoint does not know starts fresh and is named; knowing none of them is refused."""
    some = load_detector(config(checkpoint).with_(classes=("car", "unicorn")), ("car", "unicorn"))
    assert any("unicorn" in sentence for sentence in some.report) and some.fresh
    groups = {group["name"] for group in parameter_groups(some, config(checkpoint, lr_head=1e-3))}
    assert "new_head" in groups
    with pytest.raises(UserError, match="class_head=reset"):
        load_detector(config(checkpoint), ("unicorn", "dragon"))


def test_checkpoint_that_is_not_whole_is_refused(checkpoint, tmp_path):
    """Missing weights load as random ones with a warning that nobody reads."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(checkpoint)
    state = model.state_dict()
    name = next(
        name
        for name in state
        if name.endswith("fc1.weight") or "layers.0.fc1" in name or "mlp" in name and name.endswith("weight")
    )
    model.save_pretrained(tmp_path, state_dict={key: value for key, value in state.items() if key != name})
    transformers.AutoImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="missing"):
        load_detector(config(tmp_path), CLASSES)
    with pytest.raises(UserError, match="cannot be loaded|could not be fetched"):
        load_detector(config(tmp_path / "nowhere"), CLASSES)


def test_frozen_stages_and_groups(checkpoint):
    """In transformers 5 the stem of DETR is trainable although the paper freezes it: what is frozen is ours to say."""
    detector = load_detector(config(checkpoint, freeze_stages=2, lr=1e-3, lr_backbone=1e-5), CLASSES)
    backbone = backbone_parameters(detector.model)
    assert {stage_of(name) for name in backbone} >= {0, 1, 2, 3, 4}
    convolutions = {name: p for name, p in backbone.items() if p.ndim == 4}
    for name, parameter in convolutions.items():
        assert parameter.requires_grad == (stage_of(name) >= 2), name
    assert not any(p.requires_grad for p in backbone.values() if p.ndim == 1), (
        "the batch norms of the backbone are fixed"
    )
    groups = parameter_groups(detector, config(checkpoint, freeze_stages=2, lr=1e-3, lr_backbone=1e-5))
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) == sum(p.requires_grad for p in detector.model.parameters())
    assert {group["name"]: group["lr"] for group in groups} == {"backbone": 1e-5, "rest": 1e-3}
    freeze(detector.model, 0)
    assert all(p.requires_grad for p in backbone_parameters(detector.model).values() if p.ndim == 4)


def test_training_leaves_the_backbones_statistics(checkpoint):
    """Batches of eight are too small to learn statistics from, and a few steps would already move them."""
    model = load_detector(config(checkpoint), CLASSES).model
    buffers = {name: value.clone() for name, value in model.named_buffers() if "backbone" in name and "running" in name}
    train_mode(model)(**batch())
    assert buffers and all(torch.equal(value, model.get_buffer(name)) for name, value in buffers.items())


def test_loss_parts_add_up(checkpoint):
    """DETR reports its parts unweighted, D-FINE weighted: plotted together they must add up to the loss that is
    trained on.
    """
    model = load_detector(config(checkpoint), CLASSES).model
    output = train_mode(model)(**batch())
    parts = loss_parts(output, model.config)
    total = parts.pop("loss")
    assert {"loss_bbox", "loss_giou", "loss_auxiliary"} < set(parts) and (parts["loss_auxiliary"] > 0)
    assert torch.isclose(sum(parts.values()), total, rtol=1e-5)
    if "loss_ce" in parts:  # by the library's own weights
        weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
        expected = sum(
            weights[name.removesuffix("_0")] * v
            for name, v in output.loss_dict.items()
            if name.removesuffix("_0") in weights
        )
        assert torch.isclose(expected, total, rtol=1e-5)
        main = sum(weights[name] * output.loss_dict[name] for name in weights)
        assert torch.isclose(parts["loss_auxiliary"], total - main, rtol=1e-4)


def test_auxiliary_losses_can_be_switched_off(checkpoint):
    """They are off by default in the library, and DETR needs them: ours follow the parameter."""
    on, off = (load_detector(config(checkpoint, auxiliary_loss=flag), CLASSES).model for flag in (True, False))
    assert on.config.auxiliary_loss and not off.config.auxiliary_loss
    count = [len(model.eval()(**batch()).loss_dict) for model in (on, off)]
    assert count[0] > count[1]


def test_loss_is_computed_in_fp32_under_autocast(checkpoint):
    """In half precision the differences of small boxes are lost."""
    model = load_detector(config(checkpoint), CLASSES).model.eval()
    seen = []
    inner = model.loss_function

    def spy(logits, labels, device, pred_boxes, *args, **kwargs):
        seen.append((logits.dtype, pred_boxes.dtype, torch.is_autocast_enabled("cpu")))
        return inner(logits, labels, device, pred_boxes, *args, **kwargs)

    model.loss_function = loss_in_fp32(spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**batch())
    assert seen == [(torch.float32, torch.float32, False)] and output.loss.dtype == torch.float32


def test_folded_norms_change_nothing_but_the_time(checkpoint):
    """Same output and same gradients, same state dict: a saved folder stays a standard one; copies fold for
    themselves.
    """
    plain = load_detector(config(checkpoint, freeze_stages=1), CLASSES).model
    folded = copy.deepcopy(plain)
    assert fold_norms(folded) > 5
    folded = copy.deepcopy(folded)  # as averaged weights do
    plain.eval(), folded.eval()
    outputs = [model(**batch()) for model in (plain, folded)]
    assert torch.allclose(outputs[0].logits, outputs[1].logits, atol=1e-4) and torch.isclose(
        outputs[0].loss, outputs[1].loss, rtol=1e-4
    )
    for output in outputs:
        output.loss.backward()
    gradients = [dict(model.named_parameters()) for model in (plain, folded)]
    largest = max(p.grad.abs().max() for p in gradients[0].values() if p.grad is not None)
    for name, parameter in gradients[0].items():
        other = gradients[1][name].grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:
            assert torch.allclose(parameter.grad, other, rtol=1e-2, atol=1e-4 * float(largest)), name
    assert list(plain.state_dict()) == list(folded.state_dict())
    with torch.no_grad():  # the folded model follows its weights
        for model in (plain, folded):
            for p in backbone_parameters(model).values():
                p.mul_(1.01) if p.requires_grad else None
    assert torch.allclose(plain(**batch()).logits, folded(**batch()).logits, atol=1e-4)


def test_saved_folder_is_a_standard_one(checkpoint, tmp_path):
    """What we save loads through the Auto classes with no code of ours and gives the same logits."""
    detector = load_detector(config(checkpoint), CLASSES)
    fold_norms(detector.model)
    detector.save(tmp_path)
    loaded, info = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path, output_loading_info=True)
    assert (
        not info["missing_keys"] and not info["unexpected_keys"] and loaded.config.id2label == dict(enumerate(CLASSES))
    )
    with torch.no_grad():
        pixels = batch()["pixel_values"]
        assert torch.allclose(loaded.eval()(pixels).logits, detector.model.eval()(pixels).logits, atol=1e-4)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors"}
