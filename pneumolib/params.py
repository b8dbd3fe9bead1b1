"""What was asked? One parameter file becomes one frozen, checked object. Sections of networks and trainings are in
`model_params`, those of sources in `data_params`, those of what comes after in `evaluation_params`.

A study is a folder `params/<study>/`: `study.yaml` holds what all runs share (data, split, image, seed), and each
`NN_<notebook>[-<variant>].yaml` adds what one run needs. Units stand in the names: `size_px`, `rotation_deg`.
Types are strict: a number in quotes is refused, because PyYAML reads `1e-4` as text where `1.0e-4` was meant.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from pneumolib.data_params import DataParams, ExternalParams
from pneumolib.evaluation_params import EvaluationParams, PublishedParams, RobustnessParams
from pneumolib.model_params import (
    DeviceParams,
    FeatureParams,
    FineTuningParams,
    Fraction,
    ModelParams,
    Section,
    TrainingParams,
)

SMOKE = "-smoke"  # ends the name of a study that is run small, see `smoke`


class ParamsError(ValueError):
    """A parameter file that cannot be used; the message names file, key, what was received and what is allowed."""


class SplitParams(Section):
    """How validation is cut from the training pool: whole groups (patients), class ratio kept.

    `as_published` takes the source's own val split instead, and refuses it when a patient stands on both sides.
    """

    validation: Literal["cut", "as_published"] = "cut"
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    seed: Annotated[int, Field(ge=0)] = 1
    ratio_tolerance_points: Annotated[float, Field(gt=0, le=50)] = 2.0


class ImageParams(Section):
    """What a network sees of one file: a square uint8 image, `size_px` high and wide.

    In this order: `reencode_quality` saves every file anew as JPEG of one quality; `crop_border` cuts that fraction of
    width and height off each side; `fit` makes a square; after the resize `equalize` spreads the grey values.

    `memory_gb` (1 GB = 10^9 bytes) decides where the pixels lie, not what they are: a part (train, val or test) whose
    pixels take more is kept as TFRecord shards and read in flat memory; 0 keeps every part so. A fixed number and not the
    machine's free memory, because the order of training images differs and a result must not depend on the machine.
    """

    size_px: Annotated[int, Field(ge=32, le=1024)] = 180  # five poolings of the baseline need 32
    channels: Literal[1, 3] = 1
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    reencode_quality: Annotated[int, Field(ge=1, le=95)] | None = None  # Pillow advises against more than 95
    crop_border: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    equalize: Literal["none", "hist", "clahe"] = "none"
    # At most this share of a tile's pixels may have one grey value before the rest is spread over all others.
    clahe_clip_limit: Annotated[float, Field(gt=0, le=1)] = 0.02
    clahe_tiles: Annotated[int, Field(ge=2, le=32)] = 8  # along each side
    memory_gb: Annotated[float, Field(ge=0)] = 2.0  # 61,000 grey images of 180 px; training takes three times as much

    def seen(self) -> dict[str, Any]:
        """What decides the pixels: everything but where they lie."""
        return self.model_dump(exclude={"memory_gb"})

    @model_validator(mode="after")
    def _clip_limit_of_a_pixel(self):
        tile_px = (self.size_px // self.clahe_tiles) ** 2
        if self.equalize == "clahe" and self.clahe_clip_limit * tile_px < 1:
            raise ValueError(
                f"clahe_clip_limit {self.clahe_clip_limit} is less than one pixel of a tile: {self.clahe_tiles} tiles "
                f"along {self.size_px} px have {tile_px} pixels each. Use fewer tiles, or at least {1 / tile_px:.3f}"
            )
        return self


class AugmentParams(Section):
    """Random changes of training images. A factor f means a value drawn log-uniformly from [1/f, f].

    `stretch_factor` is of width against height; `margin_fraction` the widest strip that may go black at each side;
    `sharpness` s mixes an image with its 3 x 3 binomial blur, from fully blurred to as much sharpened when s is 1;
    `noise_sd` is the largest standard deviation, in grey values of 255, of noise that is added.
    """

    flip: bool = False
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    shear_deg: Annotated[float, Field(ge=0, le=45)] = 0.0
    shift_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    zoom_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    stretch_factor: Annotated[float, Field(ge=1, le=3)] = 1.0
    margin_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    gamma_factor: Annotated[float, Field(ge=1, le=5)] = 1.0
    contrast_factor: Annotated[float, Field(ge=1, le=5)] = 1.0
    brightness_fraction: Fraction = 0.0
    sharpness: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise_sd: Annotated[float, Field(ge=0, le=64)] = 0.0


class EqualisationParams(Section):
    """What the page on equalisation tries: CLAHE settings on one image, and a short training of each kind."""

    clip_limits: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=6)] = Field(
        default=[0.02, 0.05, 0.15]
    )
    tiles: Annotated[list[Annotated[int, Field(ge=2, le=32)]], Field(min_length=1, max_length=6)] = Field(
        default=[2, 4, 8]
    )


class AuditParams(Section):
    """How the audit asks for shortcuts, and the mitigations whose effect it measures."""

    folds: Annotated[int, Field(ge=2, le=20)] = 5
    border_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.125  # of each side, what the border-only classifier sees
    mitigation_images: Annotated[int, Field(ge=24)] = (
        1000  # at most so many files are prepared anew for each mitigation
    )
    mitigation_quality: Annotated[int, Field(ge=1, le=95)] = 75
    mitigation_crop_border: Annotated[float, Field(gt=0, le=0.4)] = 0.05


class RunParams(Section):
    """Everything that decides one run."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] = "demo"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    devices: DeviceParams = DeviceParams()
    data: DataParams = DataParams()
    split: SplitParams = SplitParams()
    image: ImageParams = ImageParams()
    augment: AugmentParams = AugmentParams()
    model: ModelParams = ModelParams()
    features: FeatureParams = FeatureParams()
    fine_tuning: FineTuningParams = FineTuningParams()
    training: TrainingParams = TrainingParams()
    equalisation: EqualisationParams = EqualisationParams()
    audit: AuditParams = AuditParams()
    evaluation: EvaluationParams = EvaluationParams()
    robustness: RobustnessParams = RobustnessParams()
    published: PublishedParams = PublishedParams()
    external: ExternalParams = ExternalParams()

    @model_validator(mode="after")
    def _other_seeds(self):
        seeds = [self.seed, *self.evaluation.seeds]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"evaluation.seeds are further ones: each once, and not the run's own seed {self.seed}")
        return self


def project_root() -> Path:
    """The folder that `params/`, `data/`, `runs/` and `reports/` lie in.

    `PNEUMOLIB_ROOT` when set; else the nearest folder from here upwards that holds `notebooks/` and `params/`, so
    that a notebook finds it from `notebooks/` as from the root; else the working directory.
    """
    if named := os.environ.get("PNEUMOLIB_ROOT"):
        return Path(named).resolve()
    here = Path.cwd()
    found = (p for p in [here, *here.parents] if (p / "notebooks").is_dir() and (p / "params").is_dir())
    return next(found, here)


def in_root(path: str | Path) -> Path:
    """`path`, taken from the project's root when relative."""
    return Path(os.path.normpath(project_root() / path))


def params_folder(study: str) -> Path:
    """Where a study's parameter files lie; those of a study run small are the study's own."""
    return in_root(f"params/{study.removesuffix(SMOKE)}")


def report_command(study: str) -> str:
    """What a person types to run a study: `make report STUDY=coursework SMOKE=1`."""
    return f"make report STUDY={study.removesuffix(SMOKE)}" + (" SMOKE=1" if study.endswith(SMOKE) else "")


def notebook_of(run: str) -> str:
    """The notebook's name that a run's name starts with: `05_fine_tuning-vgg19` runs `05_fine_tuning`."""
    match = re.fullmatch(r"(\d\d_[A-Za-z0-9_]+)(?:-[\w.-]+)?", run)
    if not match:
        raise ParamsError(f"{run}: a run is named NN_<notebook>[-<variant>], such as 03_baseline_cnn-wide")
    return match[1]


def check(values: dict[str, Any], origin: dict[str, str] | str = "parameters cell") -> RunParams:
    """Turn plain dicts into `RunParams`, or raise one `ParamsError` with a line for each fault.

    Args:
        values: top-level keys to values, as YAML or a notebook's parameters cell gives them.
        origin: where they came from, for the message: one name, or one for each top-level key.
    """
    try:
        return RunParams.model_validate(values)
    except ValidationError as fault:
        where = origin if isinstance(origin, dict) else dict.fromkeys(values, origin)
        lines = [_explain(error, where) for error in fault.errors()]
        raise ParamsError("\n".join(lines)) from None


def _explain(error: dict, origin: dict[str, str]) -> str:
    """One line: file: key: what was wrong, received, allowed."""
    location = [str(part) for part in error["loc"]]
    place = origin.get(location[0] if location else "", "parameters")  # some rules are of several sections
    key, received = ".".join(location), error["input"]
    if error["type"] == "extra_forbidden":
        allowed = list(_section_at(location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1], allowed, n=1, cutoff=0.5) or _homes_of(location[-1])
        hint = (
            f" Did you mean {'.'.join([*location[:-1], near[0]]) if near[0] in allowed else near[0]}?" if near else ""
        )
        return f"{place}: {key}: unknown key (received {received!r}).{hint} Allowed here: {', '.join(allowed)}"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(received, BaseModel | dict) and error["type"] == "value_error":
        return f"{place}: {key}: {message}" if key else f"{place}: {message}"
    hint = ""
    if isinstance(received, str) and error["type"] in ("float_type", "int_type") and _is_number(received):
        hint = f" It is a number read as text: take the quotes away, or write {_yaml_number(received, error['type'])}."
    return f"{place}: {key}: {message} (received {received!r}).{hint}"


def _section_at(location: list[str]) -> type[BaseModel]:
    section = RunParams
    for part in location:
        section = section.model_fields[part].annotation
    return section


def _homes_of(key: str) -> list[str]:
    """Full names, such as `image.size_px`, of a key that stands in the wrong section or is nearly right there."""
    full = {
        f"{section}.{name}": name
        for section, field in RunParams.model_fields.items()
        if get_origin(field.annotation) is None
        and isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        for name in field.annotation.model_fields
    }
    near = difflib.get_close_matches(key, full.values(), n=1, cutoff=0.7)
    return [name for name, last in full.items() if near and last == near[0]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _yaml_number(text: str, wanted: str) -> str:
    """`1e-4` as YAML 1.1 wants it: `1.0e-4`; a whole number without exponent where one is wanted."""
    if wanted == "int_type":
        return f"{float(text):.0f}"
    mantissa, e, exponent = text.strip().lower().partition("e")
    if not e:
        return mantissa
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent if exponent[0] in '+-' else '+' + exponent}"
