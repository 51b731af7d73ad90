"""Annotation files as tools and scripts write them: read for what they must mean, or refused with id and reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.config import load_config
from helpers.download.coco import read_index
from helpers.download.plausible import area_doubt, check_boxes
from helpers.download.prepare import _finished, _request, prepare
from helpers.files import UserError
from helpers.index import open_split

SPLITS = ("train2017", "val2017")
WIDTH, HEIGHT = 64, 48


def box(key, image_id, bbox, **more) -> dict:
    return {"id": key, "image_id": image_id, "category_id": 1, "bbox": bbox, "area": 200, "iscrowd": 0, **more}


def photo(key, name: str, **more) -> dict:
    return {"id": key, "file_name": name, "width": WIDTH, "height": HEIGHT, **more}


class Source:
    """A COCO folder of three photos, a.png and b.png to train on and c.png, with a box each, to be spoilt."""

    def __init__(self, root: Path):
        self.root, self.names = root, ["thing"]
        self.images = {"train2017": [photo(1, "a.png"), photo(2, "b.png")], "val2017": [photo(3, "c.png")]}
        self.boxes = {
            "train2017": [box(1, 1, [4, 4, 20, 16]), box(2, 2, [30, 20, 24, 20])],
            "val2017": [box(3, 3, [10, 8, 30, 30])],
        }
        random = np.random.default_rng(0)
        for split, names in zip(SPLITS, (("a.png", "b.png"), ("c.png",))):
            (root / "images" / split).mkdir(parents=True)
            for name in names:
                noise = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / "images" / split / name)

    @property
    def train(self) -> list[dict]:
        return self.boxes["train2017"]

    def write(self) -> Path:
        (self.root / "annotations").mkdir(exist_ok=True)
        for split in SPLITS:
            categories = [{"id": k, "name": name} for k, name in enumerate(self.names, 1)]
            coco = {"images": self.images[split], "annotations": self.boxes[split], "categories": categories}
            (self.root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))
        return self.root

    def config(self, **changes):
        settings = {"data_source": "folder", "coco_root": self.write(), "data_dir": self.root.parent / "data"}
        return load_config("demo", **{**settings, "classes": tuple(self.names), **changes})

    def train_part(self, **changes) -> dict:
        return prepare(self.config(**changes))["splits"]["train2017"]

    def refusal(self, **changes) -> str:
        with pytest.raises(UserError) as error:
            prepare(self.config(**changes))
        assert "\n" not in str(error.value)
        return str(error.value)


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path / "source")


def reasons(part: dict) -> str:
    return " ".join(f"{row['file']}: {row['why']}" for row in part["dropped"])


# ---- which photo is meant ----


def test_image_id_of_two_photos_is_no_ones(source):
    """The boxes of one would be learnt on the other."""
    source.images["train2017"].append(photo(7, "a.png", id=2))
    source.images["train2017"][0]["file_name"] = "d.png"
    Image.new("RGB", (WIDTH, HEIGHT), "red").save(source.root / "images" / "train2017" / "d.png")
    part = source.train_part()
    assert (part["images"], part["annotations"]) == (1, 1)
    assert "image id 2 stands for a.png and b.png" in reasons(part) and "its 1 annotations go with it" in reasons(part)


def test_photo_under_two_ids_is_left_out(source):
    source.images["train2017"][1]["file_name"] = "./a.png"
    source.images["train2017"].append(photo(5, "b.png"))
    source.train.append(box(5, 5, [1, 1, 9, 9]))
    config = source.config()
    part = prepare(config)["splits"]["train2017"]
    assert part["images"] == 1 and "a.png: it stands under the image ids 1 and 2" in reasons(part)
    assert _finished(config, _request(config)), "it is whole, and not built again at every call"


def test_all_photos_in_doubt_is_said(source):
    source.images["train2017"][1]["file_name"] = "a.png"
    assert "stands under the image ids 1 and 2" in source.refusal()


@pytest.mark.parametrize("spelt", ["./a.png", "x/../a.png", ".//a.png"])
def test_same_name_spelt_twice_in_two_folders(source, tmp_path, spelt):
    """One picture would overwrite the other."""
    other = Source(tmp_path / "other")
    for split in SPLITS:
        for image, record in zip(other.images[split], other.boxes[split]):
            image["id"] += 100
            record.update(id=record["id"] + 100, image_id=image["id"])
    other.images["train2017"][0]["file_name"] = spelt
    refusal = source.refusal(coco_root=f"{source.write()},{other.write()}")
    assert ("photo a.png is both in" in refusal) or ("leads out of its folder" in refusal and ".." in spelt)


# ---- what boxes mean ----

LAYOUT = np.array([[40, 30, 20, 15], [2, 3, 30, 40], [10, 20, 50, 20], [44, 28, 19, 19]], float)  # x, y, width, height


@pytest.mark.parametrize(
    "name, spoil",
    [
        ("corners x0, y0, x1, y1", lambda b: np.hstack([b[:, :2], b[:, :2] + b[:, 2:]])),
        ("the centre, width and height", lambda b: np.hstack([b[:, :2] + b[:, 2:] / 2, b[:, 2:]])),
        ("y before x", lambda b: b[:, [1, 0, 3, 2]]),
        ("fractions", lambda b: b / (WIDTH, HEIGHT, WIDTH, HEIGHT)),
        ("fractions", lambda b: np.hstack([b[:, :2], b[:, :2] + b[:, 2:]]) / (WIDTH, HEIGHT, WIDTH, HEIGHT)),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_boxes_in_another_format_are_refused(source, split, name, spoil):
    """Before the training, with an id, whatever the split: no error is raised later, only nothing is learnt."""
    image = source.images[split][0]["id"]
    boxes = spoil(LAYOUT).tolist()
    source.boxes[split] = [box(k, image, bbox) for k, bbox in enumerate(boxes, 20)]
    refusal = source.refusal()
    assert name in refusal and split in refusal and "annotation 2" in refusal and ".png" in refusal


def test_percent_and_thousandths_are_refused(tmp_path):
    random = np.random.default_rng(0)
    corner = random.uniform(0, 60, (40, 2))
    percent = np.hstack([corner, random.uniform(5, 39, (40, 2))])
    for scale, what in ((1, "percent of the photo"), (10, "thousandths of the photo")):
        coco = {
            "images": [{"id": 1, "file_name": "1.png", "width": 640, "height": 480}],
            "annotations": [box(k, 1, (scale * bbox).tolist()) for k, bbox in enumerate(percent)],
            "categories": [{"id": 1, "name": "a"}],
        }
        (tmp_path / "1.png").touch()
        (tmp_path / "coco.json").write_text(json.dumps(coco))
        with pytest.raises(UserError, match=what):
            check_boxes(read_index(tmp_path / "coco.json", tmp_path), "train2017")


def test_boxes_that_reach_out_a_little_are_taken_and_said(source):
    """COCO's own do by a fraction of a pixel, of which nothing is said; people who draw by hand by a few."""
    source.train.extend([box(11, 1, [-0.5, 1, 20, 9]), box(12, 2, [40, 2, 30, 9]), box(13, 1, [40, 30, 10, 9])])
    part = source.train_part()
    (note,) = (note for note in part["notes"] if "reach out" in note)
    assert "1 of 5" in note and "annotation 12 (b.png" in note and "by 6 pixels" in note and part["annotations"] == 5


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(
    "areas, what",
    [((1, 1), "far below"), ((400, 400), "the same everywhere"), ((9e5, 9e5), "above"), ((0, 0), "far below")],
)
def test_area_that_does_not_fit_is_said(source, split, areas, what):
    """Else every object is small, and AP by size means nothing."""
    source.boxes[split] = [
        box(21 + k, source.images[split][0]["id"], [1, 1, *side], area=area)
        for k, (side, area) in enumerate(zip(((20, 22), (50, 40)), areas))
    ]
    config = source.config()
    notes = prepare(config)["splits"][split]["notes"]
    assert len(notes) == 1 and what in notes[0] and "annotation 2" in notes[0]
    assert area_doubt(open_split(config, split), split) == notes[0]


def test_negative_area_is_dropped(source):
    """COCO's evaluation ignores such an object, everything else counts it."""
    source.train.append(box(9, 1, [4, 4, 16, 12], area=-192))
    assert "a.png: annotation 9: area -192 is negative" in reasons(source.train_part())


def test_real_annotations_raise_no_doubt(coco_source):
    for split in SPLITS:
        index = read_index(coco_source / "annotations" / f"instances_{split}.json", coco_source / "images" / split)
        assert check_boxes(index, split) == []


# ---- crowds ----


def test_photos_with_crowds_alone_are_counted(source):
    source.train[0]["iscrowd"] = 1
    part = source.train_part()
    assert part["images"] == 1 and any(
        "1 of 2 boxes (thing: 1)" in note and "not used: 1" in note for note in part["notes"]
    )
    source.train[1]["iscrowd"] = 1
    assert "all 2 of their boxes are crowd regions (iscrowd 1)" in source.refusal()


# ---- records that are written otherwise ----


@pytest.mark.parametrize(
    "field, value, read",
    [
        ("iscrowd", False, 0),
        ("iscrowd", "0", 0),
        ("iscrowd", None, 0),
        ("iscrowd", 0.0, 0),
        ("id", "1", 1),
        ("id", 1.0, 1),
        ("image_id", "1", 1),
        ("image_id", 1.0, 1),
        ("category_id", "1", 1),
        ("bbox", "[4, 4, 20.5, 16]", [4, 4, 20.5, 16]),
        ("bbox", ["4", "4", "20.5", "16"], [4, 4, 20.5, 16]),
        ("area", "200", 200),
        ("area", None, 320),
        ("segmentation", [4, 4, 24, 4, 24, 20], [[4, 4, 24, 4, 24, 20]]),
    ],
)
def test_what_can_mean_one_thing_only_is_read_and_said(source, field, value, read):
    source.train[0][field] = value
    part = source.train_part()
    assert (part["images"], part["annotations"], part["dropped"]) == (2, 2, [])
    assert any(note.startswith(f"instances_train2017.json: {field} ") and "1 times" in note for note in part["notes"])
    written = json.loads((source.root.parent / "data" / "annotations" / "instances_train2017.json").read_text())
    assert written["annotations"][0][field] == read and written["annotations"][1] == source.train[1]


@pytest.mark.parametrize(
    "size", [(-1, -1), (0, 48), (None, None), ("64", "48"), (64.0, 48.0), ("?", "?"), ("gone", "gone")]
)
def test_size_comes_from_the_photo_itself(source, size):
    image = source.images["train2017"][0]
    image.update(width=size[0], height=size[1])
    if size[0] == "gone":
        del image["width"], image["height"]
    part = source.train_part()
    assert part["images"] == 2 and any("width is not written as COCO writes it" in note for note in part["notes"])
    assert open_split(source.config(), "train2017").widths.tolist() == [WIDTH, WIDTH]


def test_size_of_a_turned_photo_is_not_guessed(source):
    """Its boxes may have been drawn in either frame."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(source.root / "images" / "train2017" / "a.png", exif=exif)
    source.images["train2017"][0]["width"] = -1
    assert "no valid width and height (-1 x 48) (its 1 annotations go with it)" in reasons(source.train_part())


@pytest.mark.parametrize(
    "change, why",
    [
        ({"id": "0b1c-77"}, "its id '0b1c-77' is not a whole number of 64 bits"),
        ({"id": None}, "its id None is not a whole number"),
        ({"id": 2**63}, "its id 9223372036854775808 is not a whole number of 64 bits"),
        ({"iscrowd": 3}, "iscrowd 3 is not 0 or 1"),
        ({"area": [9]}, "area [9] is no number"),
        ({"bbox": {"x": 4, "y": 4, "width": 20, "height": 16}}, "is not four finite numbers"),
        ({"image_id": None}, "no image_id"),
    ],
)
def test_every_record_dropped_says_why(source, change, why):
    """The most frequent failure of all: one kind of fault in the whole file."""
    source.boxes["train2017"] = [{**record, **change} for record in source.train]
    for changes in ({}, {"classes": None, "top_k": 1}):
        refusal = source.refusal(**changes)
        assert why in refusal and "2 of the 4 records cannot be used, the first: " in refusal


def test_photo_without_a_usable_id_takes_its_boxes_along(source):
    source.images["train2017"][0]["id"] = source.train[0]["image_id"] = "img-a"
    part = source.train_part()
    assert len(part["dropped"]) == 1 and "its 1 annotations go with it" in reasons(part)


def test_dropped_photo_is_listed_once(source):
    source.train.extend([box(k, 1, [1, 1, 9, 9]) for k in range(100, 120)])
    (source.root / "images" / "train2017" / "a.png").write_bytes(b"")
    source.images["train2017"][0]["width"] = -1
    part = source.train_part()
    assert len(part["dropped"]) == 1 and "(its 21 annotations go with it)" in reasons(part) and part["records"] == 24


# ---- ids and names ----


@pytest.mark.parametrize("ids", [(0, 1, 2), (-1, -2, -3), (2**53 + 1, 2**53 + 3, 2**53 + 5), (2**63 - 1, 2**63 - 2, 1)])
def test_any_whole_number_is_an_id(source, ids):
    for split, kind in ((split, kind) for split in SPLITS for kind in (source.images, source.boxes)):
        for record in kind[split]:
            for name in {"id", "image_id"} & set(record):
                record[name] = ids[record[name] - 1]
    config = source.config()
    assert prepare(config)["splits"]["train2017"]["annotations"] == 2
    assert open_split(config, "train2017").image_ids.tolist() == list(ids[:2])


def test_missing_photo_names_the_near_one(source):
    folder = source.root / "images" / "train2017"
    (folder / "a.png").rename(folder / "A.PNG")
    (folder / "b.png").rename(folder / "caf\u00e9 1.png")
    source.images["train2017"][1]["file_name"] = "train2017/cafe\u0301%201.png"
    refusal = source.refusal()
    assert "None of the 2 photos of train2017" in refusal
    assert "a.png: the photo is missing in images/train2017, which has A.PNG" in refusal
    source.images["train2017"][0]["file_name"] = "A.PNG"
    assert "the photo is missing in images/train2017, which has caf\u00e9 1.png" in reasons(source.train_part())


def test_name_with_a_colon_is_a_name(source):
    folder = source.root / "images" / "train2017"
    (folder / "a.png").rename(folder / "a:b.png")
    source.images["train2017"][0]["file_name"] = "a:b.png"
    assert source.train_part()["images"] == 2


def test_nearest_class_whatever_the_capitals(source):
    source.names = ["zebra crossing", "Person"]
    assert "no class 'PERSON' in the annotations; the nearest is 'Person'" in source.refusal(classes=("PERSON",))


def test_classes_that_differ_in_capitals_are_said(source):
    source.names = ["Person", "person"]
    assert any("'Person', 'person' differ in capitals alone" in note for note in source.train_part()["notes"])


def test_byte_order_mark_and_other_indents(source):
    """PowerShell and Excel write the mark."""
    config = source.config()
    for split in SPLITS:
        file = source.root / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(json.loads(file.read_text()), indent=4), encoding="utf-8-sig")
    assert prepare(config)["splits"]["train2017"]["annotations"] == 2


# ---- photos ----


def test_rotation_mark_that_the_size_does_not_show_is_said(source):
    """A viewer shows such a photo upside down: boxes that were drawn there lie elsewhere in the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 3
    path = source.root / "images" / "train2017" / "a.png"
    Image.open(path).save(path, exif=exif)
    (note,) = source.train_part()["notes"]
    assert "rotation mark" in note and ": 1, the first a.png" in note


def test_heic_under_another_name_is_said(source):
    """Phones write it, and sharing renames it."""
    path = source.root / "images" / "train2017" / "a.png"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400))
    assert "a.png is a HEIC picture or a film, whatever its name says: save it as JPEG" in reasons(source.train_part())
