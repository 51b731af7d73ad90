"""What a detector of transformers computes otherwise than was published, put right in place.

Weights, their names and the saved folders stay what they were.
"""

import copy
import re
import types

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from helpers.devices import named_range

# class and box heads, and how D-FINE turns its box head's output into edges and scores
HEADS = re.compile(r"(\w+_)?(class|score|bbox)\w*_(embed|head|classifier|predictor)|bbox_predictor|integral|lqe_layers")
HALF = (torch.float16, torch.bfloat16)


def mend(model: nn.Module) -> None:
    """All of this module's corrections."""
    decoder_norm_aside(model)
    denoising_with_its_losses(model)
    heads_in_fp32(model)
    model.loss_function = loss_in_fp32(model.loss_function)
    if hasattr(model.config, "group_detr"):
        model.loss_function = one_group_in_evaluation(model.loss_function)


def decoder_norm_aside(model: nn.Module) -> None:
    """With ``auxiliary_loss``, DETR's and Conditional DETR's decoder must go on with each layer's output as it is.

    transformers 5.23 writes the norm that is meant for the auxiliary outputs over the decoder's state, so that the next
    layer reads the normed state and the last one is normed twice. The original appends ``norm(output)`` and goes on
    with ``output`` (https://github.com/facebookresearch/detr/blob/main/models/transformer.py, ``TransformerDecoder``).
    Here the norm's output remembers what it is the norm of, and whatever reads the state is handed that: where a
    transformers without the fault, or a decoder without auxiliary outputs, hands on the raw state, nothing changes.
    """
    for decoder in model.modules():
        if type(decoder).__name__ in ("DetrDecoder", "ConditionalDetrDecoder"):
            decoder.layernorm.register_forward_hook(_remember_input)
            for reader in (decoder.layernorm, *decoder.layers, getattr(decoder, "query_scale", None)):
                if reader is not None:
                    reader.register_forward_pre_hook(_read_raw)


def _remember_input(_: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    output.raw = inputs[0]


def _read_raw(_: nn.Module, inputs: tuple) -> tuple:
    return (getattr(inputs[0], "raw", inputs[0]), *inputs[1:])


def denoising_with_its_losses(model: nn.Module) -> None:
    """Without ``auxiliary_loss``, RT-DETR, D-FINE and DEIMv2 must train without denoising queries.

    transformers 5.23 takes these queries out of the loss together with the auxiliary outputs, and without those leaves
    them among the photo's own: the matcher pairs objects with queries that began at the very object, and the photo's
    own queries learn to find nothing. A decoder that sees no labels makes none.
    """
    if getattr(model.config, "num_denoising", 0) and not model.config.auxiliary_loss:
        model.model.register_forward_pre_hook(lambda _, args, named: (args, named | {"labels": None}), with_kwargs=True)


def heads_in_fp32(model: nn.Module) -> None:
    """Class and box heads compute in fp32 under autocast too, and so do the anchors that boxes are refined from: a box
    in bf16 lies on a grid of 2.5 pixels at 640.
    """
    for name, module in model.named_modules():
        if hasattr(module, "generate_anchors"):  # RT-DETR and D-FINE
            module.generate_anchors = types.MethodType(_anchors_in_fp32, module)
        found = HEADS.fullmatch(name.rstrip(".0123456789").rpartition(".")[2])
        if found and not isinstance(module, (nn.ModuleList, nn.Embedding)):
            module.forward = types.MethodType(_forward_in_fp32, module)


def _forward_in_fp32(self: nn.Module, *inputs):
    with torch.autocast(inputs[0].device.type, enabled=False):
        return type(self).forward(self, *_as_fp32(inputs))


def _anchors_in_fp32(self: nn.Module, *args, **kwargs):
    return type(self).generate_anchors(self, *args, **kwargs | {"dtype": torch.float32})


def _as_fp32(values):
    return tree_map_only(torch.Tensor, lambda t: t.float() if t.dtype in HALF else t, values)


def loss_in_fp32(loss_function):
    """The model's own loss, computed in fp32 outside of autocast: half precision loses the small boxes' differences."""

    def computed(*args, **kwargs):
        args, kwargs = _as_fp32((args, kwargs))
        device = args[0].device.type if args else "cpu"
        with torch.autocast(device, enabled=False), named_range("loss and matcher"):
            return loss_function(*args, **kwargs)

    return computed


def one_group_in_evaluation(loss_function):
    """LW-DETR and RF-DETR train with ``group_detr`` groups of queries and evaluate with one, to be matched as one.

    transformers 5.23 divides it into groups again and matches each object in every part, unlike the original
    (https://github.com/Atten4Vis/LW-DETR/blob/main/models/lwdetr.py, ``SetCriterion``).
    """

    def computed(logits, labels, device, pred_boxes, config, *rest):
        if logits.shape[1] == config.num_queries:
            config = copy.copy(config)
            config.group_detr = 1
        return loss_function(logits, labels, device, pred_boxes, config, *rest)

    return computed
