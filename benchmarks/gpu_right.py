"""The checks of ``gpu_check.py`` that something is right: each yields rows of (name, holds, figure, bound)."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from gpu_lab import Lab, Row, held_batches
from safetensors.torch import load_file
from transformers import AutoModelForObjectDetection
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from helpers.config import load_config
from helpers.devices import autocast, set_up
from helpers.download.prepare import prepare
from helpers.engine import SKIPPED_IN_A_ROW, NotFinite, Run, eval_loader, predict, train_epoch, train_step
from helpers.families.loading import load_detector
from helpers.files import ROOT, UserError
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth
from helpers.train.fast_path import take_fast_path
from helpers.train.faults import explained
from helpers.train.training import build, train

PIXELS = {"fp16": 1.0, "bf16": 5.0}  # 99 of 100 boxes of a random DETR move by less at the photo's own size
GRADIENT = {"fp16": 0.1, "bf16": 0.3}  # distance to the gradient in fp32, relative to its length


@torch.inference_mode()
def parity(lab: Lab) -> Iterator[Row]:
    """Our detector, as it is trained (auxiliary losses, fast path), against plain transformers in fp32; its loss; then
    its own boxes in half precision against those.
    """
    cfg = lab.config("parity", augment="none")
    run = build(cfg)
    inputs = run.detector.preprocess.to_device(held_batches(run, 1)[0], lab.device)
    plain = AutoModelForObjectDetection.from_pretrained(cfg.model).to(lab.device).eval()
    pixels = {name: value for name, value in inputs.items() if name != "labels"}
    ours = run.detector.model.eval()
    with no_tf32():
        expected, got = plain(**pixels), ours(**inputs)
    errors = [
        float((a - b).abs().max()) for a, b in ((got.logits, expected.logits), (got.pred_boxes, expected.pred_boxes))
    ]
    yield Row(
        "the same as plain transformers in fp32, TF32 off",
        max(errors) <= 1e-3,
        f"logits {errors[0]:.1e}, boxes {errors[1]:.1e}",
        "1e-3 at most",
        {"logits": errors[0], "boxes": errors[1]},
    )
    layers = [*got.auxiliary_outputs, {"logits": got.logits, "pred_boxes": got.pred_boxes}]
    stacked = [torch.stack([layer[name] for layer in layers]) for name in ("logits", "pred_boxes")]
    labels, config = inputs["labels"], ours.config
    loss = ForObjectDetectionLoss(got.logits, labels, lab.device, got.pred_boxes, config, *stacked)[0]
    error = float((got.loss / loss - 1).abs())
    yield Row(
        "the batched loss is the library's", error <= 1e-5, f"{error:.1e} apart", "1e-5 at most", {"apart": error}
    )
    height, width = inputs["pixel_values"].shape[-2:]
    size = torch.tensor([width, height, width, height])
    for precision in lab.precisions[1:]:
        with autocast(precision)():
            half = ours(**pixels)
        moved = ((half.pred_boxes.float() - expected.pred_boxes).abs().cpu() * size).flatten()
        median, most = float(moved.median()), float(moved.quantile(0.99))
        yield Row(
            f"boxes in {precision} against fp32",
            most <= PIXELS[precision],
            f"median {median:.3f}, 99 of 100 within {most:.2f} px",
            f"{PIXELS[precision]} px",
            {"median": median, "p99": most},
        )


def gradients(lab: Lab) -> Iterator[Row]:
    """The gradient of the shipped checkpoint in half precision against that in fp32 (random weights' tells little)."""
    size, folder = lab.by_size(256, 256, 128), str(ROOT / "data" / "pretrained")
    run = build(lab.config("gradients", augment="none", model=folder, image_size=size))
    inputs = run.detector.preprocess.to_device(held_batches(run, 1)[0], lab.device)
    model, found = run.detector.model.eval(), {}
    for precision in lab.precisions:
        model.zero_grad(set_to_none=True)
        with autocast(precision)():
            loss = model(**inputs).loss
        loss.backward()
        found[precision] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    for precision in lab.precisions[1:]:
        apart = float((found[precision] - found["fp32"]).norm() / found["fp32"].norm())
        bound = GRADIENT[precision] * lab.by_size(1, 1, 10)  # smaller photos, and an object changes its query
        yield Row(
            f"gradient in {precision} against fp32",
            apart <= bound,
            f"{apart:.3f} of its length apart",
            f"{bound} at most",
            {"apart": apart},
        )


@contextlib.contextmanager
def no_tf32():
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    if torch.cuda.is_available():
        set_up(torch.device("cuda"), deterministic=False)


def accuracy(lab: Lab) -> Iterator[Row]:
    """AP of the shipped checkpoint on its scenes in each precision."""
    photos = lab.by_size(300, 60, 8)
    cfg = load_config("demo", data_dir=str(lab.folder / "demo"), max_train_images=1, max_val_images=photos)
    prepare(cfg)
    index = open_split(cfg, "val2017")
    detector = load_detector(cfg, index.classes)
    model, truth, scores = detector.model.to(lab.device), ground_truth(index), {}
    take_fast_path(model)
    for precision in lab.precisions:
        loader = eval_loader(index, detector.preprocess, 32, lab.workers)
        how = {"device": lab.device, "autocast": autocast(precision)}
        found, _ = predict(detector, loader, index.category_ids, **how)
        scores[precision] = coco_metrics(truth, found)["stats"]["mAP"]
    bound = lab.by_size(0.003, 0.006, 0.05)  # fewer photos, more noise
    spread = max(scores.values()) - min(scores.values())
    figure = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
    yield Row(f"AP of the shipped checkpoint on {photos} scenes", spread <= bound, figure, f"within {bound}", scores)


def by_heart(lab: Lab) -> Iterator[Row]:
    """Sixteen photos learnt by the shipped checkpoint with a new class head, in half precision on a GPU."""
    steps, least = lab.by_size((100, 0.9), (60, 0.8), (4, 0.0))
    count = lab.by_size(16, 16, 8)
    for precision in lab.precisions[1:] if lab.gpu else ["fp32"]:  # a GPU's fp32 is the CPU's
        cfg = lab.config(
            f"by_heart_{precision}",
            **{"model": str(ROOT / "data" / "pretrained"), "class_head": "reset", "augment": "none", "lr": 6e-4},
            **{
                "lr_backbone": 2e-4,
                "precision": precision,
                "batch_size": 4,
                "epochs": 100,
                "clip_norm": 1.0,
                "seed": 3,
            },
            **{"image_size": lab.by_size(256, 256, 128), "data_dir": str(lab.folder / "sixteen")},
            **{"max_train_images": count, "scheduler": "constant"},
        )
        run, losses = build(cfg), []
        while run.step < steps:
            train_epoch(run, lambda run=run: run.step >= steps, losses.append)
            run.epoch, run.batch = run.epoch + 1, 0
        detector, index = run.detector, run.train
        how = {"device": lab.device, "autocast": autocast(precision)}
        loader = eval_loader(index, detector.preprocess, 8, 0)
        found, _ = predict(detector, loader, index.category_ids, **how)
        score = coco_metrics(ground_truth(index), found)["stats"]["mAP50"]
        first, last = (float(np.mean([float(row["loss"]) for row in part])) for part in (losses[:2], losses[-2:]))
        yield Row(
            f"{len(index)} photos by heart in {precision}, {steps} steps",
            score >= least and last < first,
            f"AP50 {score:.3f}, loss {first:.2f} to {last:.2f}",
            f"AP50 of {least} and more, a smaller loss",
            {"AP50": score, "first": first, "last": last},
        )


class Killed(Exception):
    """A process that ends in its second epoch, with nothing done about it."""


def twice(lab: Lab) -> Iterator[Row]:
    """Two runs of one seed, and one that is killed in its second epoch and goes on; then with deterministic kernels."""
    settings = {
        "epochs": 2,
        "image_size": lab.by_size(256, 128, 96),
        "batch_size": 4,
        "data_dir": str(lab.folder / "runs"),
    }
    settings |= {"max_train_images": lab.by_size(32, 8, 8), "max_val_images": 4}
    settings["precision"] = "fp16" if lab.gpu else "fp32"

    def trained(name: str, killed: bool = False, **changes) -> tuple[np.ndarray, dict]:
        cfg = lab.config(name, **settings, **changes)

        def kill(run: Run) -> None:
            if run.epoch == 1:
                raise Killed

        if killed:
            with contextlib.suppress(Killed):
                train(cfg, on_flush=kill)
            cfg = cfg.with_(resume="auto")
        train(cfg)
        losses = pd.read_csv(cfg.run_dir / "losses.csv")["loss"].to_numpy()
        weights = load_file(cfg.run_dir / "checkpoint_last" / "model.safetensors")
        shutil.rmtree(cfg.run_dir)  # a gigabyte
        return losses, weights

    def apart(one, other) -> float:
        """Largest relative difference of the losses; of equal ones, of the weights."""
        losses = float(np.abs(one[0] / other[0] - 1).max())
        return losses or max(float((one[1][k].float() - v.float()).abs().max()) for k, v in other[1].items())

    first = trained("first")
    noise, resumed = apart(trained("second"), first), apart(trained("resumed", killed=True), first)
    bound, words = (0.0, "bit for bit") if not lab.gpu else (0.05, "5 %: kernels add up in an order of their own")
    yield Row("two runs of one seed", noise <= bound, f"losses {noise:.1e} apart", words, {"noise": noise})
    yield Row(
        "killed in the second epoch and resumed",
        resumed <= 3 * noise,
        f"losses {resumed:.1e} apart",
        "three times that noise at most",
        {"apart": resumed},
    )
    if lab.gpu:
        first = trained("first_deterministic", deterministic=True)
        noise = apart(trained("second_deterministic", deterministic=True), first)
        resumed = apart(trained("resumed_deterministic", killed=True, deterministic=True), first)
        set_up(lab.device, deterministic=False)
        numbers = {"noise": noise, "resumed": resumed}
        figure = f"two runs {noise:.1e}, killed and resumed {resumed:.1e} apart"
        yield Row("the same with deterministic=true", noise == resumed == 0, figure, "bit for bit", numbers)


def overflow(lab: Lab) -> Iterator[Row]:
    """A gradient that overflows in fp16 is left out, and got over. Only on a GPU."""
    if not lab.gpu:
        return
    run = build(lab.config("overflow", precision="fp16", batch_size=2))
    batch, parameters = held_batches(run, 1), [p for p in run.detector.model.parameters() if p.requires_grad]
    while train_step(run, batch)["skipped"]:  # until the scaler has found its scale
        pass
    run.accelerator.scaler._scale.mul_(2.0**14)
    before, left_out, same = [p.detach().clone() for p in parameters], 0, False
    while train_step(run, batch)["skipped"]:  # raises NotFinite after SKIPPED_IN_A_ROW
        left_out += 1
        same = all(torch.equal(a, b) for a, b in zip(before, parameters))
    moved = any(not torch.equal(a, b) for a, b in zip(before, parameters))
    yield Row(
        "a gradient that overflows in fp16",
        left_out > 0 and same and moved,
        f"{left_out} steps left out, weights {'untouched' if same else 'changed'} by them; then it went on",
        f"at least one, fewer than {SKIPPED_IN_A_ROW}",
        {"left_out": left_out},
    )


def no_numbers(lab: Lab) -> Iterator[Row]:
    """A gradient that stays no number ends the run, and so does a loss that is none; the weights stay whole."""
    run = build(lab.config("no_numbers", precision="fp16" if lab.gpu else "fp32", batch_size=2))
    batch, parameters = held_batches(run, 1), [p for p in run.detector.model.parameters() if p.requires_grad]
    while train_step(run, batch).get("skipped"):
        pass
    hook, steps, reason = parameters[-1].register_hook(lambda gradient: gradient * float("nan")), 0, "never"
    try:
        for steps in range(1, 2 * SKIPPED_IN_A_ROW):  # noqa: B007
            train_step(run, batch)
    except NotFinite as error:
        reason = error.what
    hook.remove()
    wanted = SKIPPED_IN_A_ROW if lab.gpu else 1
    whole = all(bool(p.isfinite().all()) for p in parameters)
    yield Row(
        "a gradient that stays no number",
        reason == "gradient" and steps == wanted and whole,
        f"stopped at step {steps} ({reason}), weights {'whole' if whole else 'destroyed'}",
        f"at step {wanted}",
        {"steps": steps},
    )
    with torch.no_grad():
        parameters[-1].view(-1)[0] = float("nan")
    sentence = _sentence(run, batch)
    yield Row(
        "a loss that is no number", "loss is not a finite number" in sentence, sentence[:90], "a sentence that says so"
    )


def _sentence(run: Run, batches: list[dict]) -> str:
    """What a user reads of a step that fails."""
    try:
        with explained(run.cfg):
            train_step(run, batches)
    except UserError as error:
        return str(error)
    return "nothing was said"


def out_of_memory(lab: Lab) -> Iterator[Row]:
    """A step for which there is no memory left ends in a sentence, and the next one works. Only on a GPU."""
    if not lab.gpu:
        return
    run = build(lab.config("out_of_memory", precision="fp16"))
    batch = held_batches(run, 1)
    train_step(run, batch)
    torch.cuda.empty_cache()
    share = (torch.cuda.memory_reserved() + 2**26) / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    sentence = _sentence(run, batch)
    torch.cuda.set_per_process_memory_fraction(1.0)
    run.optimizer.zero_grad(set_to_none=True)
    loss = float(train_step(run, batch)["loss"])
    said = "memory is too small" in sentence
    figure = f"{sentence[:60]}...; the next step's loss {loss:.2f}"
    yield Row("a step without memory", said and np.isfinite(loss), figure, "a sentence, and a step after it")


CHECKS = (parity, gradients, accuracy, by_heart, twice, overflow, no_numbers, out_of_memory)
