"""The detector: a model with a head for our classes, what of it is trained and how fast, the parts of its loss."""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForObjectDetection

from helpers.collator import Preprocess
from helpers.config import Config
from helpers.files import UserError
from helpers.index import CocoIndex

BACKBONE = re.compile(r"(backbone|conv_encoder)\.(model|backbone)$")  # where transformers' detectors keep theirs


@dataclass
class Detector:
    """A model with what belongs to it. ``fresh`` names tensors with rows that no checkpoint filled."""

    model: nn.Module
    processor: object
    preprocess: Preprocess
    fresh: set[str] = field(default_factory=set)
    report: list[str] = field(default_factory=list)  # what was copied, missing, unexpected: a sentence each

    def category_ids(self, index: CocoIndex) -> list[int | None]:
        """The category of ``index`` that each of the model's classes is, by name; None for a class that it lacks."""
        exact = dict(zip(index.classes, index.category_ids))
        loose = {name.lower(): category for name, category in exact.items()}
        names = (str(name) for _, name in sorted(self.model.config.id2label.items()))
        return [exact.get(name, loose.get(name.lower())) for name in names]

    def save(self, folder: Path) -> None:
        """Write a standard Hugging Face folder: config.json, model.safetensors, preprocessor_config.json.

        Auxiliary losses are a matter of training: with the switch on, other readers of the folder would compute another
        function (see ``helpers.families.patches``), so it is written as the family's configs have it.
        """
        config, switch = self.model.config, getattr(self.model.config, "auxiliary_loss", None)
        if switch is not None:
            config.auxiliary_loss = type(config)().auxiliary_loss
        tensors = None
        if getattr(config, "share_bbox_head", False):  # transformers 5.23 would leave out the name that it reads again
            tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.save_pretrained(folder, state_dict=tensors)
        if switch is not None:
            config.auxiliary_loss = switch
        self.processor.save_pretrained(folder)


def class_rows(config) -> dict[str, int]:
    """Names of tensors whose first dimension counts classes -> rows beyond the classes (1: no object, or padding).

    Which tensors those are differs per model family; they are found by comparing the shapes of two models (without
    weights) that differ in one class.
    """
    shapes = []
    for count in (config.num_labels, config.num_labels + 1):
        config = copy.deepcopy(config)
        config.id2label = {k: f"class {k}" for k in range(count)}
        with torch.device("meta"):
            tensors = AutoModelForObjectDetection.from_config(config).state_dict()
        shapes.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    return {name: shape[0] - config.num_labels + 1 for name, shape in shapes[0].items() if shapes[1][name] != shape}


def knows(config) -> dict[str, int]:
    """The classes of a checkpoint, in small letters -> their numbers."""
    return {str(name).lower(): int(k) for k, name in config.id2label.items()}


@torch.no_grad()
def remap_head(model: nn.Module, source: nn.Module, classes: tuple[str, ...], report: list[str]) -> set[str]:
    """Copy class rows of ``source`` into ``model`` by name; returns the names of tensors with rows left untrained."""
    index = knows(source.config)
    found = {k: index[name.lower()] for k, name in enumerate(classes) if name.lower() in index}
    missing = [name for name in classes if name.lower() not in index]
    if not found:
        raise UserError(
            f"class_head=remap: the checkpoint knows none of {', '.join(classes)} (it knows "
            f"{', '.join(map(str, list(index)[:5]))}, ...); use class_head=reset."
        )
    into, tensors = model.state_dict(), source.state_dict()
    rows = class_rows(model.config)
    for name, extra in rows.items():
        into[name][list(found)] = tensors[name][list(found.values())]
        if extra:
            into[name][-1] = tensors[name][-1]
    report.append(f"{len(found)} of {len(classes)} class rows copied by name in {', '.join(sorted(rows))}")
    if missing:
        report.append(f"not in the checkpoint, these rows start untrained: {', '.join(missing)}")
    return set(rows) if missing else set()


def backbone_of(model: nn.Module) -> nn.Module | None:
    """The backbone itself, without the projections behind it; None where the model has none (YOLOS)."""
    return next((module for name, module in model.named_modules() if BACKBONE.search(name)), None)


def backbone_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The backbone's parameters by name."""
    ours = {id(parameter) for parameter in (backbone_of(model) or nn.Identity()).parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ours}


def stage_of(name: str) -> int:
    """The stage of a backbone parameter: 0 is the stem, then as ResNet's layer1.., EfficientNet's blocks.0.. or a
    ViT's layer.0.. count.
    """
    match = re.search(r"(?:layer|layers?\.|blocks\.|stages\.|stages_)(\d+)", name)
    return 0 if match is None else int(match[1]) + (match[0] != f"layer{match[1]}")


def freeze(model: nn.Module, stages: int) -> None:
    """Fix the first ``stages`` stages of the backbone (1: stem; 2: first stage too, as DETR's paper), train the rest.

    The backbone's batch norms are fixed everywhere: a batch of eight is too small to learn statistics from.
    """
    for name, parameter in backbone_parameters(model).items():
        parameter.requires_grad_(stage_of(name) >= stages)
    for module in _backbone_norms(model):
        module.requires_grad_(False)


def _backbone_norms(model: nn.Module) -> list[nn.Module]:
    modules = (backbone_of(model) or nn.Identity()).modules()
    return [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def train_mode(model: nn.Module) -> nn.Module:
    """``model.train()`` with the statistics of the backbone's batch norms left as they are."""
    model.train()
    for module in _backbone_norms(model):
        module.eval()
    return model


def parameter_groups(detector: Detector, cfg: Config) -> list[dict]:
    """AdamW's groups: ``backbone`` at ``lr_backbone``, ``rest`` at ``lr``, ``new_head`` (fresh rows) at ``lr_head``.

    Biases and norms are not decayed. Frozen parameters are in no group.
    """
    backbone = set(backbone_parameters(detector.model))
    rates = {"backbone": cfg.lr_backbone, "rest": cfg.lr, "new_head": cfg.lr_head or cfg.lr}
    groups: dict[tuple[str, bool], list] = {}
    for name, parameter in detector.model.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if name in backbone else "new_head" if name in detector.fresh else "rest"
            groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": cfg.weight_decay if decayed else 0.0, "name": part}
        for (part, decayed), parameters in groups.items()
    ]


def loss_parts(output, config) -> dict[str, torch.Tensor]:
    """The weighted parts of a detection loss; they add up to ``output.loss``.

    The last decoder layer's parts by name (``loss_ce`` or ``loss_vfl``, ``loss_bbox``, ``loss_giou``, ...), and
    ``loss_auxiliary``: everything that the earlier layers, the encoder and the denoising queries add.
    """
    weights = {}
    if not hasattr(config, "weight_loss_vfl"):  # the RT-DETR family reports its parts weighted, DETR does not
        weights = {"loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
        weights |= {"loss_ce": getattr(config, "class_loss_coefficient", 1.0)}
    main = {
        name: value.detach() * weights.get(name, 1.0)
        for name, value in output.loss_dict.items()
        if not re.search(r"_(\d+|enc)$", name) and name != "cardinality_error"  # a figure to look at, not a loss
    }
    return {"loss": output.loss.detach(), **main, "loss_auxiliary": output.loss.detach() - sum(main.values())}
