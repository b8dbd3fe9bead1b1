"""What was asked? The parameters of a run: one frozen, checked object. `project` reads them from a study's files.

Names carry units: `size_px`, `rotation_deg`. Types are strict: text is no number, and an unknown key is refused.

`FAMILIES` holds what Keras documents of each backbone family of `keras.applications`, and the same of EfficientNet-Lite: the
preprocessing of its ImageNet weights and the smallest side in pixels.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pneumolib.errors import ParamsError

Preprocess = Literal["caffe", "torch", "tf", "lite", "unit", "none"]
Metric = Literal["auroc", "loss", "accuracy", "sensitivity", "specificity"]
Schedule = Literal["constant", "cosine", "exponential_steps", "exponential_epochs", "step_epochs", "plateau"]
Fraction = Annotated[float, Field(ge=0, le=1)]
ClipLimit = Annotated[float, Field(gt=0, le=1)]
Tiles = Annotated[int, Field(ge=2, le=32)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Range = Annotated[list[Annotated[float, Field(ge=0.05, le=20)]], Field(min_length=2, max_length=2)]  # low, high
# Text, whatever YAML made of `1.0` and `yes`.
Label = Annotated[str, BeforeValidator(lambda label: "" if label is None else str(label))]


# Preprocessing and smallest side in pixels. `none`: the family scales inside and wants 0 to 255.
FAMILIES: dict[str, tuple[Preprocess, int]] = (
    dict.fromkeys([f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")], ("none", 32))
    | dict.fromkeys([f"EfficientNetB{n}" for n in range(8)], ("none", 32))
    | dict.fromkeys([f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L")], ("none", 32))
    | dict.fromkeys(["MobileNetV3Small", "MobileNetV3Large"], ("none", 32))
    | {f"EfficientNetLite{n}": ("lite", 32) for n in range(3)}
    | dict.fromkeys(["DenseNet121", "DenseNet169", "DenseNet201"], ("torch", 32))
    | dict.fromkeys(["ResNet50", "ResNet101", "ResNet152", "VGG16", "VGG19"], ("caffe", 32))
    | dict.fromkeys(["ResNet50V2", "ResNet101V2", "ResNet152V2", "MobileNet", "MobileNetV2"], ("tf", 32))
    | dict.fromkeys(["NASNetMobile", "NASNetLarge"], ("tf", 32))
    | {"Xception": ("tf", 71), "InceptionV3": ("tf", 75), "InceptionResNetV2": ("tf", 75)}
)
Corruption = Literal[
    "gamma", "contrast", "noise", "blur", "jpeg", "rotation", "downsampling", "zoom", "stretch", "margins"
]
PublishedMetric = Literal[
    "auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "accuracy", "balanced_accuracy", "f1", "brier"
]


class Section(BaseModel):
    """One section of a parameter file: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="after")
    def _fits_together(self):
        if fault := next(self._faults(), None):
            raise ValueError(fault)
        return self

    def _faults(self) -> Iterator[str]:
        """What does not go together in values that are right by themselves. Each is looked for after those before it."""
        yield from ()


class DeviceParams(Section):
    """Where a run happens, see `learning.devices`. What cannot be had stops the run; `auto` takes what there is and says so.

    `count` uses the first so many devices, null all of them; `virtual_cpus` splits the CPU into so many devices, which is no
    faster: to try out several without having them.
    """

    backend: Literal["auto", "tensorflow", "jax"] = "auto"
    require: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    count: Annotated[int, Field(ge=1)] | None = None
    virtual_cpus: Annotated[int, Field(ge=2, le=64)] | None = None

    def _faults(self) -> Iterator[str]:
        if self.virtual_cpus and self.require in ("gpu", "tpu"):
            yield f"virtual_cpus asks for CPUs, and require: {self.require} for another kind"


OF_ALL_NETWORKS = ("name", "batchnorm_momentum")  # of `model`; its other keys are for `name: transfer`


class ModelParams(Section):
    """The network, see `learning.models`. `batchnorm_momentum` concerns separable_cnn, which says why it is not
    0.99, and the head of recall_vgg19.

    `transfer` puts a head on a backbone: a family of `keras.applications` or EfficientNetLite0 to 2, with `weights`, or a
    `.keras` file with its `preprocess`. Paths are relative to the project's root unless absolute. ImageNet weights of a family
    of Keras are `imagenet`, which downloads them; those of EfficientNetLite are `package`, which needs no network.
    """

    name: Literal["separable_cnn", "gray_cnn", "coursework_cnn", "transfer"] = "separable_cnn"
    batchnorm_momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9
    backbone: Annotated[str, Field(min_length=1)] | None = None
    weights: Annotated[str, Field(min_length=1)] | None = None  # imagenet | package, none, or a .weights.h5 file
    preprocess: Preprocess | None = None  # of a .keras file; a family's own is known
    head: Literal["pooled", "recall_vgg19"] = "pooled"  # global average pooling, or the convolutions of recall-vgg19
    head_units: Annotated[int, Field(ge=0, le=8192)] = 0  # of a Dense layer before the output of `pooled`; 0: none
    head_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of `pooled`

    @property
    def from_file(self) -> bool:
        """Whether the backbone is a `.keras` file."""
        return self.backbone is not None and self.backbone.endswith(".keras")

    def _faults(self) -> Iterator[str]:
        defaults = {key: field.default for key, field in type(self).model_fields.items() if key not in OF_ALL_NETWORKS}
        named = [key for key, default in defaults.items() if getattr(self, key) != default]
        if self.name != "transfer" and named:
            yield f"{named[0]} is for name: transfer, received name: {self.name}"
        if self.name == "transfer" and self.backbone is None:
            yield "name: transfer needs a backbone, such as EfficientNetV2B0 or the path of a .keras file"
        if self.head != "pooled" and (self.head_units or self.head_dropout):
            yield f"head_units and head_dropout are for head: pooled; {self.head} has its own"
        if self.from_file and self.weights is not None:
            yield f"weights {self.weights!r}: {self.backbone} brings its own; delete the line"
        if self.from_file and self.preprocess is None:
            yield f"{self.backbone} needs preprocess: {', '.join(get_args(Preprocess))}"
        if self.backbone is None or self.from_file:
            return
        if self.backbone not in FAMILIES:
            yield f"backbone {self.backbone!r} is neither a path that ends in .keras nor one of: {', '.join(FAMILIES)}"
        own = FAMILIES[self.backbone][0]
        pretrained, other = ("package", "imagenet") if own == "lite" else ("imagenet", "package")
        if self.weights in (None, other):
            allowed = f"{pretrained}, none, or the path of a .weights.h5 file"
            yield f"{self.backbone} needs weights: {allowed}; received {self.weights}"
        if self.preprocess not in (None, own):
            yield f"preprocess {self.preprocess!r}: {self.backbone} wants {own!r}; delete the line"


class FeatureParams(Section):
    """What a frozen backbone sees: `views` augmented views of each training image are run through it once and kept.

    The head then trains on the kept features. 0 trains through the backbone instead, new views each epoch.
    """

    views: Annotated[int, Field(ge=0, le=64)] = 4


class FineTuningParams(Section):
    """Which run is continued, and which layers move.

    `continues` names a notebook, whose run of the same variant is meant, or a whole run, such as one of a sweep.

    `unfreeze` is `all`, the number of a backbone's last layers, or the name of the layer to start from. The backbone's
    rate is the training's rate times `backbone_rate_factor` (discriminative rates; Howard and Ruder, ACL 2018).
    """

    continues: Annotated[str, Field(pattern=r"^0[34]_\w+(-[\w.-]+)?$")] = "04_transfer_learning"
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
    schedule: Schedule = "cosine"
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

    def _faults(self) -> Iterator[str]:
        if self.weight_decay and self.optimizer != "adamw":
            yield f"weight_decay {self.weight_decay} needs optimizer: adamw, received {self.optimizer}"
        decays = self.schedule not in ("constant", "cosine")
        for key in ("decay_rate", "decay_every"):
            if decays != (getattr(self, key) is not None):
                yield f"schedule: {self.schedule} {'needs' if decays else 'has no'} {key}"
        if (self.schedule == "plateau") != (self.plateau_metric is not None):
            yield "plateau_metric and schedule: plateau go together; one stands without the other"
        if self.warmup_epochs and self.schedule != "cosine":
            yield f"warmup_epochs {self.warmup_epochs} needs schedule: cosine, received {self.schedule}"
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            yield f"warmup_epochs {self.warmup_epochs} must be fewer than epochs ({self.epochs})"
        if self.lowest_rate and self.schedule == "constant":
            yield f"lowest_rate {self.lowest_rate} has no effect with schedule: constant"
        if self.lowest_rate >= self.learning_rate:
            yield f"lowest_rate {self.lowest_rate} must lie below learning_rate {self.learning_rate}"


class DataParams(Section):
    """Where the radiographs come from: `data.sources`. Paths are relative to the project's root unless absolute.

    `root` is a folder, for `csv` and `npz` a file; for `tfrecord` it may be a bucket (`gs://...`).

    Of a synthetic source `hospital: 1` is drawn in the archive's layout, 2 as those of another place: other exposure, borders,
    marks, sizes and share of pneumonia, in a table of paths (`data.synthetic`).

    A file of more than `max_file_mb` megabytes (2**20 bytes), or an image of more than `max_megapixels`, is not read, in training
    and by whoever uses the network. Neither makes a run due again while the same images are read.

    The last four are for tables of paths, `source: csv` (`data.tables`). `columns` maps our names to the heads of the table, and
    `label_values` its labels to what they mean, compared as text; `"*"` is any other label. `path_pattern` makes a path of
    a cell, `group_pattern` is a regular expression that finds the patient in one, such as `patient\\d+`.
    """

    source: Literal["synthetic", "kaggle_folder", "tfrecord", "csv", "npz"] = "kaggle_folder"
    root: Annotated[str, Field(min_length=1)] = "data/chest_xray"
    val_folder: Literal["join", "leave_out"] = "join"  # the archive's 16 val images are too few to validate on
    classes: dict[str, Literal["normal", "pneumonia", "left_out"]] = {}  # folders of further classes, such as COVID
    n_images: Annotated[int, Field(ge=24, le=100_000)] = 400  # drawn when source is synthetic
    drawing_seed: Annotated[int, Field(ge=0)] = 1
    hospital: Literal[1, 2] = 1
    max_megapixels: Annotated[float, Field(gt=0, le=89)] = 30  # Pillow's own limit is 89.5
    max_file_mb: Annotated[float, Field(gt=0, le=1024)] = 64
    columns: dict[Literal["path", "label", "group_id", "kind", "split", "site"], str] = {}
    label_values: dict[Label, Literal["normal", "pneumonia", "left_out"]] = {}
    path_pattern: Annotated[str, Field(pattern=r"\{\}")] = "{}"
    group_pattern: str = ""

    def __hash__(self) -> int:  # dictionaries have none
        return hash(self.model_dump_json())

    def _faults(self) -> Iterator[str]:
        mapped = self.columns or self.label_values or self.group_pattern or self.path_pattern != "{}"
        if self.source != "csv" and mapped:
            yield f"columns, label_values and patterns are for source: csv, received source: {self.source}"
        if self.source != "kaggle_folder" and self.classes:
            yield f"classes is for source: kaggle_folder, received source: {self.source}"
        try:
            re.compile(self.group_pattern)
        except re.error as fault:
            yield f"group_pattern {self.group_pattern!r} is no regular expression: {fault}"


class ExternalParams(Section):
    """Images from another source that a frozen model is tried on, by `08_external_validation`.

    `run` is the run of the same study whose `model.keras`, threshold and calibration are used. All images of `data` count,
    whatever split they stand in there. `recalibration_fraction` of its groups are set apart, cut by `seed`: on them a
    threshold and a calibration are chosen anew, to see on the others what that would bring.
    """

    run: Annotated[str, Field(pattern=r"^\d\d_[\w.-]+$")] = "03_baseline_cnn"
    data: DataParams = DataParams(source="csv", root="data/external/table.csv")
    recalibration_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    seed: Seed = 1
    subgroups: list[str] = []  # as `evaluation.subgroups`, of the other source's table


class SplitParams(Section):
    """How validation is cut from the training pool: whole groups (patients), class ratio kept.

    `as_published` takes the source's own val split instead, and refuses it when a patient stands on both sides.
    `test_fraction` cuts test in the same way from a source that names no test images, whatever the seed.
    """

    validation: Literal["cut", "as_published"] = "cut"
    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.15
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    seed: Annotated[int, Field(ge=0)] = 1
    ratio_tolerance_points: Annotated[float, Field(gt=0, le=50)] = 2.0


class ImageParams(Section):
    """What a network sees of one file: a square uint8 image, `size_px` high and wide.

    In this order: `reencode_quality` saves every file anew as JPEG of one quality; `crop_border` cuts that fraction of
    width and height off each side; `fit` makes a square; after the resize `equalize` spreads the grey values.
    """

    size_px: Annotated[int, Field(ge=32, le=1024)] = 180  # five poolings of the baseline need 32
    channels: Literal[1, 3] = 1
    fit: Literal["stretch", "pad", "crop"] = "stretch"
    reencode_quality: Annotated[int, Field(ge=1, le=95)] | None = None  # Pillow advises against more than 95
    crop_border: Annotated[float, Field(ge=0, le=0.4)] = 0.0
    equalize: Literal["none", "hist", "clahe"] = "none"
    # At most this share of a tile's pixels may have one grey value before the rest is spread over all others.
    clahe_clip_limit: ClipLimit = 0.02
    clahe_tiles: Tiles = 8  # along each side

    def _faults(self) -> Iterator[str]:
        tile_px = (self.size_px // self.clahe_tiles) ** 2
        if self.equalize == "clahe" and self.clahe_clip_limit * tile_px < 1:
            yield (
                f"clahe_clip_limit {self.clahe_clip_limit} is less than one pixel of a tile: {self.clahe_tiles} tiles "
                f"along {self.size_px} px have {tile_px} pixels each. Use fewer tiles, or at least {1 / tile_px:.3f}"
            )


class AugmentParams(Section):
    """Random changes of training images. A factor f means a value drawn log-uniformly from [1/f, f].

    `crop_area` shows a random part of the film, a share of its area drawn evenly from [low, high], of a width against height
    drawn log-uniformly from `crop_aspect`. A part below 1 lies within the film; above 1 the whole film is shown with black
    around it. It takes the place of `zoom_fraction` and `stretch_factor`.

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
    crop_area: Range = [1.0, 1.0]
    crop_aspect: Range = [3 / 4, 4 / 3]
    margin_fraction: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    gamma_factor: Annotated[float, Field(ge=1, le=5)] = 1.0
    contrast_factor: Annotated[float, Field(ge=1, le=5)] = 1.0
    brightness_fraction: Fraction = 0.0
    sharpness: Annotated[float, Field(ge=0, le=1)] = 0.0
    noise_sd: Annotated[float, Field(ge=0, le=64)] = 0.0

    def _faults(self) -> Iterator[str]:
        (low, high), (narrow, wide) = self.crop_area, self.crop_aspect
        if low > high or not narrow <= 1 <= wide:
            yield f"crop_area {self.crop_area} must rise, and crop_aspect {self.crop_aspect} hold 1 between"
        if self.crop_area != [1, 1] and (self.zoom_fraction or self.stretch_factor > 1):
            yield "crop_area takes the place of zoom_fraction and stretch_factor: delete those lines"


class EqualisationParams(Section):
    """What the page on equalisation tries: CLAHE settings on one image, and a short training of each kind.

    Validation decides. `score_test` scores test, too, and writes it down as an opening of test.
    """

    clip_limits: Annotated[list[ClipLimit], Field(min_length=1, max_length=6)] = [0.02, 0.05, 0.15]
    tiles: Annotated[list[Tiles], Field(min_length=1, max_length=6)] = [2, 4, 8]
    score_test: bool = False


class AuditParams(Section):
    """How the audit looks for shortcuts, and the mitigations whose effect it measures.

    The classifiers are cross-validated on the training pool. `score_test` scores test, too, and writes it down as an opening.
    """

    folds: Annotated[int, Field(ge=2, le=20)] = 5
    border_fraction: Annotated[float, Field(gt=0, lt=0.5)] = 0.125  # of each side, what the border-only classifier sees
    mitigation_images: Annotated[int, Field(ge=24)] = 1000  # at most so many files are prepared anew for each
    mitigation_quality: Annotated[int, Field(ge=1, le=95)] = 75
    mitigation_crop_border: Annotated[float, Field(gt=0, le=0.4)] = 0.05
    score_test: bool = False


class EvaluationParams(Section):
    """How scores become predicted classes and intervals. Threshold and calibration are chosen on validation and frozen.

    With `threshold_views` they are chosen on validation as it is and, with the same weight, in so many views changed by the
    run's `augment`, so that they need not move when images come from other settings. Of `refer_fraction` of validation, the
    images nearest to the threshold, the class is left to a person. `subgroups` are columns of the data's table, such as `view`;
    numbers are cut at their thirds. `seeds` are further ones that the training is repeated from, to see seed variability.
    With `average_seeds`, `05_fine_tuning` leaves one network that averages the logits of its seeds, and that one is judged.
    """

    threshold_rule: Literal["sensitivity", "youden", "binormal", "fixed"] = "sensitivity"
    target_sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95
    fixed_threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    threshold_views: Annotated[int, Field(ge=0, le=64)] = 0
    calibration: Literal["none", "temperature", "platt", "isotonic"] = "platt"
    refer_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    subgroups: list[str] = []
    seeds: list[Seed] = []
    average_seeds: bool = False
    resamples: Annotated[int, Field(ge=20, le=20_000)] = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95

    def _faults(self) -> Iterator[str]:
        if self.average_seeds and not self.seeds:
            yield "average_seeds needs seeds: further ones, whose networks are averaged with the run's own"
        if self.threshold_rule == "binormal" and self.calibration == "isotonic":
            yield "threshold_rule: binormal needs calibration: none, temperature or platt (isotonic ties)"


class RobustnessParams(Section):
    """How many test images are corrupted, and in which ways, to see whether predicted classes hold: `data.corruptions`. 0: none."""

    images: Annotated[int, Field(ge=0)] = 100
    corruptions: Annotated[list[Corruption], Field(min_length=1)] = [*get_args(Corruption)]


class PublishedParams(Section):
    """Test figures that others published, shown beside ours by `07_comparison`; they decide nothing.

    `figures` maps a run of this study that repeats a published system, or a name of one that no run repeats, to its
    figures. All are taken to be of the official 624 test images, but those of `other_data`.
    """

    source: str = ""
    other_data: list[str] = []
    figures: dict[str, Annotated[dict[PublishedMetric, Fraction], Field(min_length=1)]] = {}


class RunParams(Section):
    """Everything that decides one run."""

    study: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$")] = "demo"
    seed: Seed = 1
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
    evaluates: str = ""  # the training run that `06_evaluation` tests; set by the study, never in a file

    def _faults(self) -> Iterator[str]:
        seeds = [self.seed, *self.evaluation.seeds]
        if len(set(seeds)) < len(seeds):
            yield f"evaluation.seeds are further ones: each once, and not the run's own seed {self.seed}"


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
        raise ParamsError("\n".join(_explain(error, where) for error in fault.errors())) from None


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"image": {"size_px": 96}}` to `{"image.size_px": 96}`."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _explain(error: dict, origin: dict[str, str]) -> str:
    """One line: file: key: what was wrong, received, allowed."""
    location = [str(part) for part in error["loc"]]
    place = origin.get(location[0] if location else "seed", "parameters")  # one rule is of several sections
    key, received = ".".join(location), error["input"]
    if error["type"] == "extra_forbidden":
        return f"{place}: {key}: {_unknown(key, location, received)}"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(received, BaseModel | dict) and error["type"] == "value_error":
        return f"{place}: {key}: {message}" if key else f"{place}: {message}"
    text = isinstance(received, str) and error["type"] in ("float_type", "int_type")
    hint = " It is text: write digits without quotes, leading zeros or colons." if text else ""
    return f"{place}: {key}: {message} (received {received!r:.500}).{hint}"


def _unknown(key: str, location: list[str], received: Any) -> str:
    section = RunParams
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    known = [*RunParams.model_fields, *flatten(RunParams().model_dump())]
    near = [name for name in known if name.endswith(f".{location[-1]}")] or difflib.get_close_matches(key, known, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"unknown key (received {received!r:.500}).{hint} Allowed here: {', '.join(section.model_fields)}"
