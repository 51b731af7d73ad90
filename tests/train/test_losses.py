"""The batched loss against the library's. Guards: another matching, another normalisation, a wait that came back."""

from __future__ import annotations

import pytest
import torch
from emulated_gpu import EmulatedGpu
from tiny import detr, dfine, perturbed
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForObjectDetection, DetrConfig
from transformers.loss import loss_for_object_detection as theirs

from helpers.train import losses
from helpers.train.losses import batched_loss, batched_loss_for

LAYERS, QUERIES, CLASSES = 6, 30, 10
PHOTOS = {
    "one": [1],
    "usual": [3, 5, 1, 7],
    "one empty": [0, 4, 2],
    "all empty": [0, 0],
    "one photo, empty": [0],
    "more objects than queries": [45, 2],
    "large": [0, 7, 1, 20, 3, 4, 9, 2],
}


def made(sizes: list[int], seed: int = 0, layers: int = LAYERS) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
    """Classes [L, B, Q, K + 1] and boxes [L, B, Q, 4] of a detector that is sure of something, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = [
        {
            "class_labels": torch.randint(CLASSES, (count,), generator=generator),
            "boxes": torch.rand(count, 4, generator=generator) * 0.4 + 0.2,
        }
        for count in sizes
    ]
    shape = (layers, len(sizes), QUERIES)
    logits = torch.randn(*shape, CLASSES + 1, generator=generator) * 3
    return logits, torch.rand(*shape, 4, generator=generator), labels


def config(auxiliary: bool, **changes) -> DetrConfig:
    return DetrConfig(num_labels=CLASSES, auxiliary_loss=auxiliary, decoder_layers=LAYERS, **changes)


def computed(loss_function, logits, boxes, labels, config) -> tuple:
    """Loss, parts, auxiliary outputs, and the gradients of logits and boxes."""
    logits, boxes = logits.clone().requires_grad_(), boxes.clone().requires_grad_()
    layers = (logits, boxes) if config.auxiliary_loss else (None, None)
    loss, parts, auxiliary = loss_function(logits[-1], labels, logits.device, boxes[-1], config, *layers)
    loss.backward()
    return loss.detach(), {name: value.detach() for name, value in parts.items()}, auxiliary, logits.grad, boxes.grad


@pytest.mark.parametrize("auxiliary", [True, False])
@pytest.mark.parametrize("sizes", PHOTOS.values(), ids=PHOTOS)
def test_same_losses_and_gradients_as_the_library(sizes, auxiliary):
    """Boxes to the last bit; the classification is summed in another order. Costs and weights that are not DETR's."""
    for seed, changes in enumerate(
        [{}, {"class_cost": 2, "bbox_cost": 3, "giou_loss_coefficient": 4, "eos_coefficient": 0.3}]
    ):
        case = *made(sizes, seed), config(auxiliary, **changes)
        loss, parts, others, of_logits, of_boxes = computed(theirs.ForObjectDetectionLoss, *case)
        our_loss, our_parts, our_others, of_our_logits, of_our_boxes = computed(batched_loss, *case)
        torch.testing.assert_close(our_loss, loss, rtol=1e-6, atol=0)
        assert list(our_parts) == list(parts) and len(parts) == 4 * (LAYERS if auxiliary else 1)
        for name, value in parts.items():
            torch.testing.assert_close(our_parts[name], value, rtol=1e-6 if "ce" in name else 0, atol=0, msg=name)
        torch.testing.assert_close(of_our_logits, of_logits, rtol=1e-5, atol=1e-6 * float(of_logits.abs().max()))
        torch.testing.assert_close(of_our_boxes, of_boxes, rtol=0, atol=1e-6 * float(of_boxes.abs().max()))
        assert (others is None) == (our_others is None) == (not auxiliary)
        for other, our_other in zip(others or [], our_others or [], strict=True):
            assert other.keys() == our_other.keys() and all(torch.equal(other[k], our_other[k]) for k in other)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_same_training_step_of_a_detector(tmp_path, auxiliary):
    """End to end: loss, parts and the gradient of every parameter, in training mode without dropout's noise."""
    folder = detr(tmp_path, backbone="test_resnet")
    results = []
    for batched in (False, True):
        model = AutoModelForObjectDetection.from_pretrained(folder, auxiliary_loss=auxiliary, dropout=0.0)
        model = perturbed(model).train()
        model.model.backbone.eval()
        if batched:
            model.loss_function = batched_loss_for(model)
        torch.manual_seed(0)
        labels = made([3, 0, 6])[2]
        output = model(torch.randn(3, 3, 96, 96), labels=labels)
        output.loss.backward()
        results.append((output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (output, gradients), (ours, our_gradients) = results
    torch.testing.assert_close(ours.loss, output.loss, rtol=1e-6, atol=0)
    assert ours.loss_dict.keys() == output.loss_dict.keys() and ours.loss_dict.keys() >= {"loss_ce", "loss_giou"}
    assert gradients.keys() == our_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_only_families_with_this_loss(tmp_path):
    """D-FINE's loss is another: its own stays."""
    assert batched_loss_for(AutoModelForObjectDetection.from_pretrained(detr(tmp_path / "a"))) is batched_loss
    assert batched_loss_for(AutoModelForObjectDetection.from_pretrained(dfine(tmp_path / "b"))) is None


@pytest.mark.parametrize("what", ["predicted", "target", "negative"])
@pytest.mark.parametrize("layer", [0, LAYERS - 1])
def test_boxes_that_are_none_are_refused(what, layer):
    """As by the library, which asks the device for it twice a layer: training makes a sentence of this ValueError."""
    logits, boxes, labels = made([2, 3])
    if what == "predicted":
        boxes[layer, 1, 4, 2] = float("nan")
    else:
        labels[1]["boxes"][0, 3] = float("nan") if what == "target" else -0.1
    for loss_function in (theirs.ForObjectDetectionLoss, batched_loss):
        with pytest.raises(ValueError, match="boxes"):
            computed(loss_function, logits, boxes, labels, config(True))


def test_boxes_are_looked_at_without_objects_too():
    logits, boxes, labels = made([0])
    boxes[2, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="boxes"):
        computed(batched_loss, logits, boxes, labels, config(True))


def test_logits_that_are_no_numbers_are_not_hidden():
    """The library matches such queries last and goes on: the loss is NaN, and training stops at it."""
    logits, boxes, labels = made([2, 3])
    logits[-1, 0, 3] = float("nan")
    for loss_function in (theirs.ForObjectDetectionLoss, batched_loss):
        loss, parts, *_ = computed(loss_function, logits, boxes, labels, config(True))
        assert loss.isnan() and parts["loss_ce"].isnan() and parts["loss_bbox"].isfinite()


def test_several_processes_share_the_normalisation(monkeypatch):
    """Box losses are divided by the mean of all processes' objects, also where this one has none, and in a validation
    by its own. The library divides once more by the number of processes."""

    class Two:
        _shared_state, num_processes = {"num_processes": 2}, 2

    def reduced(tensor):  # the other process has nine objects
        return (tensor + 9) / 2

    for sizes, share in (([3, 5], 8 / 8.5), ([0], 1 / 4.5)):
        monkeypatch.setattr(theirs, "is_accelerate_available", lambda: True)  # ``whole_batch_loss`` says no, for good
        case = *made(sizes), config(True)
        alone, of_alone, *_ = computed(batched_loss, *case)
        for module in (theirs, losses):
            monkeypatch.setattr(module, "PartialState", Two)
            monkeypatch.setattr(module, "reduce", reduced)
        _, parts, *_ = computed(batched_loss, *case)
        _, their_parts, *_ = computed(theirs.ForObjectDetectionLoss, *case)
        torch.testing.assert_close(parts["loss_bbox"], of_alone["loss_bbox"] * share, rtol=1e-6, atol=0)
        torch.testing.assert_close(parts["loss_bbox"] * 2, their_parts["loss_bbox"], rtol=1e-6, atol=0)
        logits, boxes, labels = case[:3]
        with torch.no_grad():
            unshared, *_ = batched_loss(logits[-1], labels, logits.device, boxes[-1], case[3], logits, boxes)
        assert torch.equal(unshared, alone)
        monkeypatch.undo()


def emulated(loss_function, sizes: list[int]) -> EmulatedGpu:
    logits, boxes, labels = made(sizes)
    with EmulatedGpu() as gpu:
        logits, boxes = gpu.tensor(logits, requires_grad=True), gpu.tensor(boxes, requires_grad=True)
        labels = [{name: gpu.tensor(value) for name, value in photo.items()} for photo in labels]
        loss_function(logits[-1], labels, logits.device, boxes[-1], config(True), logits, boxes)
    return gpu


@pytest.mark.parametrize("sizes", PHOTOS.values(), ids=PHOTOS)
def test_one_wait_for_the_device(sizes):
    """On a GPU, as an emulated one sees it; the launches do not grow with the layers."""
    gpu = emulated(batched_loss, sizes)
    assert gpu.waits == ["read"]
    assert "nll_loss2d_forward" not in gpu.launches  # the library's: no such kernel adds up in a fixed order
    assert len(gpu.launches) < 120 + 2 * len(sizes)  # the library: 800 and more


def test_the_library_waits_where_the_emulated_gpu_says():
    """That the count of one means something."""
    gpu = emulated(theirs.ForObjectDetectionLoss, PHOTOS["usual"])
    assert len(gpu.waits) > 15 * LAYERS and {"read", "write", "index by the host"} <= set(gpu.waits)


def test_backward_asks_for_nothing():
    """``prod`` would: its gradient counts zeros first. An emulated GPU has no backward pass, so this is the CPU's."""
    asked = []

    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            asked.append(function.__name__.split(".")[0])
            return function(*args, **(kwargs or {}))

    logits, boxes, labels = made(PHOTOS["usual"])
    logits.requires_grad_(), boxes.requires_grad_()
    loss, *_ = batched_loss(logits[-1], labels, logits.device, boxes[-1], config(True), logits, boxes)
    with Asked():
        loss.backward()
    assert asked and not {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"} & set(asked)
