"""Parameters of networks and trainings; `params` hands them on with the rest. Imports nothing of ours.

`FAMILIES` is what Keras documents of each backbone family of `keras.applications`: how its ImageNet weights want pixels,
and the smallest side it takes.
"""

import difflib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Preprocess = Literal["caffe", "torch", "tf", "unit", "none"]
Metric = Literal["auroc", "loss", "accuracy", "sensitivity", "specificity"]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _family(preprocess: Preprocess, smallest_px: int, *names: str) -> dict[str, tuple[Preprocess, int]]:
    return dict.fromkeys(names, (preprocess, smallest_px))


# `none`: the family scales inside and wants 0 to 255.
FAMILIES: dict[str, tuple[Preprocess, int]] = (
    _family("none", 32, *(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")))
    | _family("none", 32, *(f"EfficientNetB{n}" for n in range(8)))
    | _family("none", 32, *(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")))
    | _family("none", 32, "MobileNetV3Small", "MobileNetV3Large")
    | _family("torch", 32, "DenseNet121", "DenseNet169", "DenseNet201")
    | _family("caffe", 32, "ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19")
    | _family("tf", 32, "ResNet50V2", "ResNet101V2", "ResNet152V2", "MobileNet", "MobileNetV2")
    | _family("tf", 32, "NASNetMobile", "NASNetLarge")
    | _family("tf", 71, "Xception")
    | _family("tf", 75, "InceptionV3", "InceptionResNetV2")
)


class Section(BaseModel):
    """One section of a parameter file: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DeviceParams(Section):
    """Where a run happens, see `learning.devices`. What cannot be had stops the run; `auto` takes what there is and says so.

    `count` uses the first so many devices, null all of them; `virtual_cpus` splits the CPU into so many devices, which is no
    faster: to try out several without having them.
    """

    backend: Literal["auto", "tensorflow", "jax"] = "auto"
    require: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    count: Annotated[int, Field(ge=1)] | None = None
    virtual_cpus: Annotated[int, Field(ge=2, le=64)] | None = None

    @model_validator(mode="after")
    def _virtual_is_cpu(self):
        if self.virtual_cpus and self.require in ("gpu", "tpu"):
            raise ValueError(
                f"virtual_cpus {self.virtual_cpus} are CPUs, and require: {self.require} asks for another kind"
            )
        return self


class ModelParams(Section):
    """The network, see `learning.models`. `batchnorm_momentum` concerns separable_cnn, which says why it is not
    0.99, and the head of recall_vgg19.

    `transfer` puts a head on a backbone: a family of `keras.applications`, with `weights`, or a `.keras` file with its
    `preprocess`. Paths are relative to the project's root unless absolute.
    """

    name: Literal["separable_cnn", "gray_cnn", "coursework_cnn", "transfer"] = "separable_cnn"
    batchnorm_momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    backbone: Annotated[str, Field(min_length=1)] | None = None
    weights: Annotated[str, Field(min_length=1)] | None = None  # of a family: imagenet, none, or a .weights.h5 file
    preprocess: Preprocess | None = None  # of a .keras file; a family's own is known
    head: Literal["pooled", "recall_vgg19"] = "pooled"  # global average pooling, or the convolutions of recall-vgg19
    head_units: Annotated[int, Field(ge=0, le=8192)] = 0  # of a Dense layer before the output of `pooled`; 0: none
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of `pooled`

    @property
    def from_file(self) -> bool:
        """Whether the backbone is a `.keras` file."""
        return self.backbone is not None and self.backbone.endswith(".keras")

    @model_validator(mode="after")
    def _backbone_fits(self):
        if self.name != "transfer":
            named = [k for k in ("backbone", "weights", "preprocess") if getattr(self, k) is not None]
            named += [k for k in ("head", "head_units", "head_dropout") if self._is_set(k)]
            if named:
                raise ValueError(f"{named[0]} is for name: transfer, received name: {self.name}")
        elif self.head != "pooled" and (self.head_units or self.head_dropout):
            raise ValueError(f"head_units and head_dropout are for head: pooled; {self.head} has its own")
        elif self.backbone is None:
            raise ValueError("name: transfer needs a backbone, such as EfficientNetV2B0 or the path of a .keras file")
        elif self.from_file:
            if self.weights is not None:
                raise ValueError(f"weights {self.weights!r}: {self.backbone} brings its own; delete the line")
            if self.preprocess is None:
                raise ValueError(f"{self.backbone} needs preprocess: caffe, torch, tf, unit or none")
        else:
            self._family_fits()
        return self

    def _is_set(self, key: str) -> bool:
        return getattr(self, key) != type(self).model_fields[key].default

    def _family_fits(self) -> None:
        if self.backbone not in FAMILIES:
            near = difflib.get_close_matches(self.backbone, FAMILIES, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"backbone {self.backbone!r} is neither a path that ends in .keras nor one of: {', '.join(FAMILIES)}."
                + hint
            )
        if self.weights is None:
            raise ValueError(f"{self.backbone} needs weights: imagenet, none, or the path of a .weights.h5 file")
        own = FAMILIES[self.backbone][0]
        if self.preprocess not in (None, own):
            raise ValueError(f"preprocess {self.preprocess!r}: {self.backbone} wants {own!r}; delete the line")


class FeatureParams(Section):
    """What a frozen backbone sees: `views` augmented views of each training image are run through it once and kept.

    The head then trains on the kept features. 0 trains through the backbone instead, new views each epoch.
    """

    views: Annotated[int, Field(ge=0, le=64)] = 4


class FineTuningParams(Section):
    """Which run is continued, and which layers move.

    `unfreeze` is `all`, the number of a backbone's last layers, or the name of the layer to start from. The backbone's
    rate is the training's rate times `backbone_rate_factor` (discriminative rates; Howard and Ruder, ACL 2018).
    """

    continues: Literal["03_baseline_cnn", "04_transfer_learning"] = "04_transfer_learning"
    unfreeze: Annotated[int, Field(ge=1)] | Annotated[str, Field(min_length=1)] = "all"
    freeze_batchnorm: bool = True
    backbone_rate_factor: Annotated[float, Field(gt=0, le=1)] = 1.0


class TrainingParams(Section):
    """How the network is fitted. Stopping and the kept weights follow validation.

    `schedule`, with L = learning_rate: `cosine` falls to zero over all epochs; `exponential_steps` is
    L * decay_rate ** floor(step / decay_every), `exponential_epochs` L * decay_rate ** (epoch / decay_every),
    `step_epochs` the same with floor, epochs counted from 0; `plateau` multiplies by decay_rate after decay_every epochs
    without a better `plateau_metric`. None falls below `lowest_rate`; `warmup_epochs` rise linearly from zero to L first.

    `batch_size` is of a whole step, whatever number of devices share it. `precision: auto` is float32 on a CPU, float16 with
    loss scaling on a GPU, bfloat16 on a TPU. `steps_per_execution` sends so many steps to the device at once, or as many as
    divide an epoch; the loss is looked at between.

    The moving average is one of trained weights: averages of BatchNormalization that move stay as they are.

    An epoch's weights are kept when every metric of `keep_best` beats that of the kept epoch and every floor is
    exceeded. `patience_epochs` without that end the training, but never before a first such epoch; null: never.
    """

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 20
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    optimizer: Literal["adam", "adamw", "rmsprop"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1.0e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0  # adamw only
    schedule: Literal["constant", "cosine", "exponential_steps", "exponential_epochs", "step_epochs", "plateau"] = (
        "cosine"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0  # cosine only
    decay_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    decay_every: Annotated[int, Field(ge=1)] | None = None  # steps or epochs, as the schedule's name says
    plateau_metric: Metric | None = None
    lowest_rate: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    class_weights: Literal["balanced", "none"] = "balanced"
    ema_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no moving average of the weights
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    steps_per_execution: Annotated[int, Field(ge=1, le=1000)] = 1
    keep_best: Annotated[list[Metric], Field(min_length=1)] = ["auroc"]
    floors: dict[Literal["auroc", "accuracy", "sensitivity", "specificity"], Fraction] = {}
    patience_epochs: Annotated[int, Field(ge=1)] | None = 10
    tensorboard: bool = False

    @model_validator(mode="after")
    def _fits_together(self):
        if self.weight_decay and self.optimizer != "adamw":
            raise ValueError(f"weight_decay {self.weight_decay} needs optimizer: adamw, received {self.optimizer}")
        decays = self.schedule not in ("constant", "cosine")
        for key in ("decay_rate", "decay_every"):
            if decays != (getattr(self, key) is not None):
                raise ValueError(f"schedule: {self.schedule} " + (f"needs {key}" if decays else f"has no {key}"))
        if (self.schedule == "plateau") != (self.plateau_metric is not None):
            raise ValueError("plateau_metric and schedule: plateau go together; one stands without the other")
        if self.warmup_epochs and self.schedule != "cosine":
            raise ValueError(f"warmup_epochs {self.warmup_epochs} needs schedule: cosine, received {self.schedule}")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs ({self.epochs})")
        if self.lowest_rate and self.schedule == "constant":
            raise ValueError(f"lowest_rate {self.lowest_rate} has no effect with schedule: constant")
        if self.lowest_rate >= self.learning_rate:
            raise ValueError(f"lowest_rate {self.lowest_rate} must lie below learning_rate {self.learning_rate}")
        return self
