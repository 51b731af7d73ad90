"""The experiment: every arm trained by the ordinary loop, and what the arms are apart on the same validation photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import orjson
import pandas as pd

from helpers.config import Config
from helpers.evaluate.bootstrap import class_ap, draw_weights, mean_of_classes, replicates_for
from helpers.evaluate.checkpoint import evaluate_checkpoint
from helpers.evaluate.comparison import SIZES, STANDARD_ERRORS
from helpers.evaluate.matching import match
from helpers.files import UserError, read_table, write_atomic
from helpers.index import open_split
from helpers.metrics import coco_metrics, ground_truth, load_detections
from helpers.synthetic_data.arms import arm_config, plan, prepare_arm
from helpers.synthetic_data.copy_paste import paste_step
from helpers.train.training import train

HARMLESS = {"resume", "overwrite", "num_workers"}  # parameters that change nothing of what is learnt


def run_arms(cfg: Config) -> Iterator[pd.DataFrame]:
    """Train and evaluate every arm that is not done yet; after each, the table so far, which is arms.csv.

    A row: ``arm``, ``share`` of the real photos, ``seed``, ``run``, ``steps``, ``photos`` seen, ``different_photos``,
    ``real_photos`` that they come from, COCO's twelve numbers of the last checkpoint, ``minutes`` of training.
    """
    rows = []
    for share, seed, arm in plan(cfg):
        rows.append({"arm": arm, "share": share, "seed": seed, **run_arm(cfg, share, seed, arm)})
        table = pd.DataFrame(rows)
        write_atomic(cfg.output_dir / "synthetic_data" / "arms.csv", table.to_csv(index=False))
        yield table


def run_arm(cfg: Config, share: float, seed: int, arm: str) -> dict:
    """The run of one arm, or what is left of it; with ``resume`` one that is done is only read."""
    data, ours = prepare_arm(cfg, share, seed, arm), arm_config(cfg, share, seed, arm)
    if not (cfg.resume and _is_done(ours)):
        train(ours, paste=paste_step(ours))
        evaluate_checkpoint(ours, open_split(cfg, "val2017"), "last")
    epochs = read_table(ours.run_dir / "epochs.csv")
    detections = load_detections(ours.run_dir / "detections_val2017_last.json")
    return {
        "run": ours.run_name,
        "steps": int(epochs["step"].iloc[-1]),
        "photos": data["photos"] * len(epochs),
        "different_photos": data["different_photos"],
        "real_photos": data["real_photos"],
        **coco_metrics(ground_truth(open_split(cfg, "val2017")), detections)["stats"],
        "minutes": epochs["seconds"].sum() / 60,
    }


def _is_done(ours: Config) -> bool:
    """Whether the run of an arm is trained to its end and evaluated. UserError: under its name another one was made."""
    if not (ours.run_dir / "config.json").exists():
        return False
    before = orjson.loads((ours.run_dir / "config.json").read_bytes())
    changed = [name for name, value in ours.as_json().items() if before.get(name) != value and name not in HARMLESS]
    if changed and not ours.overwrite:
        raise UserError(
            f"The run {ours.run_name} was made with another {', '.join(changed)}: choose another run_name, or "
            "overwrite=True without resume."
        )
    return not changed and (ours.run_dir / "detections_val2017_last.json").exists()


def start_ap(cfg: Config) -> float | None:
    """mAP of the untouched checkpoint, from metrics.csv; None where 04 has not evaluated it."""
    if not (cfg.output_dir / "metrics.csv").is_file():
        return None
    table = read_table(cfg.output_dir / "metrics.csv")
    rows = table[(table["run"] == cfg.run_name) & (table["checkpoint"] == "start")]
    return float(rows["mAP"].iloc[0]) if len(rows) else None


def scores(gt: dict, detections: Sequence[dict], seed: int = 0) -> dict[str, np.ndarray]:
    """AP [1 + R] by group of objects (``all``, sizes, classes): as measured, then of R bootstrap draws of the photos.

    NaN where there is no object. The same seed draws the same photos, so that runs can be paired.
    """
    photos = len(gt["images"])
    weights = draw_weights(photos, replicates_for(photos), seed)
    weights = np.concatenate([np.ones_like(weights[:1]), weights])  # the first row is what was measured
    found = {}
    for group, areas in {"all": (-np.inf, np.inf), **SIZES}.items():
        ap = class_ap(match(gt, detections, areas), weights).mean(axis=2)  # [1 + R, K]
        found[group] = mean_of_classes(ap)
        if group == "all":
            found |= {category["name"]: ap[:, k] for k, category in enumerate(gt["categories"])}
    return found


def effects(cfg: Config, table: pd.DataFrame) -> pd.DataFrame:
    """What each arm is apart from ``real`` at the same share and seed; a row per arm, share and group of objects.

    ``value`` is the mean difference of AP over the seeds; ``low`` and ``high`` bound it at 95 %: the paired bootstrap
    says how much other photos would change, and where there are several seeds, their spread is added.
    """
    gt = ground_truth(open_split(cfg, "val2017"))
    files = {row.run: cfg.output_dir / row.run / "detections_val2017_last.json" for row in table.itertuples()}
    found = {run: scores(gt, load_detections(file), cfg.seed) for run, file in files.items()}
    rows, real = [], table["arm"] == "real"
    pairs_of_runs = table[~real].merge(table[real], on=["share", "seed"], suffixes=("", "_base"))
    for (arm, share), part in pairs_of_runs.groupby(["arm", "share"], sort=False):
        pairs = [(found[base], found[run]) for base, run in zip(part["run_base"], part["run"])]
        rows += [{"arm": arm, "share": share, "group": group, **_effect(pairs, group)} for group in pairs[0][0]]
    return pd.DataFrame(rows, columns=["arm", "share", "group", "base", "value", "low", "high", "seeds", "spread"])


def _effect(pairs: list[tuple[dict, dict]], group: str) -> dict:
    """``spread``: standard deviation over the seeds; NaN of one seed."""
    apart = np.stack([b[group] - a[group] for a, b in pairs])  # [seeds, 1 + R]
    each, draws = apart[:, 0], apart[:, 1:].mean(axis=0)
    value, spread = float(each.mean()), float(each.std(ddof=1)) if len(each) > 1 else np.nan
    seeds = np.nan_to_num(spread) / np.sqrt(len(each))
    reach = STANDARD_ERRORS * float(np.hypot(np.nanstd(draws, ddof=1), seeds)) if np.isfinite(value) else np.nan
    base = float(np.mean([a[group][0] for a, _ in pairs]))
    bounds = {"low": value - reach, "high": value + reach}
    return {"base": base, "value": value, **bounds, "seeds": len(each), "spread": spread}
