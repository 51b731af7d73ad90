"""A checkpoint of any family as a :class:`Detector`: fetched, read without running anything of it, mended."""

import contextlib
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from helpers.config import Config
from helpers.families.patches import mend
from helpers.families.processors import read_processor, sides
from helpers.files import ROOT, UserError
from helpers.model import Detector, class_rows, freeze, remap_head

# No pickle, and a checkpoint's own code is never run.
SAFE = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}


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
    quiet()
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


def quiet() -> None:
    """No load reports and progress bars of transformers: what matters of them is in ``Detector.report``."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
