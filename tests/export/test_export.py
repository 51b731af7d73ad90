"""A checkpoint as an ONNX folder: the same detections for each family, and usable by who has nothing of ours.

What a reader of the folder does is done here: its README's example runs as it stands.
"""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import families
import numpy as np
import onnxruntime
import orjson
import pytest
import torch
from coco_folder import scenes_like_coco
from readme_example import as_detections, example, spied

from helpers.boxes import box_iou
from helpers.config import Config
from helpers.dataset import read_image
from helpers.download.prepare import prepare
from helpers.engine import to_coco
from helpers.evaluate.checkpoint import load_checkpoint
from helpers.export import graph
from helpers.export.folder import PIXELS, SCORE, compare, convention, differences, export, main
from helpers.files import ROOT, UserError
from helpers.index import CocoIndex, open_split
from helpers.metrics import Detections
from helpers.model import Detector
from helpers.train.checkpoints import damage

pytestmark = pytest.mark.usefixtures("one_thread")
family, folder = families.family, families.folder  # fixtures


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return scenes_like_coco(tmp_path_factory.mktemp("scenes"), n_train=2, n_val=6)


def run_of(scenes: Path, model: Path, where: Path, **changes) -> Config:
    """The start checkpoint of a run that has not been trained, on scenes of several shapes."""
    folders = {"coco_root": str(scenes), "data_dir": scenes.parent / "data", "output_dir": where}
    cfg = families.settings(model, data_source="folder", **folders, checkpoint="start", **changes)
    prepare(cfg)
    return cfg


@pytest.fixture(scope="module")
def exported(scenes, folder, tmp_path_factory) -> tuple[Path, dict, Detector, CocoIndex]:
    cfg, seen = run_of(scenes, folder, tmp_path_factory.mktemp("out")), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "helpers.export.folder.load_checkpoint", lambda *args: seen.append(load_checkpoint(*args)) or seen[0]
        )
        where, about = export(cfg)
    assert where == cfg.run_dir / "onnx" and {path.name for path in cfg.run_dir.iterdir()} == {"onnx"}
    return where, about, seen[0], open_split(cfg, "val2017")


def test_every_family_finds_the_same(family, exported):
    """Photos of several shapes, in batches of other sizes than the one that was traced."""
    where, about, *_ = exported
    done = about["compared"]
    assert done["photos"] == 5 and done["detections"] >= (5 if family == "DETR" else 30)  # its random queries are alike
    assert done["largest_score"] < SCORE / 10 and done["largest_pixels"] < PIXELS / 10
    session = onnxruntime.InferenceSession(where / "model.onnx")
    assert {tensor.name: tensor.shape for tensor in session.get_inputs()} == {
        name: tensor["shape"] for name, tensor in about["inputs"].items()
    }
    open_sizes = ["height", "width"] if families.can("take photos of any size", family) else [128, 128]
    assert about["inputs"]["pixel_values"]["shape"] == ["batch", 3, *open_sizes]
    assert orjson.loads((where / "preprocessor.json").read_bytes()) == orjson.loads(orjson.dumps(about))
    for path in where.iterdir():
        for word in (str(ROOT), str(Path.home()), "site-packages"):
            assert word.encode() not in path.read_bytes(), (path.name, word)


def test_readme_is_enough(exported):
    """Its example makes our pixels of a photo, to a level of 255, and of those pixels our detections."""
    where, about, detector, index = exported
    for i in range(3):
        path, size = index.path(i), (int(index.heights[i]), int(index.widths[i]))
        theirs, given = spied(where, path)
        nothing = {"boxes_xyxy": np.zeros((0, 4), np.float32), "class_labels": np.zeros(0, int)}
        image, _ = detector.preprocess.resize(read_image(path, *size), nothing["boxes_xyxy"])
        batch = detector.preprocess.collate([{**nothing, "image": image, "image_id": 1, "orig_size": size}])
        wanted = detector.preprocess.to_device(batch)
        assert given.keys() == wanted.keys() - {"labels"}
        pixels = torch.from_numpy(given["pixel_values"]), wanted["pixel_values"]
        apart = np.subtract(*(detector.preprocess.to_images(values).astype(int) for values in pixels))
        assert np.abs(apart).max() <= 1 and np.abs(apart).mean() < 0.3
        with torch.inference_mode():
            output = detector.model(**{name: torch.from_numpy(value) for name, value in given.items()})
        ours = to_coco(output, detector.processor, [1], batch["orig_sizes"], list(range(len(about["classes"]))))
        count, score, edge = differences(
            ours, as_detections(theirs, {name: k for k, name in enumerate(about["classes"])}, 1)
        )
        assert count and score < SCORE and edge < PIXELS


@pytest.fixture(scope="module")
def deformable(scenes, tmp_path_factory) -> Config:
    where = tmp_path_factory.mktemp("deformable")
    return run_of(scenes, families.make("Deformable DETR", where / "model"), where / "out")


def test_what_differs_is_refused(deformable, monkeypatch):
    """Deformable DETR with its maps' sizes as traced: right on the example, wrong on other shapes; the folder that was
    there stays."""
    where = deformable.run_dir / "onnx"
    where.mkdir(parents=True)
    (where / "model.onnx").write_bytes(b"the one before")
    monkeypatch.setattr(graph, "_SizesStayOpen", nullcontext)
    with pytest.raises(
        UserError, match=r"scores differ by up to 0\.\d+ and boxes by up to [\d.e+]+ pixels .*nothing was"
    ):
        export(deformable)
    assert [path.name for path in deformable.run_dir.rglob("*")] == ["onnx", "model.onnx"]
    assert (where / "model.onnx").read_bytes() == b"the one before"


def test_what_onnx_does_not_have_is_said_in_one_sentence(tmp_path, capfd):
    class Odd(torch.nn.Module):
        def forward(self, pixel_values):
            return {"logits": torch.special.i0e(pixel_values), "pred_boxes": pixel_values}

    with pytest.raises(UserError, match=r"cannot write this Odd as ONNX: .*i0e.*not supported"):
        graph.write_graph(Odd(), {"pixel_values": torch.rand(1, 3, 8, 8)}, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_command(scenes, tmp_path, capsys):
    """The shipped detector as the best checkpoint of a run; and a reader who has nothing of ours, nor torch."""
    given = [f"output_dir={tmp_path}", f"coco_root={scenes}", f"data_dir={tmp_path / 'data'}", "data_source=folder"]
    given += ["classes=person,car,dog", "run_name=mine", "num_workers=0"]
    cfg = families.load_config("demo", **dict(text.split("=") for text in given))
    prepare(cfg)
    with pytest.raises(UserError, match="checkpoint_best is missing: run notebook 03_train first"):
        main(given)
    assert not cfg.run_dir.exists()
    load_checkpoint(cfg, cfg.classes, "start").save(cfg.run_dir / "checkpoint_best")
    assert main(given) == 0
    said, where = capsys.readouterr().out, cfg.run_dir / "onnx"
    assert re.search(r"/mine/onnx: model.onnx \(\d+\.\d MB\) and how to use it. On \d photos \d+ detections are", said)
    names = {"model.onnx", "preprocessor.json", "README.md", "checksums.json"}
    assert {path.name for path in where.iterdir()} == names and damage(where) is None
    index = open_split(cfg, "val2017")
    code = example(where) + "\nassert not {'torch', 'transformers', 'helpers'} & set(sys.modules)\n"
    each = "import sys\nfor photo in sys.argv[1:]:\n    sys.argv[1:] = [photo]\n    exec({!r}, {{}})\n    print('NEXT')"
    asked = [sys.executable, "-I", "-c", each.format(code), *(str(index.path(i)) for i in range(len(index)))]
    done = subprocess.run(asked, cwd=where, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    hits, printed = 0, done.stdout.split("NEXT\n")[:-1]
    assert len(printed) == len(index) > 1
    for i in range(len(index)):
        found = re.findall(r"^([\w ]+) (0\.\d+) \[(.*)\]$", printed[i], re.MULTILINE)
        for row in index.rows(i):
            boxes = [box for name, _, box in found if name == index.classes[index.labels[row]]]
            boxes = np.array([list(map(float, box.split(", "))) for box in boxes]).reshape(-1, 4)
            hits += bool((box_iou(index.boxes_xyxy[[row]], boxes) > 0.5).any())
    assert hits > len(index.labels) / 2


def one_photo(*rows) -> Detections:
    """Category, score, left edge of a box of 10 pixels."""
    return Detections.of(
        [{"image_id": 1, "category_id": k, "bbox": [x, 0, 10, 10], "score": score} for k, score, x in rows]
    )


@pytest.mark.parametrize(
    "theirs,score,edge",
    [
        ([(1, 0.9, 5), (2, 0.5, 50), (1, 0.01, 0)], 0, 0),
        ([(2, 0.5, 50), (1, 0.9, 5)], 0, 0),  # another order, and without the one that is not compared
        ([(1, 0.9, 5.3), (2, 0.52, 50)], 0.02, 0.3),
        ([(1, 0.9, 5)], 0.5, 0),  # one that is lacking
        ([(1, 0.9, 5), (3, 0.5, 50)], 0.5, 0),  # another class
        ([(1, 0.9, 5), (2, 0.5, 50), (3, 0.7, 90)], 0.7, 0),  # one too many
        ([], 0.9, 0),
    ],
)
def test_differences_are_found(theirs, score, edge):
    ours = one_photo((1, 0.9, 5), (2, 0.5, 50), (1, 0.01, 0))
    assert np.allclose(differences(ours, one_photo(*theirs)), (2, score, edge))


@pytest.mark.parametrize(
    "ours,theirs,words",
    [
        (one_photo(), one_photo(), "finds nothing on 2 photos"),
        (one_photo((1, 0.9, 5)), one_photo((1, 0.9, np.nan)), "up to nan pixels"),
        (one_photo((1, 0.9, 5)), one_photo((1, 0.9, 5.6)), "up to 0.6 pixels"),
        (one_photo((1, 0.9, 5)), one_photo((1, 0.902, 5)), "up to 0.002 and"),
    ],
)
def test_what_is_no_proof(ours, theirs, words, monkeypatch):
    detector = Detector(SimpleNamespace(config=SimpleNamespace(num_labels=1)), processor=0, preprocess=0)
    answers = iter([ours, theirs])
    monkeypatch.setattr("helpers.export.folder.predict", lambda *_: (next(answers), {}))
    with pytest.raises(UserError, match=words):
        compare(detector, None, [{"image_ids": [1, 2]}])


def test_unknown_scores_are_refused():
    """A reader who takes a sigmoid for what is none would get plausible nonsense."""

    class Odd:
        def post_process_object_detection(self, output, threshold):
            return [{"scores": output.logits.tanh().flatten()}]

    with pytest.raises(UserError, match="does not know"):
        convention(Odd(), 20, 3)
