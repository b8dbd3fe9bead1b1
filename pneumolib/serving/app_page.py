"""The page of a trained model: choose a run, bring images, see what the network says and where it looks.

Streamlit runs `show` for each visitor in a thread of its own, anew after each action. What belongs to a visitor lies in
`st.session_state` alone; visitors share the networks, and a network answers one of them at a time.
"""

import threading
from html import escape

import numpy as np
import streamlit as st
from PIL import Image

from pneumolib.project import in_root
from pneumolib.reporting.figures import NORMAL, PNEUMONIA
from pneumolib.reporting.overlays import STRONGEST_COVER, overlay
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serving import app_views as views
from pneumolib.serving.app_style import STYLE
from pneumolib.serving.scoring import Scored, score
from pneumolib.serving.trained import RESEARCH_ONLY, ModelError, TrainedModel, find_run, load_trained, trained_runs
from pneumolib.serving.uploads import MEGABYTE, MOST_BYTES, MOST_FILES, SAMPLES, Taken, safe_error, sample, take_in

MOST_MODELS = 3  # in memory at once
OPACITY = "How much of the map is laid over the image"


def show(first: str | None) -> None:
    """The whole page. `first` is the run to begin with, `study/run` or a folder; None for the one that was finished last."""
    st.set_page_config(page_title="pneumolib: a trained model at work", layout="wide", page_icon=_icon())
    st.html(STYLE)
    st.html(f'<div class="pn-banner" role="note">{RESEARCH_ONLY}</div>')
    st.title("A trained model at work", anchor=False)
    for key, empty in {"taken": [], "uploader": 0, "scored": {}, "looked": {}}.items():
        st.session_state.setdefault(key, empty)
    run = _choose_run(first)
    if run is None:
        return
    try:
        with st.container():  # keeps the place of what shows the wait, so that nothing below it moves when it goes
            model, lock = _load(run, _changed(run))
    except (ModelError, OSError) as fault:
        st.error(f"This run cannot be used. {fault}")
        return
    st.caption(views.run_words(model.result))
    if model.result.synthetic:
        st.info("This network was trained on **drawn images**. What it says of a real radiograph means nothing.")
    _bring_images()
    _show_results(model, lock)


def _icon() -> Image.Image:
    """Blue and vermilion, as normal and pneumonia everywhere."""
    halves = Image.new("RGB", (32, 32), NORMAL)
    halves.paste(PNEUMONIA, (16, 0, 32, 32))
    return halves


def _choose_run(first: str | None) -> str | None:
    runs = trained_runs()
    if first is not None and first not in runs:
        runs = [first, *runs]
    if not runs:
        st.error(f"There is no run with a model in {in_root('runs')}. `make report` trains one, on drawn images.")
        return None
    # Under a key, a choice stays when other runs are finished or the newest one is another.
    if st.session_state.get("run") not in runs:
        st.session_state.run = first if first is not None else max(runs, key=_changed)
    return st.selectbox("Trained run", runs, key="run")


def _changed(run: str) -> int:
    """When a run's model was written, in nanoseconds."""
    return (find_run(run) / MODEL_FILE).stat().st_mtime_ns


@st.cache_resource(max_entries=MOST_MODELS, show_spinner="Loading the network; the first one takes some seconds")
def _load(run: str, changed: int) -> tuple[TrainedModel, threading.Lock]:
    """A network, once for all visitors, and what they take turns by. `changed` makes it another one when its file is."""
    return load_trained(run), threading.Lock()


def _bring_images() -> None:
    state = st.session_state
    key = f"uploader {state.uploader}"
    st.file_uploader(
        "Your radiographs: JPEG, PNG or DICOM",
        accept_multiple_files=True,
        key=key,
        on_change=_take_uploaded,
        args=(key,),
    )
    st.caption(
        f"Up to {MOST_BYTES // MEGABYTE} MB each and {MOST_FILES} files. They stay in the memory of this machine, are written "
        "nowhere, and are gone when this tab is closed. Of DICOM files neither names nor numbers are shown, not even the file's."
    )
    st.write("No radiograph at hand? Draw one; it is taken of nobody:")
    with st.container(horizontal=True):
        for title in SAMPLES:
            st.button(f"Draw: {title}", on_click=_take_sample, args=(title,))


def _take_uploaded(key: str) -> None:
    """Take over what was uploaded and put a fresh uploader in its place, whose list of file names is empty."""
    state = st.session_state
    state.taken += take_in(((file.name, file.getvalue()) for file in state[key]), state.taken)
    state.uploader += 1


def _take_sample(title: str) -> None:
    state = st.session_state
    state.taken += take_in([sample(title, state.taken)], state.taken)
    state.closer = len(state.taken) - 1


def _remove_all() -> None:
    st.session_state.update(taken=[], scored={}, looked={}, closer=None)


def _show_results(model: TrainedModel, lock: threading.Lock) -> None:
    taken = st.session_state.taken
    if not taken:
        return
    # Before anything that could fail on a file: a visitor can always be rid of it.
    st.button("Remove all images", on_click=_remove_all)
    scored = _score_all(model, lock)
    st.header("One file" if len(taken) == 1 else f"{len(taken)} files", anchor=False)
    if len(taken) > 1 or scored[0].error:
        st.html(views.rows(scored, model.threshold))
    else:
        st.html(f'<p class="pn-name">{escape(scored[0].name)}</p>')
    if any(one.error is None for one in scored):
        _show_closer(model, lock, scored)
    text = views.table(scored, model.threshold, model.name)
    st.download_button("Take the table away (CSV)", text, "pneumolib.csv", "text/csv", on_click="ignore")


def _score_all(model: TrainedModel, lock: threading.Lock) -> list[Scored]:
    """Of each file in turn, with what was found before; visitors take turns file by file."""
    taken, known = st.session_state.taken, st.session_state.scored
    due = [number for number in range(len(taken)) if (_identity(model), number) not in known]
    bar = st.progress(0.0, "Reading images") if len(due) > 1 else None
    for done, number in enumerate(due):
        known[_identity(model), number] = _score_one(model, lock, taken[number])
        if bar:
            bar.progress((done + 1) / len(due), f"Read {done + 1} of {len(due)} images")
    if bar:
        bar.empty()
    return [known[_identity(model), number] for number in range(len(taken))]


def _identity(model: TrainedModel) -> tuple[str, str | None]:
    """A run that is trained again answers anew: its numbers must not stand beside another one's threshold."""
    return str(model.folder), model.result.model_sha256


def _score_one(model: TrainedModel, lock: threading.Lock, one: Taken) -> Scored:
    if one.error:
        return Scored(one.name, error=one.error)
    with lock:
        [found] = score(model, [(one.name, one.raw)])
    return Scored(one.name, error=safe_error(one, found.error)) if found.error else found


@st.fragment
def _show_closer(model: TrainedModel, lock: threading.Lock, scored: list[Scored]) -> None:
    """One image and its map; the slider and the choice run this part alone."""
    good = [number for number, one in enumerate(scored) if one.error is None]
    if st.session_state.get("closer") not in good:
        st.session_state.closer = good[0]
    if len(scored) > 1:
        st.header("One image, closer", anchor=False)
        st.selectbox("Image", good, key="closer", format_func=lambda number: scored[number].name)
    number = st.session_state.closer
    one = scored[number]
    pixels, saliency = _look(model, lock, number, one)
    left, right = st.columns(2, gap="large")
    with right:
        st.html(
            f'<p class="pn-head">{views.badge(one)}</p>{views.bar(one, model.threshold)}{views.scale(model.threshold)}'
        )
        st.write(views.call_words(one, model.threshold))
        st.write(views.calibrated_words(one))
        if one.warnings:
            st.warning("\n".join(["This image is unlike those of the training:", *(f"- {w}" for w in one.warnings)]))
    with left:
        place = st.container()
        opacity = st.slider(
            OPACITY, 0, 100, round(100 * STRONGEST_COVER), 5, format="%d%%", disabled=not saliency.any()
        )
        place.html(_map_picture(model, one, pixels, saliency, opacity / 100))
    _show_equalisation(model, one, pixels)


def _look(model: TrainedModel, lock: threading.Lock, number: int, one: Scored) -> tuple[np.ndarray, np.ndarray]:
    """The picture to show and the map of the call, kept while the visitor stays."""
    looked = st.session_state.looked
    if (_identity(model), number) not in looked:
        # Imported here: it brings Keras, which `load_trained` has imported by now.
        from pneumolib.learning.explain import grad_cam

        with lock:
            saliency = grad_cam(model.network, one.pixels[None], towards=views.label_of(one))[0]
        looked[_identity(model), number] = views.large(st.session_state.taken[number].raw, model.image), saliency
    return looked[_identity(model), number]


def _map_picture(model: TrainedModel, one: Scored, pixels: np.ndarray, saliency: np.ndarray, opacity: float) -> str:
    shown = views.equalised(pixels, model.image.equalize)
    where = views.strongest(saliency)
    words = where
    if saliency.any():
        words = (
            f"Colour shows where the network found evidence for its call, {one.call} (Grad-CAM). {where} It does not prove "
            "that something is to be seen there."
        )
    caption = f"{words} The network itself sees {model.image.size_px} x {model.image.size_px} pixels."
    picture = overlay(shown, saliency, views.SHOWN_PX, opacity)
    return views.picture(picture, f"{one.name} with the map of its call. {where}", caption)


def _show_equalisation(model: TrainedModel, one: Scored, pixels: np.ndarray) -> None:
    st.subheader("What equalisation does to it", anchor=False)
    figures = []
    for way, name in views.WAYS.items():
        seen = "; so the network sees it" if way == model.image.equalize else ""
        figures.append(
            views.picture(views.equalised(pixels, way), f"{one.name}, {name}", f"{name[0].upper()}{name[1:]}{seen}")
        )
    st.html(f'<div class="pn-trio">{"".join(figures)}</div>')
