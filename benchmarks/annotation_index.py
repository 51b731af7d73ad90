"""Annotations as large as COCO's train2017, against pycocotools: ``python benchmarks/annotation_index.py``.

The file is made up, seeded: 118,287 photos (empty files, their presence is checked) and 860,001 boxes with polygons of
COCO's length. ``selection`` is what notebook 01 does with it: read and check every record, choose the classes and the
photos; then it writes them and their index. ``opening`` is what the later notebooks do with a file that has its index.
Each has a process of its own, which imports no more than it needs and tells its resident memory; the sides take turns.
Then eight forked workers read the annotations of every photo, as those of a data loader would.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import header

FILE = "annotations/instances_train2017.json"


def write_file(root: Path, images: int, boxes: int, seed: int) -> None:
    """A COCO folder in ``root``; polygons of 46 numbers on average, 1.2 % crowds with run lengths."""
    import numpy as np
    import orjson

    random = np.random.default_rng(seed)
    (root / "images" / "train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    names = [f"{i:012d}.jpg" for i in range(1, images + 1)]
    for name in names:
        (root / "images" / "train2017" / name).touch()
    size = np.exp(random.uniform(np.log(8), np.log(300), (boxes, 2)))
    corner = random.random((boxes, 2)) * np.maximum((640, 480) - size, 0)
    bbox = np.hstack([corner, size]).round(2).tolist()
    area = (0.6 * size.prod(axis=1)).round(4).tolist()
    crowd = (random.random(boxes) < 0.012).tolist()
    owner, category = random.integers(1, images + 1, boxes).tolist(), random.integers(1, 81, boxes).tolist()
    length = (2 * (2 + random.geometric(1 / 21, boxes)).clip(max=300)).tolist()
    pool = random.uniform(10, 640, 100_000).round(2).tolist()
    start = random.integers(0, 99_000, boxes).tolist()
    with (root / FILE).open("wb") as file:
        photo = {
            "license": 3,
            "date_captured": "2013-11-14 11:18:45",
            "height": 480,
            "width": 640,
            "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
        }
        records = (
            orjson.dumps(
                {**photo, "id": i, "file_name": name, "coco_url": f"http://images.cocodataset.org/train2017/{name}"}
            )
            for i, name in enumerate(names, 1)
        )
        file.write(b'{"info": {}, "licenses": [], "images": [' + b",".join(records) + b'], "annotations": [')
        for k in range(boxes):
            points = pool[start[k] : start[k] + length[k]]
            shape = {"counts": [int(value) for value in points], "size": [480, 640]} if crowd[k] else [points]
            file.write(
                b"," * (k > 0)
                + orjson.dumps(
                    {
                        "segmentation": shape,
                        "area": area[k],
                        "iscrowd": int(crowd[k]),
                        "image_id": owner[k],
                        "bbox": bbox[k],
                        "category_id": category[k],
                        "id": k + 1,
                    }
                )
            )
        categories = [{"supercategory": "thing", "id": k, "name": f"class {k}"} for k in range(1, 81)]
        file.write(b'], "categories": ' + orjson.dumps(categories) + b"}")


def resident(pid: int | str = "self", field: str = "VmRSS", source: str = "status") -> float:
    """MB, as the kernel counts them."""
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/{source}").read_text(), re.M)[1]) * 1024 / 1e6


def opening(root: Path):
    from helpers.config import load_config
    from helpers.index import open_split

    def read(index) -> float:
        total = 0.0
        for i in range(len(index)):
            rows = index.rows(i, crowd=False)
            total += float(index.boxes_xyxy[rows].sum()) + float(index.labels[rows].sum())
        return total

    def load():
        index = open_split(load_config("demo", data_dir=root), "train2017")
        assert not index.dropped and len(index.boxes_xyxy) == len(index.bbox)  # boxes_xyxy as CocoDetection has them
        return index, len(index.image_ids), len(index.bbox)

    return load, read


def selection(root: Path):
    from helpers.download.coco import pick_classes, pick_images, read_split
    from helpers.files import write_atomic

    def load():
        whole = read_split([(root / FILE, root / "images" / "train2017")])
        found = len(whole.images), len(whole.texts)
        chosen = pick_images(whole, pick_classes(whole, None, 80), None, 0, "train2017")
        assert not whole.dropped and len(chosen.texts) > 0.99 * found[1]  # of a photo with a crowd alone: none
        return chosen, *found

    def write(chosen) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_atomic(Path(folder) / "chosen.json", chosen.document())
            chosen.texts.clear()
            chosen.index(root).save(Path(folder) / "chosen.json")

    return load, write


def pycocotools(root: Path):
    from pycocotools.coco import COCO

    def read(coco) -> float:
        return sum(
            sum(record["bbox"]) + record["category_id"]
            for key in coco.getImgIds()
            for record in coco.loadAnns(coco.getAnnIds(imgIds=[key], iscrowd=False))
        )

    def load():
        coco = COCO(str(root / FILE))
        return coco, len(coco.imgs), len(coco.anns)

    return load, read


def alone(side: str, root: Path, workers: int) -> dict:
    """One side in this process: seconds, MB before, after and at most, and of workers that read everything (PSS)."""
    load, read = {"opening": opening, "selection": selection, "pycocotools": pycocotools}[side](root)
    before = resident()
    begin, processor = time.perf_counter(), time.process_time()
    opened, images, boxes = load()
    found = {
        "seconds": time.perf_counter() - begin,
        "processor": time.process_time() - processor,
        "images": images,
        "boxes": boxes,
        "before": before,
        "after": resident(),
        "peak": resident(field="VmHWM"),
    }
    if side == "selection":
        read(opened)
        found |= {"written": time.perf_counter() - begin, "peak": resident(field="VmHWM")}
    elif workers:
        read_end, write_end = os.pipe()
        go_end, hold_end = os.pipe()
        pids = [os.fork() for _ in range(workers) if os.getpid() == PARENT]
        if os.getpid() != PARENT:
            os.close(hold_end)
            read(opened)
            os.write(write_end, b".")
            os.read(go_end, 1)  # returns when the parent closes its end
            os._exit(0)
        for _ in range(workers):
            os.read(read_end, 1)
        found["workers"] = sum(resident(pid, "Pss", "smaps_rollup") for pid in pids)
        found["all"] = found["workers"] + resident("self", "Pss", "smaps_rollup")
        os.close(hold_end)
        for pid in pids:
            os.waitpid(pid, 0)
    return found


PARENT = os.getpid()
SIDES = ("selection", "opening", "pycocotools")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("images", 118_287), ("boxes", 860_001), ("rounds", 1), ("workers", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--alone", nargs=2, metavar=("SIDE", "DIR"), help="one side once in this process; prints what it took"
    )
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(alone(arguments.alone[0], Path(arguments.alone[1]), arguments.workers)))
        return

    def measured(side: str, folder: str, workers: int) -> dict:
        command = [sys.executable, __file__, "--alone", side, folder, "--workers", str(workers)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])

    print(header("numpy", "msgspec", "orjson", "pycocotools"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        write_file(Path(folder), arguments.images, arguments.boxes, arguments.seed)
        code = f"from helpers.download.coco import read_index; f = {str(file)!r}; read_index(f, {folder!r} + "
        subprocess.run([sys.executable, "-c", code + "'/images/train2017').save(f)"], check=True)
        print(f"{arguments.images:,} photos, {arguments.boxes:,} boxes, {file.stat().st_size / 1e6:.0f} MB")
        rounds = [{side: measured(side, folder, 0) for side in SIDES} for _ in range(arguments.rounds)]
        for side in SIDES:
            times = sorted(turn[side]["seconds"] for turn in rounds)
            # pycocotools' workers have a copy each, 14 GB for eight
            last = measured(side, folder, arguments.workers) if side == "opening" else rounds[-1][side]
            assert last["images"] == arguments.images and last["boxes"] == arguments.boxes
            text = f"{side:12} {times[len(times) // 2]:6.2f} s ({times[0]:.2f} to {times[-1]:.2f}); resident "
            text += f"{last['before']:.0f} MB before, {last['after']:.0f} after, {last['peak']:.0f} at most"
            if "written" in last:
                written = sorted(turn[side]["written"] for turn in rounds)
                text += f"; {written[len(written) // 2]:.2f} s with everything written"
            if "workers" in last:
                text += f"; {arguments.workers} workers {last['workers']:.0f} MB together"
                text += f", with their parent {last['all']:.0f}"
            print(text)
        for side, aim in (("selection", "at most 1000 MB"), ("opening", "less than 400 MB")):
            for clock, label in (
                ("seconds", "time"),
                ("processor", "processor time, which a busy machine changes less,"),
            ):
                ratios = sorted(turn["pycocotools"][clock] / turn[side][clock] for turn in rounds)
                print(
                    f"{side}: of {label} pycocotools takes {ratios[len(ratios) // 2]:.1f} times as much "
                    f"({ratios[0]:.1f} to {ratios[-1]:.1f})"
                )
            print(f"{side}: the aim is 3 times, and {aim}")


if __name__ == "__main__":
    main()
