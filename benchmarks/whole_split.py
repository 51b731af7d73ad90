"""AP on every photo of a split: ``python benchmarks/whole_split.py --coco FOLDER --preset photos [--run photos]``.

Notebook 01 takes the photos on which one of the asked classes is seen, and notebook 04 measures on those. A detector
also meets photos that show none of them, where everything it finds is wrong; here they count.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import orjson
from machine import header

from helpers.cli import command
from helpers.config import load_config
from helpers.devices import autocast, pick_device
from helpers.download.coco import read_index
from helpers.engine import eval_loader, predict
from helpers.evaluate.checkpoint import load_checkpoint
from helpers.families.loading import quiet
from helpers.index import CocoIndex, open_split
from helpers.metrics import coco_metrics, ground_truth


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coco", required=True, help="the COCO folder whose val2017 is measured on")
    parser.add_argument("--preset", default="photos")
    parser.add_argument("--run", help="the run's name, the preset's unless given")
    parser.add_argument("--checkpoint", default="best")
    options = parser.parse_args(argv)
    quiet()
    cfg = load_config(options.preset, coco_root=options.coco, run_name=options.run)
    print(header("torch", "transformers", "hotcoco"), end="\n\n")
    print(f"| val2017 | photos | objects | AP | AP50 | AP small |\n| --- |{' ---: |' * 5}")
    part = open_split(cfg, "val2017")
    for name, index in (
        ("photos with one of the classes", part),
        ("all photos", every_photo(cfg.coco_roots[0], part.classes)),
    ):
        detector = load_checkpoint(cfg, index.classes, options.checkpoint)
        loader = eval_loader(index, detector.preprocess, cfg.batch_size, 0)
        detector.model.to(pick_device())
        detections, _ = predict(detector, loader, index.category_ids, pick_device(), autocast(cfg.precision))
        stats = coco_metrics(ground_truth(index), detections)["stats"]
        print(
            f"| {name} | {len(index)} | {len(index.labels)} | {stats['mAP']:.4f} | {stats['mAP50']:.4f} | "
            f"{stats['mAP_small']:.4f} |"
        )
    return 0


def every_photo(root: Path, classes: tuple[str, ...]) -> CocoIndex:
    """The split with all of its photos and the objects of ``classes`` alone."""
    coco = orjson.loads((root / "annotations" / "instances_val2017.json").read_bytes())
    named = {category["name"]: category for category in coco["categories"]}
    kept = [named[name] for name in classes]
    ids = {category["id"] for category in kept}
    coco.update(categories=kept, annotations=[record for record in coco["annotations"] if record["category_id"] in ids])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "instances_val2017.json"
        file.write_bytes(orjson.dumps(coco))
        return read_index(file, root / "images" / "val2017")


if __name__ == "__main__":
    command(main)
