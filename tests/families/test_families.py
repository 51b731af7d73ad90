"""What the project promises of a detector, for each family that ``AutoModelForObjectDetection`` knows.

What a family cannot do stands in ``CANNOT``, with the reason. A test asks every family for its property, and wants the
answer no exactly there: a reason that is no longer true fails too.
"""

from __future__ import annotations

import contextlib
import copy
import re

import families
import numpy as np
import pytest
import torch
import transformers
from families import CANNOT, CLASSES, FAMILIES, can, collated, detector, inputs, make, photos, same, settings
from PIL import Image
from tiny import SOURCE_CLASSES
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

from helpers.boxes import xyxy_to_xywh
from helpers.download.coco import read_index
from helpers.engine import predict
from helpers.evaluate.cost import flops
from helpers.families.processors import sides
from helpers.files import UserError
from helpers.model import backbone_of, backbone_parameters, freeze, parameter_groups
from helpers.synthetic_data.probe import features
from helpers.train.attention import query_attention

pytestmark = pytest.mark.usefixtures("one_thread")
family, folder, loaded = families.family, families.folder, families.loaded  # fixtures


def test_every_family_is_here():
    """Those of the library that take a photo and nothing else; the rest is for documents."""
    kinds = transformers.models.auto.modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    documents = {"table-transformer"} | {name for name in kinds if name.startswith("pp_")}
    ours = {config().model_type for config, *_ in FAMILIES.values()}
    assert ours == set(kinds) - documents
    for what, those in CANNOT.items():
        assert those.keys() <= FAMILIES.keys(), what


class Queries(TorchFunctionMode):
    """Keeps which queries the model takes (``topk``), or makes it take those of another one."""

    def __init__(self, taken: list[torch.Tensor] | None = None):
        super().__init__()
        self.taken, self.left = [], list(taken or [])

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function not in (torch.topk, torch.Tensor.topk):
            return result
        if self.left:
            dim = (kwargs or {}).get("dim", args[2] if len(args) > 2 else -1)
            result = torch.return_types.topk((args[0].gather(dim, self.left[0]), self.left.pop(0)))
        self.taken.append(result[1])
        return result


def test_remapped_head_gives_the_checkpoints_logits(family, loaded, folder):
    """Of the same queries, which a family with two stages takes by the classes that it has."""
    source = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    batch = inputs(loaded, photos())
    with torch.no_grad():
        with Queries() as theirs:
            whole = source(**batch)
        with Queries() as ours:
            loaded.model(**batch)
        kept = all(torch.equal(one, other) for one, other in zip(theirs.taken, ours.taken, strict=True))
        assert kept == can("keep the whole head's queries", family)
        with Queries(theirs.taken):
            remapped = loaded.model(**batch)
    columns = [SOURCE_CLASSES.index(name) for name in CLASSES]
    if whole.logits.shape[-1] > len(SOURCE_CLASSES):
        columns.append(-1)  # no object
    assert torch.allclose(remapped.logits, whole.logits[..., columns], atol=1e-5)
    assert torch.allclose(remapped.pred_boxes, whole.pred_boxes, atol=1e-5)
    assert whole.logits.std() > 0.1, "logits that are all alike hide faults"


def test_photos_are_its_own_processors(loaded):
    for photo in photos():
        annotations = [
            {"bbox": bbox, "category_id": int(k), "area": bbox[2] * bbox[3], "iscrowd": 0}
            for k, bbox in zip(photo["class_labels"], xyxy_to_xywh(photo["boxes_xyxy"]).tolist())
        ]
        annotations = {"image_id": 1, "annotations": annotations}
        theirs = loaded.processor(images=photo["image"], annotations=annotations, return_tensors="pt")
        ours = inputs(loaded, [photo], labels=True)
        assert ours["pixel_values"].shape == theirs["pixel_values"].shape
        assert (ours["pixel_values"] - theirs["pixel_values"]).abs().mean() < 1e-2
        assert torch.allclose(ours["labels"][0]["boxes"], theirs["labels"][0]["boxes"], atol=1e-4)
        assert torch.equal(ours["labels"][0]["class_labels"], theirs["labels"][0]["class_labels"])


@contextlib.contextmanager
def projected(model, instead: list[torch.Tensor] = ()):
    """The maps that go from the backbone into the transformer, in their order; ``instead`` goes there for them."""
    maps, handles = [], []

    def seen(*called) -> torch.Tensor | None:
        maps.append(called[-1])
        return instead[len(maps) - 1] if instead else None

    for name, module in model.named_modules():
        if re.fullmatch(r"model\.input_proj(ection|\.\d+)", name):
            handles.append(module.register_forward_hook(seen))
    yield maps
    for handle in handles:
        handle.remove()


@torch.no_grad()
def test_batch_of_mixed_shapes_is_single_photos(family, loaded):
    """Where only the backbone sees the padding, the transformer must not: with the single photos' maps it is exact."""
    model, together = loaded.model, inputs(loaded, photos())
    with projected(model) as padded:
        batched = model(**together)
    singles, apart = [], []
    for photo in photos():
        with projected(model) as maps:
            singles.append(model(**inputs(loaded, [photo])))
        apart.append(maps)
    single = transformers.utils.ModelOutput(
        logits=torch.cat([each.logits for each in singles]), pred_boxes=torch.cat([each.pred_boxes for each in singles])
    )
    assert same(batched, single) == can("see padded photos as single ones", family)
    if not can("see padded photos as single ones", family):
        fill = [
            torch.cat([pad(m, (0, whole.shape[3] - m.shape[3], 0, whole.shape[2] - m.shape[2])) for m in level])
            for whole, level in zip(padded, zip(*apart, strict=True), strict=True)
        ]
        with projected(model, instead=fill):
            assert same(model(**together), single)


def test_sizes_that_do_not_suit_are_refused(family, loaded, folder):
    """They ended in an error of tensor sizes, or in pixels that nobody sees."""
    step, least = sides(loaded.model.config)
    assert (step == 1) == can("take photos of any size", family) == loaded.preprocess.keep_aspect
    pixels = torch.randn(1, 3, 100, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if can("take photos of any size", family):
            assert loaded.model(pixels).logits.isfinite().all()
            return
        low = 100 // step * step
        try:
            found = loaded.model(pixels)
        except (RuntimeError, ValueError):
            assert family != "YOLOS"
        else:
            assert torch.equal(found.logits, loaded.model(pixels[..., :low, :low]).logits)
        with pytest.raises(UserError, match=rf"image_size=100: .* {step} from {least} on; take {low} or {low + step}"):
            detector(folder, image_size=100)
        for side in (least, low, low + step):
            assert loaded.model(torch.zeros(1, 3, side, side)).logits.isfinite().all()
        if least > step:  # not only multiples: there must be a cell for each query
            with pytest.raises(RuntimeError):
                loaded.model(torch.zeros(1, 3, least - step, least - step))


def test_too_few_cells_for_the_queries_are_refused():
    """D-FINE-nano takes 300 queries from maps of stride 16 and 32: 128 pixels ended in "index k out of range"."""
    nano = transformers.DFineConfig(feat_strides=[16, 32])
    assert sides(nano) == (32, 256)
    assert sides(transformers.RTDetrConfig()) == (32, 128)
    assert sides(transformers.DetrConfig()) == sides(transformers.DeformableDetrConfig()) == (1, 1)
    base = transformers.RfDetrConfig(backbone_config=transformers.RfDetrDinov2Config(out_indices=[2, 5, 8, 11]))
    assert sides(base) == (56, 280)


def test_saved_folder_gives_the_same_boxes_in_a_pipeline(loaded, tmp_path):
    """With no code of ours: what is saved is the library's, processor and all.

    On photos that need no resize: how near ours comes to the processor's has a test of its own.
    """
    loaded.save(tmp_path)
    theirs = transformers.pipeline("object-detection", model=str(tmp_path), device="cpu")
    ids = range(1, len(CLASSES) + 1)
    for photo in photos():
        photo["image"] = np.ascontiguousarray(photo["image"][:128, : 96 if loaded.preprocess.keep_aspect else 128])
        photo["orig_size"] = photo["image"].shape[:2]
        batch = loaded.preprocess.collate([photo])
        ours, _ = predict(loaded, [batch], ids)
        corners = np.hstack([ours.bbox[:, :2], ours.bbox[:, :2] + ours.bbox[:, 2:]])
        found = theirs(Image.fromarray(photo["image"]), threshold=0.0)
        assert len(found) == len(ours) >= 20
        for each in found:
            same_score = np.abs(ours.score - each["score"]) < 1e-4
            same_class = ours.category_id == CLASSES.index(each["label"]) + 1
            apart = np.abs(corners - list(each["box"].values())).max(axis=1)  # a pipeline cuts its pixels to whole ones
            assert (same_score & same_class & (apart < 1.01)).any()


def test_shared_box_head_is_saved(tmp_path):
    """DEIMv2's: the library saves it under a name that it does not read again, and starts with a random one."""
    found = detector(make("DEIMv2", tmp_path / "start", share_bbox_head=True))
    with torch.no_grad():
        for parameter in found.model.bbox_embed.parameters():
            parameter.fill_(0.1)
    found.save(tmp_path / "ours")
    found.model.save_pretrained(tmp_path / "theirs")
    heads = [
        transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / name).bbox_embed.state_dict()
        for name in ("ours", "theirs")
    ]
    assert all((tensor == 0.1).all() for tensor in heads[0].values())
    assert not all((tensor == 0.1).all() for tensor in heads[1].values()), "mended upstream"


def test_parts_of_the_model_are_found(family, loaded, folder):
    """Learning rates and frozen stages mean what they say, and the other stages' tools look at every family."""
    backbone = backbone_parameters(loaded.model)
    assert (backbone_of(loaded.model) is not None) == bool(backbone) == can("train its backbone more slowly", family)
    model = copy.deepcopy(loaded.model)
    freeze(model, 2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    if backbone:
        assert 0 < len(trained & backbone.keys()) < len(backbone)
        assert any(name in trained for name in list(backbone)[-3:]) and next(iter(backbone)) not in trained
    assert {name for name, _ in loaded.model.named_parameters()} - backbone.keys() <= trained
    names = {group["name"] for group in parameter_groups(loaded, settings(folder))}
    assert names == ({"backbone", "rest"} if backbone else {"rest"})


def test_other_notebooks_can_look_at_it(family, loaded, coco_source):
    """Its cost (04), what its backbone makes of a photo (06), where a query looks (03)."""
    asked = [p.requires_grad for p in loaded.model.parameters()]
    with torch.inference_mode():
        assert flops(loaded, collated(loaded.preprocess, photos()[:1]), "cpu") > 1e6
    assert asked == [p.requires_grad for p in loaded.model.parameters()]
    seen = features(loaded, photos()[0]["image"])
    assert len(seen) > 10 and np.isfinite(seen).all()
    index = read_index(coco_source / "annotations" / "instances_val2017.json", coco_source / "images" / "val2017")
    if not can("show where a query looks", family):
        with pytest.raises(UserError, match="does not return its attention"):
            query_attention(loaded, index, 0)
        return
    _, (query,) = query_attention(loaded, index, 0, n=1)
    assert query.points.shape == (*query.weights.shape, 2) and len(query.weights) == 2
    assert np.allclose(query.weights.sum(axis=1), 1, atol=1e-4)
    spread = np.abs(query.points - query.points.mean(axis=1, keepdims=True)).max()
    assert 0 < spread < 2, "positions are fractions of the photo"
