"""The one configuration object: a preset (YAML) plus overrides, validated once and frozen.

Every notebook, and the runner, builds it with :func:`load_config`; nothing else reads presets or parameters.
"""

from __future__ import annotations

import ast
import difflib
import os
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import pydantic
import yaml
from pydantic import Field

from helpers.files import ROOT, UserError, portable
from helpers.threads import wait_as_the_machine_allows

PRESETS = ROOT / "notebooks" / "presets"
# What all runs share in output_dir: no run may have such a name.
SHARED = {"data_sanity", "runs", "profiler", "metrics.csv", "visualizations", "error_analysis", "synthetic_data"}
SHARED |= {"notebooks", "report", "grading.json"}
ArmName = Literal["real", "synthetic", "offline", "context", "on_the_fly"]
Share = Annotated[float, Field(gt=0, le=1)]


class Config(pydantic.BaseModel):
    """All parameters of a run. Field names are the notebooks' parameter names; paths are absolute."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    preset: str = "demo"
    # data
    data_source: Literal["fiftyone", "folder", "demo"] = "demo"
    coco_root: tuple[Path, ...] = Field((), description="COCO folders to take photos from (data_source=folder)")
    data_dir: Path = Field(None, description="the data set's folder; data/<preset> unless set")
    classes: tuple[str, ...] | None = Field(None, description="COCO class names; or use top_k")
    top_k: int | None = Field(None, ge=1, le=80, description="the k most frequent classes by instances")
    max_train_images: int | None = Field(None, ge=1)
    max_val_images: int | None = Field(None, ge=1)
    background_share: float = Field(0.0, ge=0, le=10, description="photos without our classes, for each one with them")
    # model
    model: str = Field("facebook/detr-resnet-50", description="hub name or folder of an object-detection checkpoint")
    class_head: Literal["remap", "reset"] = "remap"
    auxiliary_loss: bool = True
    freeze_stages: int = Field(2, ge=0, le=10, description="frozen stages of the backbone, the stem is the first")
    # training
    epochs: int = Field(25, ge=1)
    batch_size: int = Field(8, ge=1)
    grad_accumulation: int = Field(1, ge=1)
    processes: int = Field(1, ge=1, le=64, description="that train together on this machine, one for each GPU")
    image_size: int = Field(512, ge=32, le=4096, description="longest side in pixels, or the square's side")
    augment: Literal["none", "light", "full", "strong"] = "full"
    lr: float = Field(1e-4, gt=0, le=1)
    lr_head: float | None = Field(None, gt=0, le=1, description="for class rows that start untrained; lr unless set")
    lr_backbone: float = Field(1e-5, ge=0, le=1)
    weight_decay: float = Field(1e-4, ge=0, le=1)
    scheduler: Literal["cosine", "constant", "flat_cosine"] = "cosine"
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    clip_norm: float = Field(0.1, gt=0)
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0 switches averaging off")
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    deterministic: bool = Field(False, description="on a GPU, only kernels that add up in a fixed order")
    num_workers: int = Field(2, ge=0, le=64)
    seed: int = Field(42, ge=0)
    # synthetic data
    copy_paste: Literal["none", "random", "context"] = Field("none", description="where the training loader pastes")
    paste_objects: int = Field(4, ge=1, le=50, description="objects pasted onto a photo, on average")
    arms: tuple[ArmName, ...] = Field(("real", "synthetic", "offline", "on_the_fly"))
    real_share: tuple[Share, ...] = Field((1.0,), description="shares of the training photos")
    arm_seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 1, 2))
    arm_steps: int = Field(1000, ge=1, description="optimizer steps of every arm")
    # where things go, and how a run goes on
    output_dir: Path = Path("artifacts")
    run_name: str = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="the preset unless set")
    resume: str | None = Field(None, coerce_numbers_to_str=True, description="auto, an epoch, a checkpoint folder")
    overwrite: bool = False
    profile: bool = True
    profile_only: bool = False
    checkpoint: str = Field("best", description="of 04 and 05: best, last, start, remapped, epoch_N or a folder")

    @pydantic.field_validator("coco_root", "classes", "arms", "real_share", "arm_seeds", mode="before")
    @classmethod
    def _split_list(cls, value):
        """A command line gives ``person,car``; one folder may be given as a plain string."""
        if isinstance(value, (str, os.PathLike)):
            return tuple(part.strip() for part in str(value).split(",") if part.strip())
        return (value,) if isinstance(value, (int, float)) else value  # papermill reads 0.5 as a number

    @pydantic.field_validator("run_name")
    @classmethod
    def _not_taken(cls, value):
        if value.lower() in SHARED:  # a run's folder is emptied before it begins
            raise ValueError("this name is taken by a folder or file that all runs share")
        return value

    @pydantic.model_validator(mode="before")
    @classmethod
    def _fill_paths(cls, values: dict) -> dict:
        values = {name: value for name, value in values.items() if value is not None}
        preset = values.get("preset", "demo")
        values = {"data_dir": f"data/{preset}", "run_name": preset, "output_dir": "artifacts", **values}
        paths = {name: ROOT / Path(values[name]).expanduser() for name in ("data_dir", "output_dir")}
        return {**values, **paths}  # an absolute path stays as it is

    @pydantic.model_validator(mode="after")
    def _belong_together(self) -> Config:
        if self.data_source == "folder" and not self.coco_root:
            raise ValueError("data_source=folder needs coco_root=<a COCO folder>")
        if (self.classes is None) == (self.top_k is None):
            raise ValueError("give either classes (names) or top_k (a number), one of the two")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes names one class twice: {', '.join(self.classes)}")
        for name in ("arms", "real_share", "arm_seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must hold at least one value, and each once")
        return self

    @property
    def run_dir(self) -> Path:
        return self.output_dir / self.run_name

    @property
    def coco_roots(self) -> list[Path]:
        return [ROOT / path.expanduser() for path in self.coco_root]

    def annotation_file(self, split: str) -> Path:
        """``split`` is ``train2017`` or ``val2017``."""
        return self.data_dir / "annotations" / f"instances_{split}.json"

    def image_dir(self, split: str) -> Path:
        return self.data_dir / "images" / split

    def with_(self, **changes) -> Config:
        """A copy with other values, validated again."""
        return _validated({**self.model_dump(), **changes})

    def as_json(self) -> dict:
        """Plain values; folders are relative to the project or to ``~``: an artifact tells no home folder."""
        return {name: portable(value) for name, value in self.model_dump().items()}

    def describe(self) -> pd.DataFrame:
        """A row per parameter, with a mark where the value is not the preset's."""
        ours = self.as_json()
        theirs = load_config(self.preset, coco_root=ours["coco_root"] or None).as_json()
        changed = ["" if value == theirs[name] else "changed" for name, value in ours.items()]
        return pd.DataFrame({"value": map(as_text, ours.values()), "": changed}, index=list(ours))


def load_config(preset: str = "demo", **overrides) -> Config:
    """The preset's values with ``overrides`` on top; an override of ``None`` means the preset's value.

    Raises UserError for an unknown preset, an unknown name (with the nearest known one) or a value out of range.
    """
    known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if preset not in known:
        raise UserError(f"Unknown preset {preset!r}{_nearest(preset, known)} There are {', '.join(known)}.")
    try:
        values = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())
    except yaml.YAMLError as error:
        raise UserError(f"The preset {preset} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise UserError(f"The preset {preset} holds no list of NAME: VALUE.")
    given = {name: value for name, value in overrides.items() if value is not None}
    for name, other in (("classes", "top_k"), ("top_k", "classes")):
        if name in given:
            values.pop(other, None)
    return _validated({"preset": preset, **values, **given})


def notebook_config(namespace: dict) -> Config:
    """The config of a notebook, from the sources of its parameter cells (``In`` of ``globals()``) and nothing else.

    A parameters cell begins with ``# Parameters``; the last run of each counts, papermill's after the notebook's own.
    What later cells call ``seed`` or ``classes`` is none of it, so the config cell may run again. As the first thing in
    a kernel it also settles, before PyTorch is loaded, how threads wait for each other. Raises UserError for an unknown
    name (papermill only warns, and a misspelt one would be ignored) and for a line that gives no plain value.
    """
    wait_as_the_machine_allows()
    cells: dict[str, str] = {}
    for source in map(str.strip, namespace.get("In", [])):
        if source.startswith("# Parameters"):
            heading = source.splitlines()[0]
            cells.pop(heading, None)  # an edited cell that runs again replaces itself
            cells[heading] = source
    if not cells:
        raise UserError("The parameters cell has not run: run it first, then this one.")
    values: dict = {}
    for heading in sorted(cells, key=lambda heading: heading == "# Parameters"):  # papermill's heading
        values |= _assigned(cells[heading])
    return load_config(**{name: value for name, value in values.items() if value is not None})


def _assigned(source: str) -> dict:
    """The values of a parameters cell; it is read, never run."""
    values = {}
    try:
        for statement in ast.parse(source).body:
            text = ast.unparse(statement)
            (target,) = (statement.target,) if isinstance(statement, ast.AnnAssign) else statement.targets
            _known(ast.unparse(target))
            values[target.id] = ast.literal_eval(statement.value)
    except SyntaxError as error:
        raise UserError(f"The parameters cell is not valid Python in its line {error.lineno}.") from None
    except (AttributeError, ValueError, TypeError):
        raise UserError(f"A parameters cell holds lines NAME = VALUE with plain values, not {text!r}.") from None
    return values


def _known(name: str) -> None:
    if name not in Config.model_fields:
        raise UserError(f"Unknown parameter {name!r}{_nearest(name, Config.model_fields)}")


def _validated(values: dict) -> Config:
    for name in values:
        _known(name)
    try:
        return Config(**values)
    except pydantic.ValidationError as error:
        parts = []
        for problem in error.errors():
            name = ".".join(map(str, problem["loc"]))
            reason = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{name}={problem['input']!r}: {reason[0].lower()}{reason[1:]}" if name else reason)
        raise UserError("; ".join(parts) + ".") from None


def _nearest(word: str, known) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else "."


def as_text(value) -> str:
    """A parameter's value for a reader: a list with commas, nothing for None."""
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)
