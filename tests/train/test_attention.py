"""Where a query looks: the two families attend in two ways, and a picture of the wrong place teaches the wrong
thing.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import FAMILIES

from helpers.config import load_config
from helpers.download.coco import read_index
from helpers.families.loading import load_detector
from helpers.files import UserError
from helpers.index import CocoIndex
from helpers.train import figures
from helpers.train.attention import QueryAttention, attention_table, query_attention, telling_photo

CLASSES = ("person", "car", "chair")


@pytest.fixture(scope="module")
def index(coco_source) -> CocoIndex:
    whole = read_index(coco_source / "annotations" / "instances_val2017.json", coco_source / "images" / "val2017")
    tall = [i for i in range(len(whole)) if whole.heights[i] > 1.2 * whole.widths[i]]
    return whole.take(np.array([*tall[:2], 0]))


@pytest.fixture(scope="module", params=FAMILIES)
def detector(request, tmp_path_factory):
    folder = FAMILIES[request.param](tmp_path_factory.mktemp("model") / request.param)
    return load_detector(load_config("demo", model=str(folder), image_size=192), CLASSES)


def seen(detector, index) -> dict:
    """What the last decoder layer's cross-attention really got and gave, by a hook of our own."""
    kept = {}

    def hook(module, _args, kwargs, output):
        kept.update(module=module, weights=output[1], **kwargs)

    layer = detector.model.model.decoder.layers[-1]
    handle = layer.encoder_attn.register_forward_hook(hook, with_kwargs=True)
    try:
        kept["queries"] = query_attention(detector, index, 0, n=2)[1]
    finally:
        handle.remove()
    return kept


def test_attention_is_whole_and_about_the_photo(detector, index):
    before = detector.model.config._attn_implementation
    photo, queries = query_attention(detector, index, 0, n=2)
    assert photo.shape == (index.heights[0], index.widths[0], 3)
    assert detector.model.config._attn_implementation == before  # training goes on with the fast attention
    for query in queries:
        assert query.points.shape == (*query.weights.shape, 2) and query.weights.shape[0] == 2
        assert np.allclose(query.weights.sum(axis=1), 1, atol=1e-5)
        assert 0 <= query.label < len(CLASSES)  # DETR's "no object" is no class
    assert [q.score for q in queries] == sorted((q.score for q in queries), reverse=True)
    table = attention_table(queries, CLASSES)
    assert table.drop(columns="query").to_numpy(dtype=float).min() >= 0 and len(table) == len(queries)
    figure = figures.attention(photo, queries, CLASSES)
    figure.canvas.draw()
    assert len(figure.axes) == 2 * len(queries)


def test_positions_and_weights_are_the_decoder_s(detector, index):
    """x and y swapped, heads mixed up, another layer, another query: all of these look plausible in a picture."""
    kept = seen(detector, index)
    query = kept["queries"][0]
    if "reference_points" not in kept:  # DETR: every cell of the map of a portrait photo
        rows, columns = query.grid
        assert rows > columns and rows * columns == query.weights.shape[1]
        assert np.allclose(query.points[1, 1], [1.5 / columns, 0.5 / rows])
        mean = kept["weights"][0].mean(0).numpy()  # [Q, cells]
        assert np.abs(mean - query.weights[1]).max(axis=1).min() < 1e-6
        return
    module, reference = kept["module"], kept["reference_points"][:, :, None]  # [1, Q, 1, 1, 4]
    with torch.inference_mode():
        offsets = module.sampling_offsets(kept["hidden_states"]).reshape(*kept["weights"].shape, 2)
    expected = (
        reference[..., :2] + offsets * module.num_points_scale[:, None] * reference[..., 2:] * module.offset_scale
    )[0]
    apart = (expected.flatten(1, 2) - torch.from_numpy(query.points[1])).abs().amax((1, 2))
    assert apart.min() < 1e-4 and query.grid is None
    weights = kept["weights"][0, apart.argmin()].flatten() / module.n_heads
    assert np.allclose(weights, query.weights[1], atol=1e-6)


def test_share_inside_the_box():
    points = np.array([[[0.1, 0.1], [0.4, 0.9], [0.9, 0.4]]] * 2)
    query = QueryAttention(
        np.array([0, 0, 0.5, 1.0]), 1, 0.5, points, np.array([[0.5, 0.2, 0.3], [0.0, 0.0, 1.0]]), None
    )
    shares = attention_table([query], CLASSES).iloc[0, 2:].astype(float)
    assert np.allclose(shares, [0.7, 0.0, 0.5])  # of the first layer, of the last one; the box of the photo


def test_the_photo_shows_three_large_objects(index):
    """With fewer than three objects there is nothing to compare."""
    counts = [len(index.rows(i, crowd=False)) for i in range(len(index))]
    assert counts[telling_photo(index)] >= 3 or max(counts) < 3


def test_a_model_without_attention_is_one_sentence(detector, index, monkeypatch):
    forward = detector.model.forward

    def without(**inputs):
        output = forward(**inputs)
        output.cross_attentions = None
        return output

    monkeypatch.setattr(detector.model, "forward", without)
    with pytest.raises(UserError, match="does not return its attention"):
        query_attention(detector, index, 0)
