"""Answers on networks, training, use and sharing; each takes the evidence of a study with a trained run."""

from collections import Counter
from collections.abc import Callable

from pneumolib.reporting import run_words
from pneumolib.reporting.checklist_evidence import Answer, Evidence
from pneumolib.reporting.results import Result
from pneumolib.reporting.run_words import NOT, asked


def _aims(e: Evidence) -> Answer:
    several = "" if len(e.trained) == 1 else "s, ranked by validation"
    lines = [f"Models are made and tested: {len(e.trained)} training run{several}. Hypotheses are for the author."]
    return Answer("in part", lines, e.pages)


def _network(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        size, channels = asked(r, "image.size_px"), asked(r, "image.channels")
        if size is None:
            return NOT
        return (f"{run_words.network_words(r)}; input uint8 {size} x {size} x {channels}; output one logit; "
                f"{run_words.weight_words(r)}")  # fmt: skip

    told = e.each(say)
    return Answer(told.status, [*told.lines, "Every layer is listed on the run's page."], told.runs)


def _software(e: Evidence) -> Answer:
    return e.each(run_words.version_words)


def _start(e: Evidence) -> Answer:
    told = e.each(lambda r: NOT if run_words.network_words(r) == NOT else f"{run_words.network_words(r)}; "
                  f"{run_words.seed_words(r)}")  # fmt: skip
    return Answer(told.status, told.lines, told.runs)


def _training(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        told = run_words.optimizer_words(r)
        return (
            told if told == NOT else f"{told}. Augmentation: {run_words.augment_words(r)}. {run_words.epoch_words(r)}"
        )

    return e.each(say)


def _balance(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        way = asked(r, "training.class_weights")
        told = {"balanced": "The loss weighs images so that both classes count the same", "none": "Nothing"}.get(way)
        after = "" if r.calibration is None else f"; recalibrated afterwards: {run_words.calibration_words(r)}"
        return told + after if told else NOT

    return e.each(say)


def _selection(e: Evidence) -> Answer:
    told = e.each(run_words.epoch_words)
    scored = [(m.value, r.run) for r in e.trained if (m := r.metric("auroc", "validation")) and m.value is not None]
    lines = [*told.lines, "Runs are ranked by validation AUROC; test plays no part."]
    lines += [f"Best of {len(scored)}: {max(scored)[1]}, validation AUROC {max(scored)[0]:.3f}."] if scored else []
    return Answer(told.status, lines, told.runs + e.comparisons)


def _ensemble(e: Evidence) -> Answer:
    return Answer("answered", ["None: each run is one network."])


def _output(e: Evidence) -> Answer:
    told = e.each(run_words.threshold_words)
    return Answer(told.status, ["One logit; its sigmoid is a probability of pneumonia.", *told.lines], told.runs)


def _limitations(e: Evidence) -> Answer:
    verdicts = Counter(finding["verdict"] for finding in (e.audit or {}).values())
    audit = f"The audit of the images, by verdict: error {verdicts['error']}, warning {verdicts['warning']}."
    lines = [*run_words.source_limits(e.first), run_words.NO_AUDIT if e.audit is None else audit]
    return Answer("in part", [*lines, "What they mean for the conclusions is for the author."], e.audit_pages)


def _poor_images(e: Evidence) -> Answer:
    return Answer("in part", ["Files that do not decode are refused, with the reason. Whether a readable image is good enough, "
                              "or a chest radiograph at all, nothing checks."])  # fmt: skip


def _users(e: Evidence) -> Answer:
    return Answer("in part", ["A file goes in and a probability comes out; users set and measure nothing. What they must know to "
                              "read it is for the author: this is no medical device."])  # fmt: skip


def _use(e: Evidence) -> Answer:
    return Answer("in part", ["Research only, not a medical device: no place in care is claimed. What it could become is for the "
                              "author."])  # fmt: skip


def _protocol(e: Evidence) -> Answer:
    return Answer("in part", [f"Every setting stands in params/{e.study.removesuffix(run_words.SMOKE)}/ and, resolved, in each "
                              f"run's result.json. Whether a protocol was fixed beforehand is for the author."])  # fmt: skip


def _model_file(e: Evidence) -> Answer:
    def say(r: Result) -> str:
        digest = r.facts.get("weights_sha256")
        return (
            NOT
            if digest is None
            else f"runs/{r.study}/{r.run}/model.keras, weights SHA-256 {digest[:16]}..., and MODEL_CARD.md"
        )

    told = e.each(say)
    if told.status == "not available":
        return told
    return Answer("in part", [*told.lines, "Where it is published, and its licence: for the author."], told.runs)


def _code_sharing(e: Evidence) -> Answer:
    told = e.each(run_words.commit_words)
    lines = [f"Commit: {line}" for line in told.lines]
    return Answer("in part", [*lines, "Where the code is published, and its licence: for the author."], e.pages)


MODEL: dict[str, Callable[[Evidence], Answer]] = {
    "aims": _aims, "use": _use, "network": _network, "software": _software, "start": _start, "training": _training,
    "balance": _balance, "selection": _selection, "ensemble": _ensemble, "output": _output, "limitations": _limitations,
    "poor_images": _poor_images, "users": _users, "protocol": _protocol, "model_file": _model_file,
    "code_sharing": _code_sharing,
}  # fmt: skip
