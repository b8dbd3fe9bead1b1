"""How far do facts that are no disease tell the classes apart? A logistic regression on them, judged like a network.

What it reaches, a network may reach the same way. Not all of it is a shortcut: consolidation raises the mean intensity,
and smooth lungs take fewer bytes. So features are judged one by one too, and a border says more than brightness.

A mitigation is a parameter of `image` that every run may set. It is applied to each file at its own size, and the facts are
taken of what comes out: width and height of what is left, bytes and quantisation of that saved anew (or the
original's, whose traces the pixels still carry), mean and SD of the grey values. The last rows are about what the network
gets: all images of one size, saved at one quality, so that only compressibility and grey values can differ.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumolib.audit.groups import Finding
from pneumolib.data.decode import decode
from pneumolib.data.facts import CONSTANT, in_words, metadata_features
from pneumolib.data.layout import LABEL_NAMES, bar
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import as_jpeg, load_image, prepare
from pneumolib.evaluation.compare import compare_auroc
from pneumolib.evaluation.intervals import resample
from pneumolib.evaluation.metrics import PREDICTION_COLUMNS
from pneumolib.params import AuditParams, EvaluationParams, ImageParams, RunParams

# An AUROC of 0.5 is a coin's. An interval wholly above 0.6 is a shortcut that a network can learn; wholly above 0.8,
# where four of five pairs of images are told apart, no figure of a network speaks of lungs alone.
WARNING_ABOVE, STRONG_ABOVE = 0.6, 0.8
BEFORE, ALL = "none: the files as they are", "all three, with fit: crop"
_MOST_NAMED = 20  # of more features, single ones are not worth naming in a sentence
# What a grade of `grade` is worth.
_VERDICTS = {"strong": "warning", "clear": "warning", "weak": "note", "unclear": "note", "none": "ok", "turned": "note"}


class Score(NamedTuple):
    """An AUROC with its interval; where one is NaN, `reason` says why."""

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    reason: str = ""


@dataclass(frozen=True)
class Shortcut:
    """What a set of features reaches without a network.

    Attributes:
        cv: on the training pool (train and val), each image scored by a classifier that saw none of its group.
        test: on test, by the classifier fitted on the whole pool; None where the split has no test rows.
        coefficients: `feature, coefficient, odds_ratio, in_words`, the largest first. Coefficient and odds ratio are for
            one standard deviation more with the other features held fixed; features that say the same, such as width,
            height and aspect, share theirs. Constant features have 0; all are NaN where nothing could be fitted.
        predictions: columns `PREDICTION_COLUMNS`; `split` is `pool` for the cross-validated, or `test`.
    """

    cv: Score
    test: Score | None
    coefficients: pd.DataFrame
    predictions: pd.DataFrame


def judge_shortcut(
    features: pd.DataFrame, split: pd.DataFrame, params: EvaluationParams, seed: int, folds: int = 5, l2: float = 1
) -> Shortcut:
    """Fit and judge a logistic regression on standardised features, classes weighted to equal shares.

    The weights are for the folds' sake: their scores are ranked together, and an intercept that follows the prevalence
    of the other folds would push each fold's scores against its own labels.

    Args:
        features: finite numbers, one row an image, by `image_id`; images beyond the split's are left aside.
        split: `image_id, split, label, kind, group_id`; test rows may be missing.
        params: `resamples` and `confidence` of the intervals, from groups resampled within each class.
        seed: of folds and resamples.
        folds: of whole groups, class ratio kept (scikit-learn's StratifiedGroupKFold).
        l2: strength of the penalty, 1 / C in scikit-learn: 1 for a dozen file facts, 100 for the hundreds of pixels of a
            border, which nearly repeat their neighbours. On the archive's training images the cross-validated AUROC of
            the border is the same from 10 to 100, and lower at 1 and at 1000.
    Raises:
        KeyError: images of the split without features.
    """
    rows, values = _join(features, split)
    pool, test = rows.split != "test", rows.split == "test"
    # Newton's method: exact after a few steps where images outnumber features.
    classifier = LogisticRegression(C=1 / l2, class_weight="balanced", solver="newton-cholesky")
    model, coefficients = make_pipeline(StandardScaler(), classifier), np.nan
    constant = values[pool].min() == values[pool].max()
    no_fit = _lacking(rows[pool], "the training pool")
    if constant.all() and not no_fit:
        no_fit = f"all {len(constant)} features are constant on the training pool"
    if not no_fit:
        model.fit(values[pool], rows.label[pool])
        coefficients = np.where(constant, 0.0, classifier.coef_[0])  # exactly 0, whatever rounding left
    crossed = no_fit or _cross_validate(model, values[pool], rows[pool], folds, seed)
    tested = no_fit or _lacking(rows[test], "test") or model.decision_function(values[test])
    scores, tables = [], []
    for part, of_part, decision in (("pool", rows[pool], crossed), ("test", rows[test], tested)):
        if isinstance(decision, str):
            scores.append(Score(reason=decision))
            continue
        limits, reason = _aurocs(of_part, decision[:, None], params, seed)
        scores.append(Score(*limits[0].tolist(), reason))
        tables.append(of_part.reset_index().assign(split=part, logit=decision, probability=expit(decision)))
    predictions = pd.concat(tables or [pd.DataFrame(columns=PREDICTION_COLUMNS)], ignore_index=True)
    scores = scores if test.any() else [scores[0], None]
    return Shortcut(*scores, _coefficient_table(constant, coefficients), predictions[PREDICTION_COLUMNS])


def _join(features: pd.DataFrame, split: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The split by `image_id`, and the features of its images in the same order."""
    rows = split.set_index("image_id").sort_index()
    return rows, features.loc[rows.index].astype(float).rename(columns=str)


def _lacking(rows: pd.DataFrame, where: str) -> str:
    """Why these images cannot be told apart; empty when both classes are there."""
    return "" if rows.label.nunique() == 2 else f"{where} does not hold both classes"


def _cross_validate(
    model: Pipeline, values: pd.DataFrame, rows: pd.DataFrame, folds: int, seed: int
) -> np.ndarray | str:
    """Decision values (n,), each from the folds without the image's group; or a text: why there are none."""
    groups = rows.groupby("label").group_id.nunique()
    if groups.min() < folds:
        return f"{LABEL_NAMES[groups.idxmin()]} has {groups.min()} group(s), fewer than the {folds} folds"
    cv = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return cross_val_predict(model, values, rows.label, groups=rows.group_id, cv=cv, method="decision_function")


def _aurocs(rows: pd.DataFrame, scores: np.ndarray, params: EvaluationParams, seed: int) -> tuple[np.ndarray, str]:
    """AUROC of each column of `scores` (n, k) with its limits, (k, 3); why all limits are NaN."""
    if reason := _lacking(rows, "this part"):
        return np.full((scores.shape[1], 3), np.nan), reason
    resamples = resample(rows, params, seed)
    found = np.array([resamples.clustered_limits("auroc", (column, 0)) for column in scores.T])
    return found, "a class has fewer than two groups" if np.isnan(found[:, 1]).all() else ""


def _coefficient_table(constant: pd.Series, coefficients: np.ndarray | float) -> pd.DataFrame:
    table = pd.DataFrame({"feature": constant.index, "coefficient": coefficients})
    table["odds_ratio"] = np.exp(table.coefficient)
    words = [in_words(name, c) for name, c in zip(table.feature, table.coefficient, strict=True)]
    table["in_words"] = np.where(constant, CONSTANT, words)
    order = table.coefficient.abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def fact_table(features: pd.DataFrame, split: pd.DataFrame, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """What each feature tells alone, nothing fitted: AUROC on the training pool and on test, with intervals.

    The direction is the one with an AUROC of 0.5 or more on the pool, and the same on test: a value below 0.5 there is a
    shortcut turned round. Arguments and errors are those of `judge_shortcut`.

    Returns:
        `feature, in_words, pool, pool_low, pool_high, test, test_low, test_high`, the largest on the pool first; NaN
        where a value cannot be computed, and for features that are constant on the pool.
    """
    rows, values = _join(features, split)
    parts = [rows.split != "test", rows.split == "test"]
    found = np.hstack([_aurocs(rows[part], values[part].to_numpy(), params, seed)[0] for part in parts])
    directions = np.where(np.isnan(found[:, 0]), np.nan, np.where(found[:, 0] < 0.5, -1, 1))
    found = np.where(directions[:, None] < 0, 1 - found[:, [0, 2, 1, 3, 5, 4]], found)
    constant = (values[parts[0]].min() == values[parts[0]].max()).to_numpy()
    words = [in_words(name, direction) for name, direction in zip(values, directions, strict=True)]
    table = pd.DataFrame({"feature": values.columns, "in_words": np.where(constant, CONSTANT, words)})
    ends = [f"{part}{end}" for part in ("pool", "test") for end in ("", "_low", "_high")]
    table[ends] = np.where(constant[:, None], np.nan, found)
    return table.sort_values("pool", ascending=False, kind="stable", ignore_index=True)


def shortcut_findings(name: str, subject: str, shortcut: Shortcut) -> list[Finding]:
    """Two findings, `<name>_cv` and, where test was scored, `<name>_test`.

    Args:
        name: snake_case, such as `metadata_only`.
        subject: what the classifier saw, to follow "From": `file facts`, `the outer eighth of each side`.
        shortcut: from `judge_shortcut`.
    """
    telling = shortcut.coefficients[shortcut.coefficients.coefficient.abs() > 0].head(3)
    named = telling.in_words.tolist() if len(shortcut.coefficients) <= _MOST_NAMED else []
    scores = {"cv": shortcut.cv} | ({"test": shortcut.test} if shortcut.test else {})
    grades, findings = {part: grade(score) for part, score in scores.items()}, []
    for part, score in scores.items():
        is_turned = (part, grades[part]) == ("test", "turned")
        facts = {"subject": subject, "part": part, "score": score, "grades": grades, "telling": named}
        verdict = "warning" if is_turned else _VERDICTS[grades[part]]
        findings.append(Finding(f"{name}_{part}", verdict, score.value, "shortcut", facts, score.low, score.high))
    return findings


def grade(score: Score) -> str:
    """`strong`, `clear`, `weak`, `none`, `turned` or `unclear`, by where the interval lies; see WARNING_ABOVE."""
    if score.low > 0.5:
        return "strong" if score.low > STRONG_ABOVE else "clear" if score.low > WARNING_ABOVE else "weak"
    if score.high < 0.5:
        return "turned"
    return "none" if score.low >= 1 - WARNING_ABOVE and score.high <= WARNING_ABOVE else "unclear"


def mitigation_table(manifest: Manifest, split: pd.DataFrame, params: RunParams) -> pd.DataFrame:
    """AUROC of the metadata-only classifier before and after each mitigation.

    Args:
        manifest, split: the images; at most `audit.mitigation_images` of them are prepared anew, whole groups of each class
            from the training pool and from test alike.
        params: `image`, `audit`, `evaluation` and `split.seed` are used.
    Returns:
        one row a mitigation: `mitigation, seen, images, cv, cv_low, cv_high, test, test_low, test_high, change, change_low,
        change_high`; `seen` is `file` or `network`; `change` is of the cross-validated AUROC from the first row of the
        same `seen`, paired on the same resamples. NaN where nothing can be computed.
    """
    audit, evaluation, seed = params.audit, params.evaluation, params.split.seed
    chosen, rows = _sample(split, audit.mitigation_images), []
    files = manifest.table[manifest.table.image_id.isin(chosen.image_id)]
    for seen, ways in _mitigations(params.image, audit).items():
        judged = {}
        for name, image in ways.items():
            # Decoded files are not kept from one way to the next: a thousand originals would take a gigabyte.
            facts = _facts_of(files, manifest, image, seen, audit.mitigation_quality, name) if image else files
            judged[name] = judge_shortcut(metadata_features(facts), chosen, evaluation, seed, audit.folds)
        changes = dict.fromkeys(judged, [np.nan] * 3)
        if not any(np.isnan(shortcut.cv.value) for shortcut in judged.values()):
            predictions = {name: shortcut.predictions for name, shortcut in judged.items()}
            compared = compare_auroc(predictions, "pool", next(iter(judged)), evaluation, seed).set_index("name")
            changes = compared[["difference", "difference_low", "difference_high"]].T
        for name, shortcut in judged.items():
            rows.append([name, seen, len(files), *shortcut.cv[:3], *(shortcut.test or Score())[:3], *changes[name]])
    numbers = [f"{part}{end}" for part in ("cv", "test", "change") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["mitigation", "seen", "images", *numbers])


def _mitigations(image: ImageParams, audit: AuditParams) -> dict[str, dict[str, ImageParams | None]]:
    """What is tried: of the files each parameter alone and all three; of what the network gets none, the study's own
    parameters where these differ, and all three."""
    # The whole picture, stretched, neither saved anew nor equalised.
    plain = ImageParams(size_px=image.size_px, channels=image.channels)
    three = {"fit": "crop", "reencode_quality": audit.mitigation_quality, "crop_border": audit.mitigation_crop_border}
    single = [("fit", "pad"), *three.items()]
    files = {f"{name}: {value}": plain.model_copy(update={name: value}) for name, value in single}
    all_three = plain.model_copy(update=three)
    own = {} if image == plain else {"this study's settings": image}
    network = {"no mitigation": plain, **own, "all three": all_three}
    at_size = {f"at {image.size_px} x {image.size_px} px, {name}": params for name, params in network.items()}
    return {"file": {BEFORE: None, **files, ALL: all_three}, "network": at_size}


def _sample(split: pd.DataFrame, at_most: int) -> pd.DataFrame:
    """Whole groups in the order of a hash, the same share of every part and class, no more than `at_most` images."""
    share, parts = min(1.0, at_most / len(split)), []
    for _, rows in split.groupby([split.split == "test", "label"]):
        order = rows.group_id.map(lambda group: hashlib.sha256(str(group).encode()).hexdigest())
        rows = rows.iloc[np.argsort(order.to_numpy(), kind="stable")]
        sizes = rows.groupby("group_id", sort=False).size().cumsum()
        parts.append(rows[rows.group_id.isin(sizes.index[sizes <= share * len(rows) + 1e-9])])
    return pd.concat(parts, ignore_index=True)


def _facts_of(
    files: pd.DataFrame, manifest: Manifest, image: ImageParams, seen: str, quality: int, name: str
) -> pd.DataFrame:
    """`files` with the facts of the prepared images in place of their own."""

    def facts(row) -> dict:
        raw = (manifest.root / row.path).read_bytes()
        if seen == "network":
            picture = Image.fromarray(load_image(raw, image, manifest.limits).squeeze())
            mode, n_bytes, quantisation = picture.mode, len(as_jpeg(picture, quality)), 0
        else:
            picture = prepare(decode(raw, grey=image.channels == 1, limits=manifest.limits).image, image)
            mode, quantisation = row.mode, row.quantisation_sum  # turning colour into grey is no mitigation of these
            n_bytes = row.bytes * (picture.width * picture.height) / (row.width_px * row.height_px)
            if image.reencode_quality is not None:
                jpeg = as_jpeg(picture, image.reencode_quality)
                n_bytes, quantisation = len(jpeg), decode(jpeg, limits=manifest.limits).quantisation_sum
        grey = np.asarray(picture.convert("L"))
        return {
            "width_px": picture.width, "height_px": picture.height, "mode": mode, "bytes": n_bytes,
            "quantisation_sum": quantisation, "mean_intensity": grey.mean(), "sd_intensity": grey.std(),
        }  # fmt: skip

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        rows = list(bar(pool.map(facts, files.itertuples()), len(files), f"trying {name}"))
    return files.assign(**pd.DataFrame(rows, index=files.index))


def mitigation_findings(table: pd.DataFrame) -> list[Finding]:
    """`metadata_after_mitigations`, of the files, and `metadata_at_network`, of what the network gets: before and after all
    three mitigations, cross-validated; `metadata_at_study` for the study's own settings where these differ from none.
    """
    files, network = (table[table.seen == seen].set_index("mitigation") for seen in ("file", "network"))
    named = {"metadata_after_mitigations": files.loc[[BEFORE, ALL]], "metadata_at_network": network.iloc[[0, -1]]}
    named |= {"metadata_at_study": network.iloc[:2]} if len(network) > 2 else {}
    findings = []
    for name, rows in named.items():
        old, new = (Score(*row) for row in rows[["cv", "cv_low", "cv_high"]].to_numpy())
        change = Score(*rows[["change", "change_low", "change_high"]].iloc[1])
        facts = {"first": rows.index[0], "old": old, "new": new, "change": change, "grade": grade(new)}
        verdict = "warning" if change.low > 0 else _VERDICTS[grade(new)]
        findings.append(Finding(name, verdict, new.value, "mitigation", facts, new.low, new.high))
    return findings
