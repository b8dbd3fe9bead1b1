"""What a run was made from and how, in plain sentences read from its result; the model card and the checklist share them.

Sentences carry no markup: Markdown and HTML escape them in their own ways. What a result does not hold is `NOT`, never a
guess; results of older versions and runs that left a check out are read like any other.
"""

from typing import Any

from pneumolib.evaluation.calibration import Calibration
from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.project import SMOKE
from pneumolib.reporting.check_tables import flat
from pneumolib.reporting.prose import row_interval
from pneumolib.reporting.results import Result, figure_words, in_words, interval

NOT = "not available"

# What is known of the archive behind `kaggle_folder` and `tfrecord`, beside its files.
ARCHIVE = {
    "name": "Kermany, Zhang and Goldbaum, Mendeley Data, doi:10.17632/rscbjbr9sj, licence CC BY 4.0; described in "
    "Kermany et al., Cell 2018;172:1122-1131, doi:10.1016/j.cell.2018.02.010",
    "patients": "children of one to five years",
    "images": "frontal (antero-posterior) chest radiographs",
    "place": "one hospital in Guangzhou",
    "labels": "Two physicians graded the images, and a third the evaluation set.",
    "groups": "A group stands for a child: series and number of the file name. No table of patients exists to check it by.",
}
_OWN = {
    "csv": "A table of the user's own names images, labels and patients; who was imaged, where and when, it does not say.",
    "npz": "Arrays of images and labels; who was imaged, where and when, they do not say, and each image counts as a group.",
}
PARTS = {"train": "training", "val": "validation", "test": "test"}
_FITS = {"stretch": "stretched to a square", "pad": "padded to a square", "crop": "cropped to the square of the middle"}


def asked(result: Result, path: str) -> Any:
    """A parameter by its full name, such as `image.size_px`; None where the result does not hold it."""
    value: Any = result.parameters
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def is_archive(result: Result) -> bool:
    """Whether the images are the archive's, so that what is known of it may be said."""
    return not result.synthetic and asked(result, "data.source") in ("kaggle_folder", "tfrecord")


def is_smoke(result: Result) -> bool:
    """Whether the study was run small, so that figures mean nothing."""
    return result.study.endswith(SMOKE)


def source_words(result: Result) -> str:
    """Whose images, and from where."""
    if result.synthetic:
        return "Synthetic: every image was drawn by a program. There are no patients behind it."
    if is_archive(result):
        return f"{ARCHIVE['images'].capitalize()} of {ARCHIVE['patients']} from {ARCHIVE['place']}: {ARCHIVE['name']}."
    return _OWN.get(asked(result, "data.source"), NOT)


def size_words(result: Result) -> str:
    """How many images of how many groups."""
    data = result.data
    return f"{data.images:,} images of {data.groups:,} groups; {data.left_out:,} files left out as unusable"


def image_words(result: Result) -> str:
    """What is made of a file before the network sees it."""
    size, channels = asked(result, "image.size_px"), asked(result, "image.channels")
    if size is None:
        return NOT
    crop, quality, way = (asked(result, f"image.{key}") for key in ("crop_border", "reencode_quality", "equalize"))
    steps = [f"saved anew as JPEG of quality {quality}"] if quality else []
    steps += [f"{crop:.1%} cut off each side"] if crop else []
    steps += [_FITS.get(asked(result, "image.fit"), NOT), f"resized to {size} x {size} px"]
    steps += ["equalised: " + {"hist": "histogram", "clahe": "CLAHE"}[way]] if way in ("hist", "clahe") else []
    steps = ", ".join(steps)
    return f"{steps[0].upper()}{steps[1:]}; uint8, {'grey' if channels == 1 else f'{channels} channels'}"


def network_words(result: Result) -> str:
    """Which network, and what its weights start from."""
    name, backbone, weights = (asked(result, f"model.{key}") for key in ("name", "backbone", "weights"))
    if before := result.checks.get("continues"):
        return f"the network of run {before}, trained further ({_unfrozen(result)})"
    if name is None:
        return NOT
    if backbone is None:
        return f"{name}, from random weights"
    origin = {"imagenet": "ImageNet weights", "none": "random weights", None: "the weights of that file"}
    start = origin.get(weights, f"weights of {weights}")
    return f"a {asked(result, 'model.head')} head on backbone {backbone} with {start}, frozen"


def _unfrozen(result: Result) -> str:
    free = asked(result, "fine_tuning.unfreeze")
    if free is None:
        return f"layers that move: {NOT}"
    if isinstance(free, int):
        return f"the backbone's last {free} layers move"
    return "all layers move" if free == "all" else f"layers from {free} on move"


def weight_words(result: Result) -> str:
    """How many weights there are, and how many are trained."""
    total, trained = result.facts.get("parameters"), result.facts.get("trainable_parameters")
    if total is None:
        return NOT
    return f"{total:,} weights" + (
        "" if trained is None else f", {trained:,} of them trained, {total - trained:,} frozen"
    )


def optimizer_words(result: Result) -> str:
    """Optimizer, rate and its schedule, loss and what is done about the classes."""
    training = result.parameters.get("training")
    if not training:
        return NOT
    parts = [f"{training.get('optimizer')}, learning rate {training.get('learning_rate'):g}, schedule {training.get('schedule')}",
             f"batches of {training.get('batch_size')}", "loss: binary cross-entropy on the logit",
             f"class weights: {training.get('class_weights')}"]  # fmt: skip
    told = {"weight_decay": "weight decay", "warmup_epochs": "epochs of warm-up", "decay_rate": "decay rate",
            "decay_every": "decay every", "lowest_rate": "lowest rate", "label_smoothing": "label smoothing",
            "ema_momentum": "moving average of weights"}  # fmt: skip
    parts += [f"{words} {training[key]:g}" for key, words in told.items() if training.get(key)]
    return "; ".join([*parts, f"precision {training.get('precision')}"])


def epoch_words(result: Result) -> str:
    """How long the training went, which epoch was kept, and by what."""
    epochs, best, floors = (result.facts.get(key) for key in ("epochs", "best_epoch", "floors_exceeded"))
    if epochs is None:
        return NOT
    by = " and ".join(METRIC_NAMES.get(m, m) for m in asked(result, "training.keep_best") or []) or NOT
    words = f"{epochs} epochs trained, of at most {asked(result, 'training.epochs') or NOT}"
    if floors is False:
        return f"{words}; no epoch exceeded all floors, so the weights of the last one stay"
    return f"{words}; weights of epoch {NOT if best is None else best} kept, chosen on validation by {by}"


def augment_words(result: Result) -> str:
    """Random changes of training images, named as in the parameter files."""
    augment = result.parameters.get("augment")
    if augment is None:
        return NOT
    # A factor of 1 changes nothing, and neither does 0 of anything else.
    used = [f"{key} {value:g}" if value is not True else key for key, value in augment.items()
            if value and not (key.endswith("_factor") and value == 1)]  # fmt: skip
    return ", ".join(used) or "none"


def split_words(result: Result) -> str:
    """Where test and validation come from, and what is kept apart."""
    split = result.parameters.get("split")
    if not split:
        return NOT
    if split.get("validation") == "as_published":
        return "Test and validation are the source's own; no group stands on both sides."
    return (
        f"Test is the source's own. Validation is {split.get('validation_fraction'):.0%} of the training pool, cut by whole "
        f"groups (seed {split.get('seed')}), with the share of pneumonia kept within {split.get('ratio_tolerance_points'):g} "
        f"percentage points."
    )


def interval_method(result: Result) -> str:
    """How intervals are made, and from how many resamples."""
    resamples, confidence = asked(result, "evaluation.resamples"), asked(result, "evaluation.confidence")
    if resamples is None or confidence is None:
        return "Bootstrap of whole groups within each class; the number of resamples is not available."
    return (
        f"{confidence:.0%} intervals: percentiles of {resamples:,} bootstrap resamples of whole groups within each class; for "
        f"proportions with errors in fewer than five groups Clopper and Pearson's, groups counted as cases; for slope and "
        f"intercept of the calibration Wald's, robust to groups."
    )


def threshold_words(result: Result) -> str:
    """The frozen threshold, its rule, and what it gave on validation."""
    t = result.threshold
    if t is None:
        return NOT
    return (
        f"{t.value:.3f} on the sigmoid of the logit ({t.rule}), chosen on {t.chosen_on} and frozen; there it gives a "
        f"sensitivity of {t.sensitivity:.3f} and a specificity of {t.specificity:.3f}"
    )


def calibration_words(result: Result) -> str:
    """The frozen map from logit to calibrated probability."""
    c = result.calibration
    if c is None:
        return NOT
    words = Calibration(**c.model_dump()).in_words()
    return f"{words}; fitted on {c.chosen_on} and frozen"


def seed_words(result: Result) -> str:
    """The run's own seed and further ones."""
    more = asked(result, "evaluation.seeds")
    return f"seed {asked(result, 'seed')}" + (f", repeated from {', '.join(map(str, more))}" if more else "")


def version_words(result: Result) -> str:
    """Python and packages."""
    p = result.provenance
    return f"Python {p.python}" + "".join(f", {name} {number}" for name, number in p.versions.items())


def commit_words(result: Result) -> str:
    """The commit, and whether it is all that ran."""
    p = result.provenance
    if p.commit is None:
        return f"{NOT}: no git checkout"
    return p.commit[:12] + (" with uncommitted changes" if p.dirty else "")


def part_sizes(result: Result) -> list[dict]:
    """Rows of `checks.split`: `split, images, groups, pneumonia`; of older results test alone, from its calls."""
    if rows := result.checks.get("split"):
        return rows
    counts = result.checks.get("confusion")
    if not counts:
        return []
    return [{"split": "test", "images": sum(counts.values()), "pneumonia": counts["tp"] + counts["fn"]}]


def size_of_parts(result: Result) -> str:
    """Such as `Test: 100 images, 62 with pneumonia`; empty where nothing is known."""
    told = [f"{PARTS.get(row['split'], row['split'])}: {row['images']:,} images" + (f" of {row['groups']:,} groups" if "groups" in row else "")
            + f", {row['pneumonia']:,} with pneumonia" for row in part_sizes(result)]  # fmt: skip
    words = "; ".join(told)
    return words[:1].upper() + words[1:]


NO_AUDIT = "No audit of these images is at hand: shortcuts may be present."


def source_limits(result: Result) -> list[str]:
    """What the images keep the figures from saying."""
    lines = []
    if is_smoke(result):
        lines.append("A smoke run: a few drawn images and one epoch. Its figures mean nothing.")
    if result.synthetic:
        return [*lines, "The images are synthetic: figures test the software and say nothing about patients."]
    if is_archive(result):
        lines += [f"All images come from {ARCHIVE['place']}: how the network does elsewhere these figures do not say.",
                  f"Only {ARCHIVE['patients']}: other ages were never seen.", ARCHIVE["groups"]]  # fmt: skip
    else:
        lines.append("Hospital, age and how labels were made are not available for this source.")
    return [*lines, "Sex, origin and devices are not available, so fairness across them cannot be judged."]


def limitations(result: Result, audit: dict | None = None) -> list[str]:
    """What keeps a training run's figures from meaning more, as far as results tell.

    Args:
        result: of the run.
        audit: `checks.audit` of the exploration of the same images; None where there is none.
    """
    lines = source_limits(result)
    if (moved := change_to_test(result)) is not None:
        lines.append(f"From validation to test the AUROC changes by {moved:+.3f}.")
    if audit is None:
        return [*lines, NO_AUDIT]
    return lines + [found["sentence"] for found in audit.values() if found["verdict"] in ("warning", "error")]


def change_to_test(result: Result) -> float | None:
    """Test AUROC less that of validation; None where one is missing."""
    pair = [result.own("auroc", part) for part in ("validation", "test")]
    if any(m is None or m.value is None for m in pair):
        return None
    return pair[1].value - pair[0].value


def network_and_weight_words(result: Result) -> str:
    """The network, its input and output, and its weights."""
    size, channels = asked(result, "image.size_px"), asked(result, "image.channels")
    if size is None:
        return NOT
    shape = f"input uint8 {size} x {size} x {channels}; output one logit"
    return f"{network_words(result)}; {shape}; {weight_words(result)}"


def start_words(result: Result) -> str:
    """What the weights start from, and by which seed."""
    network = network_words(result)
    return NOT if network == NOT else f"{network}; {seed_words(result)}"


def training_words(result: Result) -> str:
    """Optimisation, augmentation and epochs."""
    told = optimizer_words(result)
    return told if told == NOT else f"{told}. Augmentation: {augment_words(result)}. {epoch_words(result)}"


def balance_words(result: Result) -> str:
    """What was done about unequal classes."""
    told = {"balanced": "The loss weighs images so that both classes count the same", "none": "Nothing"}
    way = told.get(asked(result, "training.class_weights"))
    after = "" if result.calibration is None else f"; recalibrated afterwards: {calibration_words(result)}"
    return way + after if way else NOT


def model_file_words(result: Result) -> str:
    """Where the network is, and what tells it from another one."""
    digest = result.facts.get("weights_sha256")
    file = f"runs/{result.study}/{result.run}/model.keras"
    return NOT if digest is None else f"{file}, weights SHA-256 {digest[:16]}..., and MODEL_CARD.md"


def spread_words(result: Result) -> str:
    """The test AUROC over several seeds."""
    s = result.spread.get("test", {}).get("auroc")
    if s is None or s.mean is None:
        return NOT
    ends = f"from {figure_words(s.lowest)} to {figure_words(s.highest)}"
    return f"{s.seeds} seeds: test AUROC {interval(s.mean, s.low, s.high)} on average, SD {figure_words(s.sd)}, {ends}"


def explanation_words(result: Result) -> str:
    """What the checks of the maps found."""
    found = result.checks.get("explanation")
    return "; ".join(f"{name} {value}" for name, value in flat(found)) if isinstance(found, dict) and found else NOT


def internal_words(result: Result) -> str:
    """The AUROC of validation and of test."""
    moved = change_to_test(result)
    if moved is None:
        return NOT
    validation, test = (in_words(result.own("auroc", part)) for part in ("validation", "test"))
    return f"validation AUROC {validation}, test {test}, a change of {moved:+.3f}"


def score_words(result: Result) -> str:
    """Metrics of the order of scores and of their size, on test."""
    return _on_test(result, "auroc", "auprc", "brier", "log_loss")


def call_words(result: Result) -> str:
    """Metrics of calls at the threshold, on test."""
    return _on_test(result, "sensitivity", "specificity", "ppv", "npv", "accuracy")


def _on_test(result: Result, *names: str) -> str:
    told = [f"{METRIC_NAMES[name]} {in_words(m)}" for name in names if (m := result.own(name)) is not None]
    return "On test: " + ", ".join(told) if told else NOT


def robustness_words(result: Result) -> str:
    """The change of the test images under which the AUROC is lowest."""
    changed = [row for row in result.checks.get("robustness") or [] if row.get("auroc_change") is not None]
    if not changed:
        return NOT
    worst = min(changed, key=lambda row: row["auroc_change"])
    kinds = len({row["corruption"] for row in changed})
    place = f"worst: {worst['corruption']}, severity {worst['severity']}"
    return (
        f"{kinds} kinds of change to the test images; {place}, AUROC {row_interval(worst, 'auroc_change', signed=True)}"
    )


def reliability_words(result: Result) -> str:
    """Slope, intercept and ECE of the calibrated probabilities on test."""
    row = next((row for row in result.checks.get("calibration") or [] if row.get("chosen")), None)
    if row is None:
        return NOT
    line = f"slope {row_interval(row, 'slope')}, intercept {row_interval(row, 'intercept', signed=True)}"
    return f"{row['method']}, on test: {line}, ECE {figure_words(row.get('ece'))} (floor {figure_words(row.get('ece_floor'))})"


def failure_words(result: Result) -> str:
    """How many test images are called wrongly."""
    c = result.checks.get("confusion")
    if not c:
        return NOT
    missed = f"{c['fn']} of {c['tp'] + c['fn']} test images with pneumonia called normal"
    return f"{missed}, {c['fp']} of {c['fp'] + c['tn']} normal ones called pneumonia; pictures on the run's page"
