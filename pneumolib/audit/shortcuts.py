"""How far do facts that are no disease tell the classes apart? A logistic regression on them, judged like a network.

What it reaches, a network may reach the same way. Not all of it is a shortcut: consolidation raises the mean intensity,
and smooth lungs take fewer bytes. So features are judged one by one too, and a border says more than brightness.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pneumolib.audit.findings import AuditError, Finding
from pneumolib.data.facts import CONSTANT, in_words
from pneumolib.data.layout import LABEL_NAMES
from pneumolib.evaluation.intervals import percentiles, resample
from pneumolib.evaluation.metrics import PREDICTION_COLUMNS
from pneumolib.params import EvaluationParams

# An AUROC of 0.5 is a coin's. An interval wholly above 0.6 is a shortcut that a network can learn; wholly above 0.8,
# where four of five pairs of images are told apart, no figure of a network speaks of lungs alone.
WARNING_ABOVE, STRONG_ABOVE = 0.6, 0.8
# For hundreds of pixels that nearly repeat their neighbours. On the archive's training images the cross-validated AUROC
# is the same from 10 to 100, and lower at 1 and at 1000.
BORDER_L2 = 100.0
# What a grade of `grade` means: verdict and words.
_IN_POOL = {
    "strong": ("warning", "That is near to the task itself: figures of a network have to be read beside it"),
    "clear": ("warning", "A network can learn this beside the disease"),
    "weak": ("note", "That is more than chance, but little"),
    "unclear": ("note", "The interval is too wide to say whether that is more than chance"),
    "none": ("ok", "That is chance, or next to it"),
    "turned": ("note", "Below chance: what holds in some groups is turned round in others"),
}
_ON_TEST = {
    "strong": ("warning", "Figures of a network on test have to be read beside it"),
    "clear": ("warning", "Figures on test can owe something to it"),
    "weak": ("note", "On test that is more than chance, but little"),
    "unclear": ("note", "The interval is too wide to say whether it tells anything on test"),
    "none": ("ok", "On test it tells nothing"),
    "turned": ("warning", "On test it points the other way"),
}
_MISLED = ", so a network that relies on it is misled there"
_MOST_NAMED = 20  # of more features, single ones are not worth naming in a sentence


class Score(NamedTuple):
    """An AUROC with its interval; where one is None, `reason` says why."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        """`0.871 (0.823-0.912)`."""
        return f"{self.value:.3f}" + ("" if self.low is None else f" ({self.low:.3f}-{self.high:.3f})")

    def turned(self) -> "Score":
        """The score of the opposite direction."""
        ends = (None if end is None else 1 - end for end in (self.value, self.high, self.low))
        return Score(*ends, self.reason)


@dataclass(frozen=True)
class Shortcut:
    """What a set of features reaches without a network.

    Attributes:
        cv: on the training pool (train and val), each image scored by a classifier that saw none of its group.
        test: on test, by the classifier fitted on the whole pool.
        coefficients: `feature, coefficient, odds_ratio, in_words`, the largest first. Coefficient and odds ratio are for
            one standard deviation more with the other features held fixed; features that say the same, such as width,
            height and aspect, share theirs. Constant features have 0; all are NaN where nothing could be fitted.
        predictions: columns `PREDICTION_COLUMNS`; `split` is `pool` for the cross-validated, or `test`.
    """

    cv: Score
    test: Score
    coefficients: pd.DataFrame
    predictions: pd.DataFrame


def judge_shortcut(
    features: pd.DataFrame, split: pd.DataFrame, params: EvaluationParams, seed: int, folds: int = 5, l2: float = 1
) -> Shortcut:
    """Fit and judge a logistic regression on standardised features, classes weighted to equal shares.

    The weights are for the folds' sake: their scores are ranked together, and an intercept that follows the prevalence
    of the other folds would push each fold's scores against its own labels.

    Args:
        features: numbers, one row an image, by `image_id`; images beyond the split's are left aside.
        split: `image_id, split, label, kind, group_id`; test rows may be missing.
        params: `resamples` and `confidence` of the intervals, from groups resampled within each class.
        seed: of folds and resamples.
        folds: of whole groups, class ratio kept (scikit-learn's StratifiedGroupKFold).
        l2: strength of the penalty, 1 / C in scikit-learn: 1 for a dozen file facts, `BORDER_L2` for a border.
    Raises:
        AuditError: images of the split without features, or with values that are not finite.
    """
    rows, values = _join(features, split)
    pool, test = rows.split.isin(["train", "val"]), rows.split == "test"
    # Newton's method: exact after a few steps where images outnumber features.
    classifier = LogisticRegression(C=1 / l2, class_weight="balanced", solver="newton-cholesky")
    model = make_pipeline(StandardScaler(), classifier)
    no_fit = _lacking(rows[pool], "the training pool") or _all_constant(values[pool])
    if not no_fit:
        model.fit(values[pool], rows.label[pool])
    crossed = no_fit or _cross_validate(model, values[pool], rows[pool], folds, seed)
    tested = no_fit or _lacking(rows[test], "test") or model.decision_function(values[test])
    judged = {"pool": (rows[pool], crossed), "test": (rows[test], tested)}
    cv, on_test = (_score(part, decision, params, seed) for part, decision in judged.values())
    coefficients = _coefficients(values[pool], None if no_fit else classifier.coef_[0])
    return Shortcut(cv, on_test, coefficients, _predictions(judged))


def _join(features: pd.DataFrame, split: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The split by `image_id`, and the features of its images in the same order."""
    rows = split.sort_values("image_id").set_index("image_id")
    for name, table in (("split", rows), ("features", features)):
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()][0]
            raise AuditError(f"{name}: {twice} stands there more than once; every image has one row")
    if missing := sorted(set(rows.index) - set(features.index)):
        raise AuditError(f"features: {len(missing)} image(s) of the split have none, such as {missing[0]}")
    values = features.loc[rows.index].astype(float).rename(columns=str)
    bad = ~np.isfinite(values)
    if bad.any(axis=None):
        column = bad.any().idxmax()
        raise AuditError(f"features: {column} of {bad[column].idxmax()} is {values[column][bad[column]].iloc[0]}")
    return rows, values


def _lacking(rows: pd.DataFrame, where: str) -> str:
    """Why these images cannot be told apart; empty when both classes are there."""
    labels = sorted(rows.label.unique())
    if not labels:
        return f"{where} holds no images"
    return f"{where} holds only {LABEL_NAMES[labels[0]]} images" if len(labels) == 1 else ""


def _all_constant(values: pd.DataFrame) -> str:
    return f"all {values.shape[1]} features are constant on the training pool" if _constant(values).all() else ""


def _constant(values: pd.DataFrame) -> pd.Series:
    return values.min() == values.max()


def _cross_validate(
    model: Pipeline, values: pd.DataFrame, rows: pd.DataFrame, folds: int, seed: int
) -> np.ndarray | str:
    """Decision values (n,), each from the folds without the image's group; or a text: why there are none."""
    groups = rows.groupby("label").group_id.nunique()
    if groups.min() < folds:
        return f"{LABEL_NAMES[groups.idxmin()]} has {groups.min()} group(s), fewer than the {folds} folds"
    cv = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return cross_val_predict(model, values, rows.label, groups=rows.group_id, cv=cv, method="decision_function")


def _score(rows: pd.DataFrame, decision: np.ndarray | str, params: EvaluationParams, seed: int) -> Score:
    if isinstance(decision, str):
        return Score(reason=decision)
    return _aurocs(rows, pd.DataFrame({"decision": decision}), params, seed)[0]


def _aurocs(rows: pd.DataFrame, scores: pd.DataFrame, params: EvaluationParams, seed: int) -> list[Score]:
    """AUROC of each column of `scores`, all on the same resamples of groups."""
    if reason := _lacking(rows, "this part"):
        return [Score(reason=reason)] * scores.shape[1]
    resamples, found = resample(rows, params, seed), []
    for column in scores.to_numpy(float).T:
        value, draws = resamples.score(column, 0)
        if resamples.weights is None:
            found.append(Score(value["auroc"], reason="a class has fewer than two groups to resample"))
            continue
        # Limits of no width stay: a shortcut that never errs is what the audit looks for.
        found.append(Score(value["auroc"], *percentiles(draws["auroc"], resamples.tail)))
    return found


def _predictions(judged: dict[str, tuple[pd.DataFrame, np.ndarray | str]]) -> pd.DataFrame:
    tables = [
        rows.reset_index().assign(split=part, logit=decision, probability=expit(decision))[PREDICTION_COLUMNS]
        for part, (rows, decision) in judged.items()
        if not isinstance(decision, str)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=PREDICTION_COLUMNS)


def _coefficients(values: pd.DataFrame, coefficients: np.ndarray | None) -> pd.DataFrame:
    table = pd.DataFrame({"feature": values.columns, "coefficient": np.nan if coefficients is None else coefficients})
    if coefficients is not None:
        table.loc[_constant(values).to_numpy(), "coefficient"] = 0.0  # exactly, whatever rounding left
    table["odds_ratio"] = np.exp(table.coefficient)
    table["in_words"] = [in_words(name, c) for name, c in zip(table.feature, table.coefficient, strict=True)]
    table.loc[_constant(values).to_numpy(), "in_words"] = CONSTANT
    order = table.coefficient.abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def feature_table(features: pd.DataFrame, split: pd.DataFrame, params: EvaluationParams, seed: int) -> pd.DataFrame:
    """What each feature tells alone, nothing fitted: AUROC on the training pool and on test, with intervals.

    The direction is the one with an AUROC of 0.5 or more on the pool, and the same on test: a value below 0.5 there is a
    shortcut turned round. Arguments and errors are those of `judge_shortcut`.

    Returns:
        `feature, in_words, pool, pool_low, pool_high, test, test_low, test_high`, the largest on the pool first; NaN
        where a value cannot be computed, and for features that are constant on the pool.
    """
    rows, values = _join(features, split)
    pool, test = rows.split.isin(["train", "val"]), rows.split == "test"
    on_pool, on_test = (_aurocs(rows[part], values[part], params, seed) for part in (pool, test))
    entries = []
    for name, constant, *scores in zip(values, _constant(values[pool]), on_pool, on_test, strict=True):
        direction = np.nan if scores[0].value is None else np.copysign(1, scores[0].value - 0.5)
        scores = [Score() if constant else score.turned() if direction < 0 else score for score in scores]
        words = CONSTANT if constant else in_words(name, direction)
        entries.append([name, words, *scores[0][:3], *scores[1][:3]])
    ends = [f"{part}{end}" for part in ("pool", "test") for end in ("", "_low", "_high")]
    table = pd.DataFrame(entries, columns=["feature", "in_words", *ends]).astype(dict.fromkeys(ends, float))
    return table.sort_values("pool", ascending=False, kind="stable", ignore_index=True)


def shortcut_findings(name: str, subject: str, shortcut: Shortcut) -> list[Finding]:
    """Two findings, `<name>_cv` and `<name>_test`.

    Args:
        name: snake_case, such as `metadata_only`.
        subject: what the classifier saw, to follow "From": `file facts`, `the outer eighth of each side`.
        shortcut: from `judge_shortcut`.
    """
    return [
        _finding(f"{name}_cv", f"From {subject} alone, cross-validated on the training pool", shortcut.cv, _IN_POOL,
                 _most_weight(shortcut.coefficients)),
        _finding(f"{name}_test", f"From {subject} alone, fitted on the training pool and scored on test",
                 shortcut.test, _on_test(shortcut.cv), ""),
    ]  # fmt: skip


def _on_test(cv: Score) -> dict[str, tuple[str, str]]:
    """`_ON_TEST`, with the consequence where the training pool holds what test does not."""
    if cv.value is None or grade(cv) not in ("strong", "clear"):
        return _ON_TEST
    return _ON_TEST | {key: (_ON_TEST[key][0], _ON_TEST[key][1] + _MISLED) for key in ("none", "turned")}


def _finding(name: str, how: str, score: Score, meanings: dict[str, tuple[str, str]], weight: str) -> Finding:
    if score.value is None:
        return Finding(name, "note", None, f"{how}: not computable, because {score.reason}.")
    verdict, meaning = meanings[grade(score)]
    no_interval = f" (interval not computable, because {score.reason})" if score.low is None else ""
    words = f"{how}, a linear classifier tells the classes apart with an AUROC of {score}{no_interval}{weight}."
    return Finding(name, verdict, score.value, f"{words} {meaning}.", score.low, score.high)


def grade(score: Score) -> str:
    """`strong`, `clear`, `weak`, `none`, `turned` or `unclear`, by where the interval lies; see WARNING_ABOVE."""
    if score.low is None:
        return "unclear"
    if score.low > 0.5:
        return "strong" if score.low > STRONG_ABOVE else "clear" if score.low > WARNING_ABOVE else "weak"
    if score.high < 0.5:
        return "turned"
    return "none" if score.low >= 1 - WARNING_ABOVE and score.high <= WARNING_ABOVE else "unclear"


def _most_weight(coefficients: pd.DataFrame) -> str:
    if len(coefficients) > _MOST_NAMED:
        return ""
    telling = coefficients[coefficients.coefficient.abs() > 0].head(3)
    return f"; most weight: {', '.join(telling.in_words)}" if len(telling) else ""
