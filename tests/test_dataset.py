"""The annotation index, decoding and batching."""

import os
import signal

import cv2
import numpy as np
import orjson
import pytest
import safetensors.numpy
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from helpers import devices
from helpers.augment import Augment
from helpers.collator import Preprocess
from helpers.config import load_config
from helpers.dataset import CocoDetection, PhotoLoader, epoch_batches, read_image, sample_seed
from helpers.download.coco import read_index
from helpers.engine import photo_loader
from helpers.files import UserError
from helpers.index import CocoIndex, index_file, open_split
from helpers.metrics import coco_metrics, ground_truth
from helpers.sanity import countable, drop_broken_images, is_bijective, oracle_detections

KEEP = Preprocess(128, True, 1 / 255, (0.5,) * 3, (0.5,) * 3, InterpolationMode.BILINEAR)
SQUARE = Preprocess(96, False, 1 / 255, (0.5,) * 3, (0.5,) * 3, InterpolationMode.BILINEAR)


@pytest.fixture(scope="module")
def index(coco_source) -> CocoIndex:
    return read_index(coco_source / "annotations" / "instances_val2017.json", coco_source / "images" / "val2017")


def test_index_holds_the_published_records(index, coco_source):
    """Ids, crowds, areas and boxes survive; every label points at its own category (a shifted map would not)."""
    coco = orjson.loads((coco_source / "annotations" / "instances_val2017.json").read_bytes())
    records = {record["id"]: record for record in coco["annotations"]}
    owner = np.repeat(index.image_ids, np.diff(index.starts))
    assert sorted(index.annotation_ids) == sorted(records) and is_bijective(index)
    for k, annotation_id in enumerate(index.annotation_ids):
        record = records[int(annotation_id)]
        assert owner[k] == record["image_id"] and index.bbox[k].tolist() == record["bbox"]
        assert index.category_ids[index.labels[k]] == record["category_id"]
        assert index.areas[k] == record["area"] and index.iscrowd[k] == bool(record["iscrowd"])


@pytest.mark.parametrize("preprocess", [KEEP, SQUARE], ids=["padded", "square"])
def test_oracle_scores_one(index, preprocess):
    """Ground truth through resize, collation and decoding, crowds in the ground truth and out of training: AP 1.0.

    Boxes relative to the padded canvas, the first trap, would be about half right.
    """
    stats = coco_metrics(ground_truth(index), oracle_detections(index, preprocess))["stats"]
    assert stats["mAP"] > 0.999 and stats["mAP75"] > 0.999


def test_training_samples_hold_no_crowd(index):
    """A crowd box is no single object to learn from."""
    crowded = [i for i in range(len(index)) if index.iscrowd[index.rows(i)].any()]
    assert crowded, "the data set for this test must hold crowds"
    dataset = CocoDetection(index, KEEP.resize)
    for i in crowded[:5]:
        assert len(dataset[i]["class_labels"]) == (~index.iscrowd[index.rows(i)]).sum()


def test_every_photo_once_an_epoch_and_batches_alike(index):
    """Grouping by shape must not lose, repeat or stop shuffling photos; the order depends on seed and epoch alone."""
    batches = epoch_batches(index, 4, seed=1, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(len(index)))
    again, other = epoch_batches(index, 4, seed=1, epoch=0), epoch_batches(index, 4, seed=1, epoch=1)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again))
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other))


class Threads(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, _: int) -> dict:
        return {
            "threads": cv2.getNumThreads(),
            "blocked": {int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())},
        }


def test_a_worker_has_one_thread(index):
    """Eight workers with a thread for each of sixteen cores prepared a third of the photos."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(4)
    try:
        begin = photo_loader(index, KEEP, [np.arange(1)], 1).worker_init_fn
        found = list(PhotoLoader(Threads(), batch_size=None, num_workers=1, worker_init_fn=begin))
    finally:
        cv2.setNumThreads(before)
    assert [each["threads"] for each in found] == [1, 1]
    assert found[0]["blocked"] >= {signal.SIGINT, signal.SIGTERM}, "a Ctrl-C that reaches every process is the loop's"


def test_a_loader_gets_the_workers_that_the_cores_allow(index, monkeypatch):
    """tests/test_devices.py has the table."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(devices, "cpu_count", lambda: 3)
    assert [photo_loader(index, KEEP, [np.arange(1)], n).num_workers for n in (0, 1, 8)] == [0, 1, 2]


def test_a_worker_that_has_hardly_begun_outlives_a_stop_request(index):
    """Sent to the whole process group, it came between the start of a worker and the line in which that said to leave
    it to the loop: the training then died of a dead worker, without a checkpoint.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    batches = iter(photo_loader(index, KEEP, [np.arange(1)], 1))
    os.kill(batches._workers[0].pid, signal.SIGTERM)
    assert next(batches)["pixel_values"] is not None
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_photo_has_its_own_seed():
    """Otherwise augmentation would depend on the number of workers, and a resumed run would differ."""
    seeds = {sample_seed(seed, epoch, image) for seed in range(3) for epoch in range(3) for image in range(50)}
    assert len(seeds) == 450 and sample_seed(1, 2, 3) == sample_seed(1, 2, 3)


def save(path, array, **options):
    Image.fromarray(array, **({"mode": options.pop("mode")} if "mode" in options else {})).save(path, **options)
    return path


def test_unusual_photos_become_rgb(tmp_path):
    """COCO holds greyscale photos; others hold CMYK, palettes, 16 bits, transparency or several frames."""
    colour = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(colour).convert("L").save(tmp_path / "grey.jpg")
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(colour).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)).save(tmp_path / "sixteen.png")
    Image.fromarray(colour).save(tmp_path / "frames.gif", save_all=True, append_images=[Image.fromarray(255 - colour)])
    Image.fromarray(colour).convert("RGBA").save(tmp_path / "alpha.png")
    for path in sorted(tmp_path.iterdir()):
        image = read_image(path, 20, 30)
        assert image.shape == (20, 30, 3) and image.dtype == np.uint8, path.name
    sixteen = read_image(tmp_path / "sixteen.png", 20, 30)
    assert sixteen.min() == 0 and sixteen.max() == 255 and abs(sixteen.mean() - 127.5) < 2  # scaled, not clipped


def test_quick_jpeg_decoder_gives_pillows_pixels(index, tmp_path):
    """Colour JPEGs go past Pillow's decoder: same pixels, and whatever Pillow refuses is still refused, in its
    words.
    """
    for i in range(0, len(index), max(1, len(index) // 30)):
        with Image.open(index.path(i)) as file:
            expected = np.array(file.convert("RGB"))
        assert np.array_equal(read_image(index.path(i), *expected.shape[:2]), expected), index.path(i)
    random = np.random.default_rng(0)
    whole = np.full((64, 96, 3), 9, np.uint8) + random.integers(0, 90, (64, 96, 3), dtype=np.uint8)
    for options in ({"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"quality": 98, "optimize": True}):
        Image.fromarray(whole).save(tmp_path / "whole.jpg", **options)
        data = (tmp_path / "whole.jpg").read_bytes()
        for cut in (len(data), len(data) - 1, len(data) - 2, len(data) // 2, 300, 20, 2):
            (tmp_path / "cut.jpg").write_bytes(data[:cut])
            try:
                with Image.open(tmp_path / "cut.jpg") as file:
                    expected = np.array(file.convert("RGB"))
            except OSError:
                with pytest.raises(OSError):
                    read_image(tmp_path / "cut.jpg", 64, 96)
            else:
                assert np.array_equal(read_image(tmp_path / "cut.jpg", 64, 96), expected)


def test_rotation_mark_follows_the_annotated_size(tmp_path):
    """COCO's boxes belong to the stored pixels; only when the record says the turned size is the photo turned."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg", 20, 30).shape == (20, 30, 3)
    assert read_image(tmp_path / "turned.jpg", 30, 20).shape == (30, 20, 3)
    with pytest.raises(OSError, match="its record says"):
        read_image(tmp_path / "turned.jpg", 21, 30)


def write_coco(root, images, annotations, categories=({"id": 3, "name": "car"},)):
    (root / "images").mkdir(parents=True, exist_ok=True)
    document = {"images": images, "annotations": annotations, "categories": list(categories)}
    (root / "coco.json").write_bytes(orjson.dumps(document))
    return root / "coco.json", root / "images"


def test_broken_photo_is_left_out_and_listed_not_a_crash(tmp_path):
    """Half a JPEG decodes in some libraries without an error: a grey lower half would be trained on."""
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 64, "width": 64} for k in (1, 2, 3, 4)]
    boxes = [
        {"id": k, "image_id": k, "category_id": 3, "bbox": [1, 1, 20, 20], "area": 400, "iscrowd": 0}
        for k in (1, 2, 3, 4)
    ]
    file, folder = write_coco(tmp_path, images, boxes)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for k in (1, 2, 3):
        Image.fromarray(noise).save(folder / f"{k}.jpg")
    (folder / "2.jpg").write_bytes((folder / "2.jpg").read_bytes()[:900])
    (folder / "3.jpg").write_bytes(b"")
    opened = read_index(file, folder)
    assert [row["file"] for row in opened.dropped] == ["4.jpg"]  # missing
    whole = drop_broken_images(opened)
    assert whole.image_ids.tolist() == [1] and {row["file"] for row in whole.dropped} == {"2.jpg", "3.jpg", "4.jpg"}
    assert whole.annotation_ids.tolist() == [1]
    batch = KEEP.collate(
        [CocoDetection(opened, KEEP.resize)[i] for i in range(3)]
    )  # during training: left out and named
    assert batch["image_ids"] == [1] and sorted(batch["unreadable"]) == [2, 3]
    assert KEEP.collate([CocoDetection(opened, KEEP.resize)[1]])["pixel_values"] is None


@pytest.mark.parametrize(
    "change, why",
    [
        ({"bbox": [1, 1, 0, 5]}, "no area"),
        ({"bbox": [1, 1, -3, 5]}, "no area"),
        ({"bbox": [1, 1, 5]}, "not four"),
        ({"bbox": [None, 1, 2, 2]}, "not four"),
        ({"bbox": [100, 1, 5, 5]}, "outside"),
        ({"category_id": 99}, "unknown category"),
        ({"id": 1}, "twice"),
    ],
)
def test_bad_record_is_left_out_and_listed(tmp_path, change, why):
    """One bad record among good ones: it goes, with a reason, and nothing else."""
    good = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    file, folder = write_coco(
        tmp_path, [{"id": 1, "file_name": "1.jpg", "height": 50, "width": 50}], [good, {**good, "id": 2, **change}]
    )
    Image.new("RGB", (50, 50)).save(folder / "1.jpg")
    opened = read_index(file, folder)
    assert opened.annotation_ids.tolist() == [1] and why in opened.dropped[0]["why"]


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg"])
def test_photo_name_that_leads_out_is_refused(tmp_path, name):
    """A data set's file must not make us read elsewhere."""
    file, folder = write_coco(tmp_path, [{"id": 1, "file_name": name, "height": 5, "width": 5}], [])
    with pytest.raises(UserError, match="leads out of its folder"):
        read_index(file, folder)


@pytest.mark.parametrize("content", [b'{"images": [', b"[]", b"", b'{"images": 3}'])
def test_annotation_file_that_is_none_is_named(tmp_path, content):
    """A half written file must be named, not end in a KeyError."""
    (tmp_path / "coco.json").write_bytes(content)
    with pytest.raises(UserError, match="coco.json"):
        read_index(tmp_path / "coco.json", tmp_path)


def test_index_beside_the_annotations_is_what_was_read(index, tmp_path):
    """Notebooks 02 to 05 open it instead of reading the JSON again: every value and name must survive."""
    cfg = load_config("demo", data_dir=tmp_path)
    file = cfg.annotation_file("val2017")
    file.parent.mkdir()
    file.write_bytes(b"{}")
    cfg.image_dir("val2017").parent.mkdir()
    cfg.image_dir("val2017").symlink_to(index.image_dir)
    index.save(file)
    opened = open_split(cfg, "val2017")
    for name, value in vars(index).items():
        other = getattr(opened, name)
        if isinstance(value, np.ndarray):
            assert np.array_equal(value, other) and value.dtype == other.dtype, name
        elif name != "image_dir":
            assert value == other, name
    file.write_bytes(b"[]")
    with pytest.raises(UserError, match="not as notebook 01 left it.*--only 01"):
        open_split(cfg, "val2017")
    for content in (b"", b"\x10" + b"\0" * 7 + b'{"x": 1}        ', safetensors.numpy.save({}, {"index": "[]"})):
        index_file(file).write_bytes(content)
        with pytest.raises(UserError, match="not as notebook 01 left it"):
            open_split(cfg, "val2017")


def test_photo_that_went_is_noticed_on_opening(tmp_path):
    """Else the first epoch ends at it, or trains without it in silence."""
    images = [{"id": k, "file_name": f"./{k}.jpg", "height": 64, "width": 64} for k in (1, 2)]
    boxes = [{"id": k, "image_id": k, "category_id": 3, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0} for k in (1, 2)]
    cfg = load_config("demo", data_dir=tmp_path)
    file, _ = write_coco(tmp_path, images, boxes)
    cfg.annotation_file("val2017").parent.mkdir()
    file.rename(cfg.annotation_file("val2017"))
    cfg.image_dir("val2017").mkdir()
    for k in (1, 2):
        Image.new("RGB", (64, 64)).save(cfg.image_dir("val2017") / f"{k}.jpg")
    read_index(cfg.annotation_file("val2017"), cfg.image_dir("val2017")).save(cfg.annotation_file("val2017"))
    assert len(open_split(cfg, "val2017")) == 2
    (cfg.image_dir("val2017") / "1.jpg").unlink()
    opened = open_split(cfg, "val2017")
    assert opened.annotation_ids.tolist() == [2] and opened.dropped == [
        {"file": "./1.jpg", "why": "the photo is missing"}
    ]


@pytest.mark.parametrize("engine", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("shift", [-3, -(2**40), 2**53 + 1, 2**63 - 500])
def test_ids_play_no_part_in_the_numbers(shift, engine):
    """Annotation 0 is "no match" to pycocotools, ids above 2^53 fit no float64, hotcoco refuses negative ones."""
    random = np.random.default_rng(0)

    def numbers(offset: int) -> dict:
        images = [{"id": k + offset, "file_name": f"{k}.jpg", "height": 90, "width": 90} for k in range(8)]
        categories = [{"id": 7 - 3 * k + offset, "name": str(k)} for k in range(2)]
        boxes = np.random.default_rng(1).uniform(5, 40, (24, 4))
        annotations = [
            {"id": k + offset, "image_id": k % 8 + offset, "category_id": categories[k % 2]["id"], "bbox": box.tolist()}
            | {"area": box[2] * box[3], "iscrowd": 0}
            for k, box in enumerate(boxes)
        ]
        found = [
            {**record, "bbox": (np.array(record["bbox"]) * jitter).tolist(), "score": score}
            for record, jitter, score in zip(annotations, jitters, scores)
        ]
        return coco_metrics({"images": images, "categories": categories, "annotations": annotations}, found, engine)

    jitters, scores = random.uniform(0.9, 1.1, (24, 4)), random.uniform(0, 1, 24).round(1).tolist()
    plain, other = numbers(1), numbers(shift)
    assert 0.2 < plain["stats"]["mAP"] < 1 and plain["stats"] == other["stats"]
    assert plain["per_class"].equals(other["per_class"])


def test_photo_with_more_objects_than_coco_counts_is_known(tmp_path):
    """Even its ground truth would score less than 1, and notebook 02 would blame the pipeline."""
    images = [{"id": k, "file_name": f"{k}.png", "height": 64, "width": 64} for k in (1, 2)]
    boxes = [
        {"id": k, "image_id": 1 + (k > 101), "category_id": 3, "bbox": [k % 50, k // 5, 9, 9], "area": 81, "iscrowd": 0}
        for k in range(1, 110)
    ]
    file, folder = write_coco(tmp_path, images, boxes)
    for k in (1, 2):
        Image.new("RGB", (64, 64)).save(folder / f"{k}.png")
    opened = read_index(file, folder)
    assert countable(opened).tolist() == [1]
    for keep, score in (([0, 1], 0.995), ([1], 1)):
        part = opened.take(np.array(keep))
        assert coco_metrics(ground_truth(part), oracle_detections(part, KEEP))["stats"]["AR100"] <= score


def test_more_than_eight_bits_are_not_black(tmp_path):
    """12-bit sensors write 16-bit files; scaled by 65535 such a photo is a night."""
    ramp = np.linspace(0, 1, 600).reshape(20, 30)
    Image.fromarray((ramp * 4095).astype(np.uint16)).save(tmp_path / "twelve.png")
    Image.fromarray((ramp * 255).astype(np.int32)).save(tmp_path / "int32.tif")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "unit.tif")
    for path in sorted(tmp_path.iterdir()):
        assert abs(read_image(path, 20, 30).mean() - 127.5) < 2, path.name


@pytest.mark.parametrize("kind", ["WEBP", "MPO", "GIF", "TIFF", "BMP"])
def test_name_does_not_say_the_format(tmp_path, kind):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.jpg", kind)
    assert read_image(tmp_path / "photo.jpg", 20, 30).shape == (20, 30, 3)


@pytest.mark.parametrize("keep", [KEEP, SQUARE], ids=["padded", "square"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 3), (3, 2), (3, 3), (3, 300), (300, 3)])
def test_photo_of_three_rows_is_no_photo_of_three_channels(size, keep):
    """Image libraries guess which axis holds the channels by its length."""
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    boxes_xyxy = np.array([[0, 0, size[1], size[0]]], np.float32)
    resized, boxes = keep.resize(image, boxes_xyxy)
    for level in ("light", "full", "strong"):
        assert Augment(level)(resized, boxes, np.array([0]), 1)[0].shape == resized.shape
    sample = {"image": resized, "boxes_xyxy": boxes, "class_labels": np.array([0]), "image_id": 1, "orig_size": size}
    assert keep.collate([sample])["pixel_values"].shape[1] == 3
