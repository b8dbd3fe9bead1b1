"""Which runs build on which, what a forced run forgets, and the same study made small. No kernel runs here."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import REPO, TINY_STUDY
from pneumolib.errors import DataError, ParamsError, PneumolibError
from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import PublishedMetric, RunParams, check
from pneumolib.project import load_run, smoke_params, training_folder
from pneumolib.study import run as running
from pneumolib.study.plan import Step, plan, still_due

FILES = sorted(p for p in (REPO / "params").glob("*/*.yaml") if p.name != "study.yaml")
TRANSFER = "model: {name: transfer, backbone: VGG19, weights: imagenet}\n"


@pytest.fixture
def root(project, monkeypatch):
    """A project with a study of every kind of training, of which nothing has run."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(project.root))
    shutil.rmtree(project.root / "params/tiny")
    project.write("params/tiny/study.yaml", TINY_STUDY)
    for run, text in {
        "03_baseline_cnn-wide": "", "04_transfer_learning-vgg19": TRANSFER, "05_fine_tuning-vgg19": "",
        "05_fine_tuning-wide": "fine_tuning: {continues: 03_baseline_cnn}\n", "06_comparison": "",
    }.items():  # fmt: skip
        project.write(f"params/tiny/{run}.yaml", text)
    return project.root


def external(run: str, **data) -> str:
    values = {"source": "synthetic", "root": "data/tiny-2", "n_images": 24, "hospital": 2} | data
    return json.dumps({"external": {"run": run, "data": values}})


def test_which_runs_and_images_a_run_builds_on(root, project):
    """A fine-tuning continues the run of its variant, a comparison needs all, an external validation other images too."""
    project.write("params/tiny/07_external_validation.yaml", external("04_transfer_learning-vgg19"))
    steps = {step.run: step for step in plan(root / "params/tiny")}
    assert {run: step.upstream for run, step in steps.items()} == {
        "03_baseline_cnn-wide": [],
        "04_transfer_learning-vgg19": [],
        "05_fine_tuning-vgg19": ["04_transfer_learning-vgg19"],
        "05_fine_tuning-wide": ["03_baseline_cnn-wide"],
        "06_comparison": list(steps)[:4],
        "07_external_validation": ["04_transfer_learning-vgg19"],
    }
    assert steps["05_fine_tuning-vgg19"].reasons == ["04_transfer_learning-vgg19 runs again"]
    assert steps["05_fine_tuning-wide"].inputs["upstream"] == {"03_baseline_cnn-wide": "none"}
    assert not any(step.forced for step in steps.values())
    made_from = steps["07_external_validation"].inputs
    own, other = made_from["data"].split("+")
    assert own == steps["06_comparison"].inputs["data"]
    assert {"external.data.n_images", "external.data.root"} & made_from["parameters"].keys() == {
        "external.data.n_images"
    }
    project.write("params/tiny/07_external_validation.yaml", external("04_transfer_learning-vgg19", n_images=25))
    changed = plan(root / "params/tiny")
    assert [s.inputs["data"] == own for s in changed] == [True] * 5 + [False]
    assert changed[-1].inputs["data"].split("+")[1] != other


def test_a_fine_tuning_without_a_run_to_continue_is_refused_before_anything_is_drawn(root):
    (root / "params/tiny/04_transfer_learning-vgg19.yaml").unlink()
    with pytest.raises(ParamsError) as caught:
        plan(root / "params/tiny")
    assert str(caught.value).startswith(
        "params/tiny/05_fine_tuning-vgg19.yaml: fine_tuning.continues: received '04_transfer_learning', so it builds on "
        "04_transfer_learning-vgg19: the study has no training run of that name."
    )
    assert "Training runs: 03_baseline_cnn-wide, 05_fine_tuning-vgg19" in str(caught.value)
    assert not (root / "data").exists()


def test_an_external_validation_without_model_or_images_is_refused(root, project):
    file = "params/tiny/07_external_validation.yaml"
    for named in ("03_baseline_cnn", "06_comparison"):
        project.write(file, external(named))
        with pytest.raises(ParamsError) as caught:
            plan(root / "params/tiny")
        assert str(caught.value).startswith(f"{file}: external.run: received {named!r}, so it builds on {named}: ")
        assert "04_transfer_learning-vgg19, 05_fine_tuning-vgg19" in str(caught.value)
        assert not (root / "data").exists()
    project.write(file, external("03_baseline_cnn-wide", source="csv", root="data/other.csv"))
    with pytest.raises(DataError, match=r"07_external_validation\.yaml: external: data\.root: .*other\.csv is no file"):
        plan(root / "params/tiny")


def test_only_a_forced_run_forgets_its_training(root, monkeypatch):
    monkeypatch.setattr(running, "_run_notebook", fail)
    for forced, reason in ((False, "has not finished yet"), (True, "FORCE=1")):
        step = plan(root / "params/tiny", force=forced)[0]
        assert (step.forced, step.reasons) == (forced, [reason])
        kept = training_folder("tiny", step.run) / "checkpoint.npz"
        other = training_folder("tiny", "04_transfer_learning-vgg19") / "checkpoint.npz"
        for file in (kept, other):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"a whole epoch")
        with pytest.raises(PneumolibError, match="stopped by the test"):
            running.execute(step)
        assert kept.exists() != forced
        assert other.exists()


def fail(*_):
    raise RuntimeError("stopped by the test")


def test_a_smoke_run_is_a_study_of_its_own(root):
    step = plan(root / "params/tiny", smoke=True)[2]
    assert (step.study, step.run) == ("tiny-smoke", "05_fine_tuning-vgg19")
    assert step.folder == root / "runs/tiny-smoke/05_fine_tuning-vgg19"
    assert step.page == root / "reports/tiny-smoke/05_fine_tuning-vgg19.html"
    assert step.upstream == ["04_transfer_learning-vgg19"]
    assert len(list((root / "data/smoke").glob("*/*/*.jpeg"))) == step.params.data.n_images
    assert not (root / "data/tiny").exists()


def test_names_and_images_that_a_smoke_run_would_take_are_refused(root):
    with pytest.raises(ParamsError, match="DATA: received 'elsewhere' together with SMOKE=1"):
        plan(root / "params/tiny", "elsewhere", smoke=True)
    with pytest.raises(ParamsError, match=r"no such study; a smoke run is asked for by make report STUDY=tiny SMOKE=1"):
        plan(root / "params/tiny-smoke")
    shutil.copytree(root / "params/tiny", root / "params/tiny-smoke")
    with pytest.raises(ParamsError, match=r"^params/tiny-smoke: a study may not be named \.\.\.-smoke[^\n]*$"):
        plan(root / "params/tiny-smoke")


def small(**sections) -> RunParams:
    return smoke_params(check(sections))


def test_what_smoke_makes_of_parameters():
    made = small(
        training={"epochs": 40, "batch_size": 32, "schedule": "cosine", "warmup_epochs": 2.0, "floors": {"auroc": 0.9}},
        features={"views": 4}, split={"validation": "as_published"}, evaluation={"target_sensitivity": 0.9},
        image={"size_px": 300, "channels": 3},
    )  # fmt: skip
    assert (made.study, made.data.source, made.split.validation) == ("demo-smoke", "synthetic", "cut")
    assert (made.training.epochs, made.training.batch_size, made.training.warmup_epochs) == (1, 8, 0)
    assert (made.features.views, made.training.floors) == (1, {"auroc": 0.9})
    assert (made.image.size_px, made.evaluation.target_sensitivity) == (300, 0.9)
    assert small(features={"views": 0}, training={"batch_size": 2}).features.views == 0
    # A rule that needs no training.
    assert small(evaluation={"threshold_rule": "binormal"}).evaluation.threshold_rule == "youden"


def test_smoke_neither_fetches_nor_looks_for_weights():
    for weights in ("imagenet", "elsewhere.weights.h5", "none"):
        model = {"name": "transfer", "backbone": "VGG19", "weights": weights, "head_units": 128}
        made = small(model=model).model
        assert (made.backbone, made.weights, made.head_units) == ("VGG19", "none", 128)
    made = small(model={"name": "transfer", "backbone": "elsewhere.keras", "preprocess": "caffe"})
    assert (made.model.backbone, made.model.weights, made.model.preprocess) == ("MobileNetV2", "none", None)
    assert small(fine_tuning={"unfreeze": "fire6_squeeze"}).fine_tuning.unfreeze == "all"
    assert small(fine_tuning={"unfreeze": 10}).fine_tuning.unfreeze == 10


@pytest.mark.parametrize("study", sorted({p.parent for p in FILES}), ids=lambda p: p.name)
def test_every_study_of_the_repository_can_be_made_small(study):
    """And its published figures are beside runs that exist."""
    for path in sorted(p for p in FILES if p.parent == study):
        params, _ = load_run(path, smoke=True)
        assert params.study == f"{study.name}-smoke"
        assert (params.data.root, params.training.epochs) == ("data/smoke", 1)
        assert (params.external.data.hospital, params.external.data.n_images) == (2, params.data.n_images)
    published = load_run(study / "06_comparison.yaml")[0].published
    named = [name for name in published.figures if name[:2].isdigit()]
    assert [name for name in named if not (study / f"{name}.yaml").is_file()] == []
    assert bool(published.figures) == bool(published.source)
    assert set(published.other_data) <= set(published.figures)
    assert study.name in ("demo", "kermany") or named


def test_published_figures_are_test_metrics_of_ours():
    assert [name for name in METRICS if name not in ("mcc", "log_loss")] == list(PublishedMetric.__args__)
    for wrong in ({"kappa": 0.5}, {"accuracy": 87.0}, {}):
        with pytest.raises(ParamsError, match=r"parameters cell: published\.figures\.theirs"):
            check({"published": {"source": "x", "figures": {"theirs": wrong}}})


def test_what_is_still_due():
    def step(name, upstream=(), reasons=()):
        return Step(Path(f"params/x/{name}.yaml"), RunParams(), {}, list(upstream), list(reasons))

    explore, train = step("01_exploration", reasons=["FORCE=1"]), step("03_baseline_cnn", reasons=["parameter"])
    compare = step("06_comparison", upstream=["03_baseline_cnn"])
    assert still_due([explore, train, compare], []) == ["01_exploration", "03_baseline_cnn"]
    assert still_due([explore, train, compare], [train]) == ["01_exploration", "06_comparison"]
    assert still_due([explore, train, compare], [explore, train, compare]) == []
