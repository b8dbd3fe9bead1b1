"""What was asked of the evaluation? The sections of a run's parameters on thresholds, intervals, robustness and figures of others."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from pneumolib.model_params import Fraction, Section

Corruption = Literal[
    "gamma", "contrast", "noise", "blur", "jpeg", "rotation", "downsampling", "zoom", "stretch", "margins"
]
PublishedMetric = Literal[
    "auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy", "f1", "brier"
]  # fmt: skip


class EvaluationParams(Section):
    """How scores become calls and intervals. The threshold is chosen on validation and frozen.

    With `threshold_views` it is chosen on validation as it is and, with the same weight, in so many views changed by the
    run's `augment`, so that it need not move when images come from other settings. `calibration` is fitted there, too.
    `seeds` are further ones that the training is repeated from, to see what is luck.
    """

    threshold_rule: Literal["sensitivity", "youden", "binormal", "fixed"] = "sensitivity"
    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95
    fixed_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    threshold_views: Annotated[int, Field(ge=0, le=64)] = 0
    calibration: Literal["none", "temperature", "platt", "isotonic"] = "platt"
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(default=[])
    resamples: Annotated[int, Field(ge=20, le=20_000)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class RobustnessParams(Section):
    """How many test images are corrupted, and in which ways, to see whether calls hold: `data.corruptions`. 0: none."""

    images: Annotated[int, Field(ge=0)] = 100
    corruptions: Annotated[list[Corruption], Field(min_length=1)] = Field(default=[*get_args(Corruption)])


class PublishedParams(Section):
    """Test figures that others published, shown beside ours by `06_comparison`; they decide nothing.

    `figures` maps a run of this study that repeats a published system, or a name of one that no run repeats, to its
    figures. All are taken to be of the official 624 test images, but those of `other_data`.
    """

    source: str = ""
    other_data: list[str] = Field(default=[])
    figures: dict[str, Annotated[dict[PublishedMetric, Fraction], Field(min_length=1)]] = Field(default={})

    @model_validator(mode="after")
    def _known_systems(self):
        if strangers := [name for name in self.other_data if name not in self.figures]:
            raise ValueError(
                f"other_data: {strangers[0]!r} has no figures; allowed {', '.join(self.figures) or 'none'}"
            )
        return self
