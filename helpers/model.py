"""The detector: a checkpoint's weights with a class head for our classes, its processor, its parameter groups."""

import contextlib
import copy
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from helpers.collator import Preprocess, read_processor, sides
from helpers.config import Config
from helpers.files import ROOT, UserError
from helpers.index import CocoIndex
from helpers.patches import mend

# No pickle, and a checkpoint's own code is never run.
SAFE = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
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
        function (see ``helpers.patches``), so it is written as the family's configs have it.
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


def load_detector(
    cfg: Config, classes: tuple[str, ...], source: str | Path | None = None, class_head: str | None = None
) -> Detector:
    """``source`` (default ``cfg.model``: a hub name or a folder) with a head for ``classes``.

    ``class_head`` (default ``cfg.class_head``): ``remap`` copies the rows of the checkpoint's class tensors by class
    name, and the no-object row where there is one, so that the logits of these classes stay what they were; ``reset``
    leaves them newly initialised; ``whole`` keeps the checkpoint's own head, with all of its classes. Raises UserError
    when the checkpoint cannot be had, or when weights outside of the class head are missing or do not fit.
    """
    class_head, where = class_head or cfg.class_head, locate(str(source or cfg.model))
    transformers.logging.set_verbosity_error()  # what matters of its load reports is in ``Detector.report``
    transformers.logging.disable_progress_bar()
    processor = load_processor(where, cfg.image_size)
    with _said_plainly(str(source or cfg.model)):
        theirs = AutoConfig.from_pretrained(where, trust_remote_code=False)
        names = theirs.id2label if class_head == "whole" else dict(enumerate(classes))
        torch.manual_seed(cfg.seed)  # of the rows that start untrained
        ours = {"id2label": names, "label2id": {name: k for k, name in names.items()}}
        supervised = cfg.auxiliary_loss and hasattr(theirs, "decoder_layers")  # YOLOS has none to supervise
        ours |= {"auxiliary_loss": supervised, "ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = AutoModelForObjectDetection.from_pretrained(where, **ours, **SAFE)
    report = _loading_report(str(source or cfg.model), model, info)
    if supervised != cfg.auxiliary_loss:
        report.append(f"no auxiliary losses: {type(model).__name__} has no decoder whose layers would have one each")
    fresh: set[str] = set()
    if class_head == "reset":  # a checkpoint of as many classes has given its own rows: they are forgotten
        fresh = set(class_rows(model.config))
        new = AutoModelForObjectDetection.from_config(model.config).state_dict()
        model.load_state_dict(model.state_dict() | {name: new[name] for name in fresh})
        report.append(f"class rows newly initialised in {', '.join(sorted(fresh))}")
    elif class_head == "remap" and list(theirs.id2label.values()) != list(classes):
        whole = AutoModelForObjectDetection.from_pretrained(where, **SAFE)
        fresh = remap_head(model, whole, classes, report)
    freeze(model, cfg.freeze_stages)
    mend(model)
    return Detector(model, processor, read_processor(processor), fresh, report)


def _loading_report(source: str, model: nn.Module, info: dict) -> list[str]:
    """What was read of a checkpoint, in words. Raises UserError where it does not hold the whole model."""
    class_tensors = class_rows(model.config)
    wrong = [f"{name} is missing" for name in info["missing_keys"]]
    wrong += [f"{key[0]} does not fit" for key in info["mismatched_keys"] if key[0] not in class_tensors]
    if wrong:
        raise UserError(f"{source} is not a whole {type(model).__name__} checkpoint: {'; '.join(wrong[:5])}.")
    tensors, unexpected = f"{len(model.state_dict())} tensors, none missing", sorted(info["unexpected_keys"])
    if not unexpected:
        return [f"{tensors} or unexpected"]
    return [tensors, f"{len(unexpected)} unexpected, left out: {', '.join(unexpected[:3])}"]


def locate(name: str) -> str:
    """A folder of the project, an absolute folder, or else a hub name, as ``from_pretrained`` takes them."""
    folder = ROOT / Path(name).expanduser()
    return str(folder) if folder.is_dir() else name


def load_processor(where: str, image_size: int):
    """The checkpoint's image processor, set to our image size in the checkpoint's own way of resizing.

    Where only certain sides suit the model, photos become squares, whatever the processor says. Raises UserError when
    the processor cannot be had or ``image_size`` does not suit.
    """
    with _said_plainly(where):
        processor = AutoImageProcessor.from_pretrained(where, trust_remote_code=False)
        step, least = sides(AutoConfig.from_pretrained(where, trust_remote_code=False))
        if image_size % step or image_size < least:
            low = image_size // step * step
            near = " or ".join(map(str, sorted({max(low, least), max(low + step, least)})))
            raise UserError(f"image_size={image_size}: {where} takes multiples of {step} from {least} on; take {near}.")
        square = processor.size.get("height") or step > 1
        size = dict.fromkeys(("height", "width") if square else ("max_height", "max_width"), image_size)
        return AutoImageProcessor.from_pretrained(where, size=size, trust_remote_code=False)


@contextlib.contextmanager
def _said_plainly(name: str):
    """Turn what goes wrong while a checkpoint is fetched or read into one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error).strip().split("\n")[0]
        if "connect" in str(error).lower() or "offline" in str(error).lower() or "couldn't" in text.lower():
            raise UserError(
                f"{name} could not be fetched from the model hub (huggingface.co is not reachable, and it is not in "
                "the local cache): connect once, or give model=<a folder with the checkpoint>; preset demo needs no "
                "network."
            ) from None
        raise UserError(f"{name} cannot be loaded as an object detector: {text}") from None


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
