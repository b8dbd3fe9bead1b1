"""The page of a trained model: choose a run, bring images, see what the network predicts and where it looks.

Streamlit runs this file as a script for each visitor, in a thread of its own, anew after each action. `serve` starts a
server on this machine alone: what is uploaded stays in memory, and nothing is sent anywhere.
What belongs to a visitor is in `st.session_state` alone; visitors share the networks, and a network answers one of them at a
time. Pictures travel inside the page's own text and not as files of the server, which any visitor could ask for.
"""

import logging
import sys
import threading
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st
from PIL import Image
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from pneumolib.data.pixels import equalize, load_image
from pneumolib.errors import InputError, ModelError
from pneumolib.params import ImageParams, flatten
from pneumolib.project import in_root
from pneumolib.reporting.figures import PNEUMONIA
from pneumolib.reporting.gallery import STRONGEST_COVER, jpeg_source, overlay, strongest_place
from pneumolib.reporting.prose import sentence
from pneumolib.reporting.results import MODEL_FILE
from pneumolib.serve.predict import Scored, csv_row, score_images
from pneumolib.serve.trained import RESEARCH_ONLY, TrainedModel, find_run, load_trained, trained_runs
from pneumolib.serve.uploads import MOST_FILES, SAMPLES, safe_error, sample, take_in
from pneumolib.text import csv_cell, html_text

MOST_MODELS = 3  # in memory at once
MOST_UPLOAD_MB = (
    200  # refused by the browser; below it, files above `data.max_file_mb` are refused by us, who can say more
)
SHOWN_PX = 448  # side of a picture on the page, which is equalised with the defaults of `ImageParams`
OPACITY = "How much of the map is laid over the image"
WAYS = {"none": "As read", "hist": "Histogram equalisation", "clahe": "CLAHE"}
STYLE = Path(__file__).with_name("app.css").read_text("utf-8").replace("MOST_UPLOAD_MB", str(MOST_UPLOAD_MB))


def serve(run: str | None, port: int, browse: bool) -> None:
    """Show the page until interrupted.

    Args:
        run: chosen to begin with, a folder or `study/run`; None for the one that was finished last.
        port: where it listens, on localhost only.
        browse: open a browser.
    Raises:
        InputError: there is no trained run.
        ModelError: no such run.
    """
    known = {find_run(name): name for name in trained_runs()}
    if not known and run is None:
        raise InputError(f"No run with {MODEL_FILE} in {in_root('runs')}: `make report` trains one, on drawn images")
    first = [] if run is None else [known.get(find_run(run), str(find_run(run)))]
    keep_private()
    from streamlit.web import cli

    cli.main(["run", __file__, *settings(port, browse), "--", *first], standalone_mode=False)


def settings(port: int, browse: bool) -> list[str]:
    """Streamlit's options as on its command line; they override a user's own configuration."""
    fixed = tomllib.loads(Path(__file__).with_name("app.toml").read_text("utf-8"))
    own = {"server.port": port, "server.headless": not browse, "server.maxUploadSize": MOST_UPLOAD_MB}
    pairs = [(name, value) for name, value in (flatten(fixed) | own).items() for value in np.atleast_1d(value)]
    return [word for name, value in pairs for word in (f"--{name}", str(value).lower())]


def keep_private() -> None:
    """Nothing of a file reaches the log or the disk.

    For the whole process, because `warnings.catch_warnings` is not safe where several visitors have a thread each.
    """
    from starlette.formparsers import MultiPartParser

    # pydicom's messages quote the values that they complain about; its logger's level is set anew when it is imported.
    logging.getLogger("pydicom").propagate = False
    warnings.simplefilter("ignore")
    # Streamlit parses what a browser sends by this class, which puts all above a megabyte into a temporary file.
    MultiPartParser.spool_max_size = (MOST_UPLOAD_MB + 1) * 2**20
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def show(first: str | None) -> None:
    """The whole page. `first` is the run to begin with, `study/run` or a folder; None for the one that was finished last."""
    icon = Image.new("RGB", (32, 32), PNEUMONIA)
    st.set_page_config(page_title="pneumolib: a trained model at work", layout="wide", page_icon=icon)
    st.html(f'<style>{STYLE}</style><div class="pn-banner" role="note">{RESEARCH_ONLY}</div>')
    st.title("A trained model at work", anchor=False)
    for key, empty in {"taken": [], "uploader": 0, "scored": {}, "looked": {}}.items():
        st.session_state.setdefault(key, empty)
    run = _choose_run(first)
    try:
        with st.container():  # keeps the place of what shows the wait, so that nothing below it moves when it goes
            model, lock = _load(run, _changed(run))
    except (ModelError, OSError) as fault:
        st.error("This run cannot be used.")
        st.html(f'<p class="pn-run">{html_text(fault)}</p>')
        return
    st.html(f'<p class="pn-run">{html_text(sentence("serve.run", r=model.result))}</p>')
    if model.result.synthetic:
        st.info("This network was trained on **drawn images**. What it says of a real radiograph means nothing.")
    _bring_images(model)
    if st.session_state.taken:
        _show_results(model, lock)


def _choose_run(first: str | None) -> str:
    runs = trained_runs()
    if first is not None and first not in runs:
        runs = [first, *runs]
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


def _bring_images(model: TrainedModel) -> None:
    key = f"uploader {st.session_state.uploader}"
    label = "Your radiographs: JPEG, PNG or DICOM"
    st.file_uploader(label, accept_multiple_files=True, key=key, on_change=_take_uploaded, args=(key, model))
    st.caption(sentence("serve.uploads", megabytes=f"{model.limits.max_file_mb:g}", files=MOST_FILES))
    st.write("No radiograph at hand? Draw one; it shows nobody:")
    with st.container(horizontal=True):
        for title in SAMPLES:
            st.button(f"Draw: {title}", on_click=_take_sample, args=(title,))


def _take_uploaded(key: str, model: TrainedModel) -> None:
    """Take over what was uploaded and put a fresh uploader in its place, whose list of file names is empty.

    Streamlit's own store would keep a second copy for as long as the tab is open, which nothing can remove any more.
    """
    state, context = st.session_state, get_script_run_ctx()
    # A browser that has not seen the fresh uploader yet names files again that were taken in, which are gone.
    files = [file for file in state[key] if isinstance(file, UploadedFile)]
    state.taken += take_in(((file.name, file.getvalue()) for file in files), state.taken, model.limits)
    for file in files:
        context.uploaded_file_mgr.remove_file(context.session_id, file.file_id)
    state.uploader += 1


def _take_sample(title: str) -> None:
    state = st.session_state
    state.taken += take_in([sample(title, state.taken)], state.taken)
    state.closer = len(state.taken) - 1


def _remove_all() -> None:
    st.session_state.update(taken=[], scored={}, looked={}, closer=None)


def _show_results(model: TrainedModel, lock: threading.Lock) -> None:
    # Before anything that could fail on a file: a visitor can always be rid of it.
    st.button("Remove all images", on_click=_remove_all)
    scored = _score_all(model, lock)
    for one in scored:
        if one.error:
            st.html(f'<p class="pn-name">{html_text(one.name)}: not read: {html_text(one.error)}</p>')
    rows = table(model, scored)
    read = rows[rows.error.isna()]
    if len(read) > 1:
        st.header(f"{len(read)} images, threshold {percent(model.threshold.value)}", anchor=False)
        shown = read[["file", "probability", "predicted_class", "warnings"]]
        share = st.column_config.ProgressColumn("pneumonia probability", format="percent", max_value=1, width="medium")
        titles = {"file": "image", "predicted_class": "predicted class", "probability": share}
        st.dataframe(shown, hide_index=True, height="content", column_config=titles)
    if len(read):
        _show_closer(model, lock, scored)
    text = rows.to_csv(index=False)
    st.download_button("Download the table (CSV)", text, "pneumolib.csv", "text/csv", on_click="ignore")


def table(model: TrainedModel, scored: Sequence[Scored]) -> pd.DataFrame:
    """All files, a row each: the columns of `pneumolib predict --csv`, and the run instead of a map."""
    rows = pd.DataFrame([csv_row(model, one) for one in scored]).drop(columns="map").assign(run=csv_cell(model.name))
    return rows.astype({"probability": float})


def _score_all(model: TrainedModel, lock: threading.Lock) -> list[Scored]:
    """Of each file in turn, with what was found before; visitors take turns file by file."""
    taken, known = st.session_state.taken, st.session_state.scored
    keys = [(*_identity(model), number) for number in range(len(taken))]
    due = [key for key in keys if key not in known]
    progress = st.empty()
    for done, key in enumerate(due):
        progress.progress(done / len(due), f"Reading image {done + 1} of {len(due)}")
        one = taken[key[-1]]
        found = Scored(one.name, error=one.error)
        if not one.error:
            with lock:
                [found] = score_images(model, [(one.name, one.raw)])
        known[key] = replace(found, error=safe_error(one, found.error)) if found.error else found
    progress.empty()
    return [known[key] for key in keys]


def _identity(model: TrainedModel) -> tuple[str, str | None]:
    """A run that is trained again answers anew: its numbers must not appear beside another one's threshold."""
    return str(model.folder), model.result.model_sha256


@st.fragment
def _show_closer(model: TrainedModel, lock: threading.Lock, scored: list[Scored]) -> None:
    """One image and its map; the slider and the choice run this part alone."""
    good = [number for number, one in enumerate(scored) if one.error is None]
    if st.session_state.get("closer") not in good:
        st.session_state.closer = good[0]
    if len(good) > 1:
        st.selectbox("Image", good, key="closer", format_func=lambda number: scored[number].name)
    number = st.session_state.closer
    one = scored[number]
    pixels, saliency = _look(model, lock, number, one)
    left, right = st.columns(2, gap="large")
    with right:
        st.html(f'<p class="pn-name">{html_text(one.name)}</p>')
        st.metric("Pneumonia probability", f"{percent(one.probability)} → {one.predicted_class}")
        st.progress(one.probability)
        st.write(sentence("serve.threshold", one.predicted_class, percent(model.threshold.value), model))
        if one.warnings:
            st.warning("\n".join(["This image is unlike those of the training:", *(f"- {w}" for w in one.warnings)]))
    with left:
        place = st.container()
        shown = saliency.any()
        opacity = st.slider(OPACITY, 0, 100, round(100 * STRONGEST_COVER), 5, format="%d%%", disabled=not shown)
        place.html(_map_picture(model, one, pixels, saliency, opacity / 100))
    st.subheader("Equalisation", anchor=False)
    size = f"{model.image.size_px} x {model.image.size_px} pixels"
    for (way, name), column in zip(WAYS.items(), st.columns(len(WAYS)), strict=True):
        used = f"; used by the network, at {size}" if way == model.image.equalize else ""
        column.html(picture(equalize(pixels, ImageParams(equalize=way)), f"{one.name}, {name}", name + used))


def _look(model: TrainedModel, lock: threading.Lock, number: int, one: Scored) -> tuple[np.ndarray, np.ndarray]:
    """The image, `SHOWN_PX` wide and not equalised, and its map; kept while the visitor stays."""
    looked, key = st.session_state.looked, (*_identity(model), number)
    if key not in looked:
        # Imported here: it brings Keras, which `load_trained` has imported by now.
        from pneumolib.learning.explain import grad_cam

        with lock:
            saliency = grad_cam(model.network, one.pixels[None], int(one.probability >= model.threshold.value))[0]
        large = model.image.model_copy(update={"size_px": SHOWN_PX, "equalize": "none"})
        looked[key] = load_image(st.session_state.taken[number].raw, large, model.limits), saliency
    return looked[key]


def _map_picture(model: TrainedModel, one: Scored, pixels: np.ndarray, saliency: np.ndarray, opacity: float) -> str:
    place = strongest_place(saliency) if saliency.any() else ""
    shown = overlay(equalize(pixels, ImageParams(equalize=model.image.equalize)), saliency, SHOWN_PX, opacity)
    words = {"place": place, "predicted_class": one.predicted_class, "size_px": model.image.size_px}
    where, caption = sentence("serve.strongest", place=place), sentence("serve.map", **words)
    return picture(shown, f"{one.name} with its Grad-CAM map. {where}", caption)


def percent(share: float) -> str:
    """`93.1%`; never 0.0% or 100.0%, which no network can claim."""
    if share < 0.0005:
        return "below 0.1%"
    return "above 99.9%" if share >= 0.9995 else f"{share:.1%}"


def picture(pixels: np.ndarray, alt: str, caption: str) -> str:
    """HTML: a figure whose image is inside the text."""
    image = f'<img alt="{html_text(alt)}" src="{jpeg_source(pixels.squeeze(), quality=85)}">'
    return f'<figure class="pn-figure">{image}<figcaption>{html_text(caption)}</figcaption></figure>'


if __name__ == "__main__":
    show(sys.argv[1] if len(sys.argv) > 1 else None)
