"""A run's model card: what the network is, for what, on which images, and how well. Markdown, from `result.json` alone.

The sections are those of Mitchell et al., "Model Cards for Model Reporting", FAccT 2019, in words of our own.
"""

import re
from collections.abc import Iterable
from typing import Any

from pneumolib.evaluation.metrics import METRIC_NAMES
from pneumolib.learning.devices import device_words
from pneumolib.model_params import FAMILIES
from pneumolib.reporting import run_words
from pneumolib.reporting.check_tables import flat, number, readable
from pneumolib.reporting.results import Result, in_words
from pneumolib.reporting.run_words import ARCHIVE, NOT, asked

CARD_FILE = "MODEL_CARD.md"
_ROBUSTNESS = ["corruption", "severity", "auroc", "auroc_change", "sensitivity_change", "specificity_change"]


def model_card(result: Result, audit: dict | None = None) -> str:
    """The card of a finished training run; what its result does not hold is `not available`.

    Args:
        result: with metrics of test.
        audit: `checks.audit` of the exploration of the same images, for the limitations; None where there is none.
    """
    sections = {
        "Model details": _details(result),
        "Intended use": _use(result),
        "Data": _data(result),
        "Training": _training(result),
        "Decision": _decision(result),
        "Results": _results(result),
        "Parts of the test images": _rows(result, "subgroups"),
        "Robustness": _robustness(result),
        "Calibration on test": _rows(result, "calibration"),
        "Predictive values at other prevalences": _rows(result, "predictive_values"),
        "Chance": _chance(result),
        "Where it looks": _explanation(result),
        "Limitations": _bullets(run_words.limitations(result, audit)),
        "How to load it": _loading(result),
        "Citation and licence": _citation(result),
    }
    blocks = [f"# Model card: {safe(result.study)} / {safe(result.run)}", *_banners(result)]
    for name, text in sections.items():
        blocks += [f"## {name}", text]
    return "\n\n".join(blocks) + "\n"


def safe(text: Any) -> str:
    """Text as it stands, in Markdown and in its tables: no markup, no HTML, one line."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # Underscores within a word are no markup, and names of runs are full of them.
    return re.sub(r"[\\`*|\[\]]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", line)


def _table(columns: list[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell if cell == "---" else safe(cell) for cell in line) + " |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {safe(line)}" for line in lines)


def _facts(pairs: dict[str, Any]) -> str:
    return "\n".join(f"- **{name}**: {safe(NOT if value is None else value)}" for name, value in pairs.items())


def _banners(result: Result) -> list[str]:
    """What a card says of itself first."""
    banners = []
    if run_words.is_smoke(result):
        banners.append("> **Smoke run. Synthetic.** A few drawn images and one epoch; its figures mean nothing.")
    elif result.synthetic:
        banners.append("> **Synthetic.** Every image was drawn by a program; the figures say nothing about patients.")
    return [*banners, "> Research only, not a medical device."]


def _details(result: Result) -> str:
    p, size = result.provenance, asked(result, "image.size_px")
    shape = (
        NOT
        if size is None
        else f"raw uint8 pixels, (batch, {size}, {size}, {asked(result, 'image.channels')}), 0 to 255"
    )
    return _facts({
        "Network": run_words.network_words(result),
        "Weights": run_words.weight_words(result),
        "Input": shape,
        "Preparation of pixels": f"inside the model{_wanted(result)}: callers must not scale",
        "Output": "one logit; its sigmoid is the network's probability of pneumonia",
        "File": f"model.keras, SHA-256 of its weights {result.facts.get('weights_sha256') or NOT}",
        "Time": f"{t:.1f} ms an image" if (t := result.facts.get("milliseconds_per_image")) is not None else NOT,
        "Date": f"{p.finished:%Y-%m-%d %H:%M} UTC",
        "Commit": run_words.commit_words(result),
        "Versions": run_words.version_words(result),
        "Machine": device_words(p.device),
    })  # fmt: skip


def _wanted(result: Result) -> str:
    """How the backbone wants its pixels, as `learning.backbones` names the ways."""
    backbone = asked(result, "model.backbone")
    way = asked(result, "model.preprocess") or FAMILIES.get(backbone, (None,))[0]
    return f" (as {way} backbones want them)" if way else ""


def _use(result: Result) -> str:
    lines = ["**For**: research on how networks learn from radiographs and how they are judged; repeating this run."]
    if run_words.is_archive(result):
        lines.append(
            f"**Made for images like its own**: {ARCHIVE['images']} of {ARCHIVE['patients']} from {ARCHIVE['place']}."
        )
    elif result.synthetic:
        lines.append("**Made for images like its own**: drawings. It has never seen a radiograph.")
    else:
        lines.append(f"**Patients and hospitals it was made for**: {NOT}.")
    lines += [
        "**Not for**: diagnosis, triage or any decision on a patient. It is no medical device, and no physician has tested it.",
        "**Not for**: findings other than pneumonia, other views, or images that are not radiographs of the chest; it gives "
        "a probability for whatever it is shown.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _data(result: Result) -> str:
    data = result.data
    facts = _facts({
        "Source": run_words.source_words(result),
        "Images": run_words.size_words(result),
        "Labels": ARCHIVE["labels"] if run_words.is_archive(result) else "drawn" if result.synthetic else NOT,
        "What the network sees of a file": run_words.image_words(result),
        "Parts": run_words.split_words(result),
        "Fingerprints": f"images {data.fingerprint}, split {data.split_fingerprint or NOT}",
    })  # fmt: skip
    columns, rows = readable(
        [row | {"split": run_words.PARTS.get(row["split"], row["split"])} for row in run_words.part_sizes(result)]
    )
    return f"{facts}\n\n{_table(columns, rows)}" if rows else facts


def _training(result: Result) -> str:
    seconds = result.facts.get("training_seconds")
    return _facts({
        "Optimisation": run_words.optimizer_words(result),
        "Epochs": run_words.epoch_words(result),
        "Augmentation": run_words.augment_words(result),
        "Seed": run_words.seed_words(result),
        "Continues": result.checks.get("continues") or "no other run",
        "Seconds": None if seconds is None else f"{seconds:,.1f}",
    })  # fmt: skip


def _decision(result: Result) -> str:
    return _facts({
        "Threshold": run_words.threshold_words(result),
        "Calibration": run_words.calibration_words(result),
    })  # fmt: skip


def _results(result: Result) -> str:
    parts = [part for part in ("validation", "test") if part in result.metrics]
    rows = [
        [name, *(in_words(result.own(key, part)) for part in parts)]
        for key, name in METRIC_NAMES.items()
        if any(result.own(key, part) for part in parts)
    ]
    blocks = [_table(["Metric", *map(str.capitalize, parts)], rows), run_words.interval_method(result)]
    if counts := result.checks.get("confusion"):
        blocks.append(_table(["Calls on test", "Pneumonia", "Normal"], [
            ["called pneumonia", counts["tp"], counts["fp"]], ["called normal", counts["fn"], counts["tn"]],
        ]))  # fmt: skip
    else:
        blocks.append(f"Calls on test: {NOT}.")
    return "\n\n".join([*blocks, *_spread(result)])


def _spread(result: Result) -> list[str]:
    """A table for each part whose training was repeated from several seeds."""
    blocks = []
    for part, entries in result.spread.items():
        rows = [{"metric": METRIC_NAMES.get(name, name)} | {"mean": s.mean, "mean_low": s.low, "mean_high": s.high}
                | {"seeds": s.seeds, "sd": s.sd, "lowest": s.lowest, "highest": s.highest} for name, s in entries.items()]  # fmt: skip
        blocks += [f"Over several training seeds, {part}:", _table(*readable(rows))] if rows else []
    return blocks or [f"Repeated from other seeds: {NOT}."]


def _rows(result: Result, check: str, columns: list[str] | None = None) -> str:
    rows = result.checks.get(check)
    return _table(*readable(rows, columns)) if rows else f"{NOT.capitalize()}."


def _robustness(result: Result) -> str:
    rows = result.checks.get("robustness")
    if not rows:
        return f"{NOT.capitalize()}."
    # The images as they are have no change to show.
    kept = [
        {k: v for k, v in row.items() if "_change" not in k} if row.get("corruption") == "none" else row for row in rows
    ]
    return _table(*readable(kept, _ROBUSTNESS)) + "\n\nChanges are paired differences from the same images as they are."


def _chance(result: Result) -> str:
    found = result.checks.get("permutation")
    if not found or found.get("mean") is None:
        return f"{NOT.capitalize()}."
    return (
        f"With labels dealt out anew among groups the AUROC is {number(found['mean'])} on average and within "
        f"{number(found.get('low'))} to {number(found.get('high'))} in 95% of the deals; p = {number(found.get('p'))}."
    )


def _explanation(result: Result) -> str:
    found = result.checks.get("explanation")
    if not found:
        return f"{NOT.capitalize()}."
    return _table(["Check", "Value"], flat(found))


def _loading(result: Result) -> str:
    if result.threshold is None or asked(result, "image.size_px") is None:
        return f"{NOT.capitalize()}."
    image = asked(result, "image")
    settings = ", ".join(
        f"{key}={value!r}"
        for key, value in image.items()
        if isinstance(value, bool | int | float | str)
        and key != "memory_gb"  # of training's pixels, not of one image's
    )
    calibrated = "" if result.calibration is None else (
        "\n\nThe threshold is for this probability. For one that is calibrated, apply the map under Decision to the logit."
    )  # fmt: skip
    return f"""In a terminal, in the folder of this card: `pneumolib predict . radiograph.jpeg`, which applies threshold and calibration{_warned(result)}. In Python:

```python
from pathlib import Path

import keras
import numpy as np
from pneumolib.data import load_image
from pneumolib.params import ImageParams

model = keras.saving.load_model("model.keras", compile=False)
image = ImageParams({settings})
pixels = load_image(Path("radiograph.jpeg"), image)  # uint8, not scaled
logit = float(model.predict(pixels[np.newaxis], verbose=0)[0, 0])
probability = 1 / (1 + np.exp(-logit))
pneumonia = probability >= {result.threshold.value!r}
```

Without this library, `pixels` is a NumPy array as under Input; the file needs Keras alone.{calibrated}"""


def _warned(result: Result) -> str:
    rate = result.familiarity.validation_warnings["any"] if result.familiarity else None
    if rate is None:
        return ""
    return f" and warns of images unlike the training images (false alarms on validation: {rate:.1%})"


def _citation(result: Result) -> str:
    return _facts({
        "Images": ARCHIVE["name"] if run_words.is_archive(result) else "drawn by this library" if result.synthetic else NOT,
        "Citation of this model": NOT,
        "Licence of code and weights": NOT,
    })  # fmt: skip
