"""Answers on design, images, labels and parts; each takes the evidence of a study with at least one finished run."""

from collections.abc import Callable

from pneumolib.reporting import run_words
from pneumolib.reporting.checklist_evidence import Answer, Evidence
from pneumolib.reporting.run_words import ARCHIVE, NOT, asked, is_archive

DRAWN = "The images are drawn; there are no patients behind them."
OWN = "The source names files and labels and says nothing of it."
UNPUBLISHED = "Not published with the images."


def _goal(e: Evidence) -> Answer:
    return Answer("answered", ["Making models and testing them on images of the same source: a call, pneumonia or normal, for "
                               "each image. It is no trial."])  # fmt: skip


def _design(e: Evidence) -> Answer:
    return e.by_source(
        Answer("answered", ["Looking back: images and labels existed before this study."]),
        "The images are drawn for the study; nobody was examined.", OWN,
    )  # fmt: skip


def _source(e: Evidence) -> Answer:
    status = "answered" if e.first.synthetic or is_archive(e.first) else "in part"
    return Answer(status, [run_words.source_words(e.first), f"{_sizes(e)}."], e.audit_pages)


def _sizes(e: Evidence) -> str:
    return run_words.size_words(e.first).capitalize()


def _unpublished(e: Evidence) -> Answer:
    return e.by_source(Answer("not available", [UNPUBLISHED]), DRAWN, OWN)


def _setting(e: Evidence) -> Answer:
    words = f"One centre: {ARCHIVE['place']}. Which level of care: not published with the images."
    return e.by_source(Answer("in part", [words]), DRAWN, OWN)


def _eligibility(e: Evidence) -> Answer:
    left = f"{e.first.data.left_out:,} files that could not be used were left out."
    archive = Answer("in part", [f"{ARCHIVE['images'].capitalize()} of {ARCHIVE['patients']}. How they were picked: not "
                                 f"published with the images.", left], e.audit_pages)  # fmt: skip
    return e.by_source(archive, f"{DRAWN} {left}", f"{OWN} {left}")


def _preparation(e: Evidence) -> Answer:
    if not e.trained:
        return Answer("not available", ["No training run has finished."])
    told = e.each(run_words.image_words)
    more = "The same steps for every image, in training and in prediction; scaling to the network's range is inside the model."
    return Answer(told.status, [*told.lines, more], told.runs)


def _subsets(e: Evidence) -> Answer:
    ways = {"join": "joins the training pool", "leave_out": "is left out"}
    way = ways.get(asked(e.first, "data.val_folder"), NOT)
    lines = [f"All images that could be read. The source's own validation folder, where it has one, {way}."]
    return Answer("answered" if way != NOT else "in part", lines)


def _names(e: Evidence) -> Answer:
    words = "How it was done was not published with the images. File names carry a series and a number, no name."
    return e.by_source(Answer("not available", [words]), DRAWN, OWN)


def _missing(e: Evidence) -> Answer:
    left = f"{e.first.data.left_out:,} files were left out as unusable."
    lines = [left, "Nothing is filled in: every image that is used has its pixels, label and group."]
    lines += ["The exploration page lists files that were left out, with the reason."] if e.explored else []
    return Answer("answered" if e.explored else "in part", lines, e.audit_pages)


def _acquisition(e: Evidence) -> Answer:
    words = "Devices, exposure and post-processing were not published with the images; the view is antero-posterior."
    return e.by_source(Answer("not available", [words], e.audit_pages), DRAWN, OWN)


def _predictors(e: Evidence) -> Answer:
    return Answer("answered", ["The pixels of one image, and nothing else: no age, sex or symptom."])


def _measured(e: Evidence) -> Answer:
    lines = ["Pixels are read from the file by a program; nobody judges them. When an image was taken in the course of the "
             "illness: not available."]  # fmt: skip
    return Answer("in part", lines)


def _outcome(e: Evidence) -> Answer:
    words = "Pneumonia (label 1) or normal (0), as the source's folders name it. Criteria and timing were not published with the images."
    own = "Labels are read from the source as they are, 1 for pneumonia; how they were made it does not say."
    return e.by_source(Answer("in part", [f"{words} {ARCHIVE['labels']}"]), "The label decides what is drawn.", own)


def _annotators(e: Evidence) -> Answer:
    words = f"{ARCHIVE['labels']} Their training and who they are: not published with the images."
    return e.by_source(Answer("in part", [words]), "The label decides what is drawn.", OWN)


def _test_labels(e: Evidence) -> Answer:
    words = f"{ARCHIVE['labels']} Tools and instructions: not published with the images."
    return e.by_source(Answer("in part", [words]), "The label decides what is drawn.", OWN)


def _parts(e: Evidence) -> Answer:
    lines = [run_words.split_words(e.first)]
    sizes = run_words.size_of_parts(e.first)
    lines += [f"{sizes}."] if sizes else []
    whole = lines[0] != NOT and e.first.checks.get("split")
    return Answer("answered" if whole else "in part", lines, e.audit_pages)


def _disjoint(e: Evidence) -> Answer:
    lines = ["Groups: none stands in two parts; every run stops where one would."]
    lines += [ARCHIVE["groups"]] if is_archive(e.first) else []
    found = e.audit and e.audit.get("groups_across_splits")
    if not found:
        return Answer("in part", [*lines, "No audit of these images has finished."])
    lines += [f"Audit: {found['sentence']}"]
    copies = e.audit.get("duplicates_across_splits")
    lines += [copies["sentence"]] if copies else []
    clean = all(finding["verdict"] in ("ok", "note") for finding in (found, copies) if finding)
    return Answer("answered" if clean else "in part", lines, e.audit_pages)


def _size(e: Evidence) -> Answer:
    lines = [f"All that the source has: {_sizes(e)[0].lower()}{_sizes(e)[1:]}. No number was computed beforehand; the intervals "
             f"say what this one allows."]  # fmt: skip
    lines += [f"{r.run}: the test AUROC's interval is {m.high - m.low:.3f} wide." for r in e.trained
              if (m := r.metric("auroc")) and None not in (m.low, m.high)]  # fmt: skip
    return Answer("in part", lines, e.pages)


def _differences(e: Evidence) -> Answer:
    names = ("metadata_only_test", "storage_only_test", "border_only_test")
    told = [e.audit[name]["sentence"] for name in names if e.audit and name in e.audit]
    if not told:
        return Answer("not available", ["No audit of these images has finished."])
    shown = "Sizes, grey values and facts of the files are shown by part on the exploration page."
    return Answer(
        "in part", [shown, *told, "Patients cannot be compared: nothing is known of the single one."], e.audit_pages
    )


def _people(e: Evidence) -> Answer:
    words = (
        f"All are {ARCHIVE['patients']}. Age, sex and course of the single child were not published with the images."
    )
    return e.by_source(Answer("not available", [words], e.audit_pages), DRAWN, OWN)


def _flow(e: Evidence) -> Answer:
    lines = [f"{_sizes(e)}."] + ([f"{sizes}."] if (sizes := run_words.size_of_parts(e.first)) else [])
    return Answer("answered" if e.explored else "in part", lines, e.audit_pages)


def _data_sharing(e: Evidence) -> Answer:
    if e.first.synthetic:
        lines = ["The program draws the same images again from the parameters."]
        return Answer("answered", [*lines, f"Fingerprint {e.first.data.fingerprint}."])
    if is_archive(e.first):
        return Answer(
            "answered", [f"{ARCHIVE['name']}.", f"Fingerprint of the images used: {e.first.data.fingerprint}."]
        )
    return Answer("for the author", [f"The images are the user's own. Their fingerprint: {e.first.data.fingerprint}."])


DATA: dict[str, Callable[[Evidence], Answer]] = {
    "design": _design, "goal": _goal, "source": _source, "dates": _unpublished, "setting": _setting,
    "eligibility": _eligibility, "treatment": _unpublished, "preparation": _preparation, "subsets": _subsets,
    "names": _names, "missing": _missing, "acquisition": _acquisition, "predictors": _predictors, "measured": _measured,
    "outcome": _outcome, "annotators": _annotators, "test_labels": _test_labels, "blinding": _unpublished,
    "agreement": _unpublished, "parts": _parts, "disjoint": _disjoint, "size": _size, "differences": _differences,
    "people": _people, "flow": _flow, "data_sharing": _data_sharing,
}  # fmt: skip
