"""What the assignment asks for, what is there, and whether it holds: ``artifacts/grading.json`` and ``make grade``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from helpers import cli
from helpers.config import Config
from helpers.files import ROOT, UserError, write_json
from helpers.grading import checks
from helpers.grading.readers import Invalid, all_decode, decodable
from helpers.synthetic_data.arms import synthetic_dir


class Deliverable(NamedTuple):
    name: str
    path: Path
    made_by: str  # a notebook's number, or "report"
    check: Callable[[Config, Path], None]  # raises readers.Invalid


def deliverables(cfg: Config) -> list[Deliverable]:
    """All deliverables of a config's run, in the order in which the notebooks make them."""
    run, out = cfg.run_dir, cfg.output_dir
    errors = out / "error_analysis"
    image = lambda _, path: decodable(path)
    rows = [
        Deliverable("data set", cfg.data_dir, "01", checks.dataset),
        Deliverable("data check", out / "data_sanity", "02", checks.data_sanity),
        Deliverable("configuration", run / "config.json", "03", checks.config_json),
        Deliverable("environment", run / "environment.json", "03", checks.environment_json),
        Deliverable("losses", run / "losses.csv", "03", checks.losses),
        Deliverable("epochs", run / "epochs.csv", "03", checks.epochs),
        Deliverable("loss curves", run / "loss_curves.png", "03", image),
        Deliverable("best checkpoint", run / "checkpoint_best", "03", checks.checkpoint),
        Deliverable("last checkpoint", run / "checkpoint_last", "03", checks.checkpoint),
        Deliverable("TensorBoard events", out / "runs" / cfg.run_name, "03", checks.tensorboard),
        Deliverable("profile", out / "profiler" / cfg.run_name, "03", checks.profiler),
        Deliverable("detections before training", run / "detections_val2017_start.json", "04", checks.detections),
        Deliverable("detections", run / "detections_val2017.json", "04", checks.detections),
        Deliverable("metrics", out / "metrics.csv", "04", checks.metrics_csv),
        Deliverable("metrics of the run", run / "metrics.json", "04", checks.metrics_json),
        Deliverable("metrics by class", run / "per_class.csv", "04", checks.per_class),
        Deliverable("precision and recall", run / "pr_curves.png", "04", image),
        Deliverable("visualizations", out / "visualizations", "04", lambda _, path: all_decode(path)),
        Deliverable("error summary", errors / "tide.json", "05", checks.tide),
        Deliverable("error table", errors / "errors.csv", "05", checks.errors_csv),
        Deliverable("error pictures", errors, "05", checks.error_pictures),
        Deliverable("synthetic data set", synthetic_dir(cfg), "06", checks.synthetic_set),
        Deliverable("arms of the experiment", out / "synthetic_data" / "arms.csv", "06", checks.arms),
        Deliverable("effects of the arms", out / "synthetic_data" / "effects.png", "06", image),
        Deliverable("executed notebooks", out / "notebooks", "", checks.executed),
        Deliverable("report", out / "report", "report", checks.report),
    ]
    return [row for row in rows if cfg.profile or cfg.profile_only or row.name != "profile"]


def check_all(cfg: Config) -> list[dict]:
    """A row per deliverable: name, path, exists, valid, reason (empty when valid), command."""
    rows = []
    for name, path, made_by, check in deliverables(cfg):
        exists = path.exists()
        reason = _reason(check, cfg, path) if exists else f"{path.name} is missing"
        base = ROOT if path.is_relative_to(ROOT) else cfg.output_dir.parent  # no home folder in the file
        shown = str(path.relative_to(base)) if path.is_relative_to(base) else path.name
        only = f' ARGS="--only {made_by}"' if made_by.isdigit() else ""
        command = f"make {'report' if made_by == 'report' else 'run'} PRESET={cfg.preset}{only}"
        row = {"name": name, "path": shown, "exists": exists, "valid": not reason, "reason": reason}
        rows.append({**row, "command": command})
    return rows


def grade(cfg: Config) -> list[dict]:
    """:func:`check_all`, written to grading.json as well."""
    rows = check_all(cfg)
    counts = {"valid": sum(row["valid"] for row in rows), "of": len(rows)}
    document = {"run": cfg.run_name, "preset": cfg.preset, "deliverables": rows, **counts}
    write_json(cfg.output_dir / "grading.json", document)
    return rows


def _reason(check: Callable[[Config, Path], None], cfg: Config, path: Path) -> str:
    try:
        check(cfg, path)
        return ""
    except (Invalid, UserError) as error:
        return str(error)
    except Exception as error:  # whatever a damaged file does to its reader, the other deliverables are still graded
        return f"it cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"


def as_text(rows: list[dict]) -> str:
    """The grading as a table for a terminal."""
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"{'ok     ' if row['valid'] else 'INVALID' if row['exists'] else 'MISSING'}  {row['name']:<{width}}  "
        + (row["path"] if row["valid"] else f"{row['reason']}; {row['command']}")
        for row in rows
    ]
    return "\n".join([*lines, f"{sum(row['valid'] for row in rows)} of {len(rows)} deliverables hold."])


def main(argv: Sequence[str] | None = None) -> int:
    """The command ``python -m helpers.grading``; status 1 when something is missing or invalid."""
    rows = grade(cli.config_of("helpers.grading", "Check every deliverable of a run.", argv))
    print(as_text(rows))
    return 0 if all(row["valid"] for row in rows) else 1
