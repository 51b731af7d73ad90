"""What the deliverables of notebook 06 must hold."""

from pathlib import Path

from helpers.config import Config
from helpers.grading.readers import decodable, must, neighbour, read_csv, read_json


def synthetic_set(cfg: Config, path: Path) -> None:
    manifest = read_json(path / "manifest.json")
    must(manifest.get("kind") == "copy-paste", "manifest.json is of another data set")
    photos = sorted((path / "images" / "train2017").glob("*.jpg"))
    counted = manifest.get("photos")
    must(len(photos) == counted, f"manifest.json counts {counted} photos, there are {len(photos)}")
    must(bool(photos), "it holds no photo")
    decodable(photos[0])
    listed = len(read_json(path / "annotations" / "instances_train2017.json").get("images", ()))
    must(listed == counted, f"manifest.json counts {counted} photos, the annotations {listed}")


def arms(cfg: Config, path: Path) -> None:
    table = read_csv(path, "arm", "run", "share", "seed", finite=["steps", "photos", "mAP", "mAP50"])
    must(table["steps"].nunique() == table["photos"].nunique() == 1, "one arm was trained for longer than another")
    must(table["mAP"].between(0, 1).all(), "mAP is not a fraction")
    metrics = neighbour(lambda: read_csv(cfg.output_dir / "metrics.csv", "run", "checkpoint", "mAP"))
    if metrics is None:
        return
    last = metrics[metrics["checkpoint"] == "last"].set_index("run")["mAP"].to_dict()
    for run, said in zip(table["run"], table["mAP"]):
        must(run not in last or abs(last[run] - said) < 1e-6, f"mAP of {run} is another one in metrics.csv")
