"""Which runs build on which, what a forced run forgets, and the same study made small. No kernel runs here."""

import json
import shutil
from unittest.mock import Mock

import pytest

from conftest import REPO, TINY_STUDY
from pneumolib.errors import DataError, ParamsError, PneumolibError
from pneumolib.evaluation.metrics import METRICS
from pneumolib.params import PublishedMetric, check
from pneumolib.project import load_run, smoke_params
from pneumolib.study import run as running
from pneumolib.study.plan import plan

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
        "05_fine_tuning-wide": "fine_tuning: {continues: 03_baseline_cnn}\n", "07_comparison": "",
    }.items():  # fmt: skip
        project.write(f"params/tiny/{run}.yaml", text)
    return project.root


def external(run: str, **data) -> str:
    values = {"source": "synthetic", "root": "data/tiny-2", "n_images": 24, "hospital": 2} | data
    return json.dumps({"external": {"run": run, "data": values}})


def test_which_runs_and_images_a_run_builds_on(root, project):
    """A training is followed by its evaluation. An external validation needs other images too."""
    project.write("params/tiny/08_external_validation.yaml", external("04_transfer_learning-vgg19"))
    steps = {step.run: step for step in plan(root / "params/tiny")}
    assert {run: step.upstream for run, step in steps.items()} == {
        "03_baseline_cnn-wide": [],
        (baseline := "06_evaluation-03_baseline_cnn-wide"): ["03_baseline_cnn-wide"],
        "04_transfer_learning-vgg19": [],
        (transfer := "06_evaluation-04_transfer_learning-vgg19"): ["04_transfer_learning-vgg19"],
        "05_fine_tuning-vgg19": ["04_transfer_learning-vgg19"],
        "06_evaluation-05_fine_tuning-vgg19": ["05_fine_tuning-vgg19", transfer],
        "05_fine_tuning-wide": ["03_baseline_cnn-wide"],
        "06_evaluation-05_fine_tuning-wide": ["05_fine_tuning-wide", baseline],
        "07_comparison": [run for run in steps if run.startswith("06")],
        "08_external_validation": [transfer],
    }
    assert steps["05_fine_tuning-vgg19"].reasons == ["04_transfer_learning-vgg19 is due"]
    made_from = steps["08_external_validation"].inputs
    own, other = made_from["data"].split("+")
    assert own == steps["07_comparison"].inputs["data"]
    assert "external.data.n_images" in made_from["parameters"]
    assert "external.data.root" not in made_from["parameters"]
    project.write("params/tiny/08_external_validation.yaml", external("04_transfer_learning-vgg19", n_images=25))
    changed = plan(root / "params/tiny")[-1].inputs["data"].split("+")
    assert changed[0] == own
    assert changed[1] != other
    absent = external("03_baseline_cnn-wide", source="csv", root="data/other.csv")
    project.write("params/tiny/08_external_validation.yaml", absent)
    with pytest.raises(DataError, match=r"08_external_validation\.yaml: external: data\.root: .*other\.csv is no file"):
        plan(root / "params/tiny")
    with pytest.raises(DataError, match=r"none is not a folder\..*: make report STUDY=kermany DATA=<folder>$"):
        plan(REPO / "params/kermany", "none")


@pytest.mark.parametrize(
    ("run", "text", "said"),
    [
        ("05_fine_tuning-vgg19", "", "fine_tuning.continues: received '04_transfer_learning', so it builds on 04_transfer_learning-vgg19: "),
        ("08_external_validation", external("03_baseline_cnn"), "external.run: received '03_baseline_cnn', so it builds on 03_baseline_cnn: "),
        ("08_external_validation", external("07_comparison"), "external.run: received '07_comparison', so it builds on 07_comparison: "),
    ],
)  # fmt: skip
def test_a_run_that_builds_on_none_of_the_study_is_refused_before_anything_is_drawn(root, project, run, text, said):
    (root / "params/tiny/04_transfer_learning-vgg19.yaml").unlink()
    project.write(f"params/tiny/{run}.yaml", text)
    with pytest.raises(ParamsError) as caught:
        plan(root / "params/tiny")
    assert f"params/tiny/{run}.yaml: {said}the study has no training run of that name." in str(caught.value)
    assert "Training runs: 03_baseline_cnn-wide, 05_fine_tuning-vgg19" in str(caught.value)
    assert not (root / "data").exists()


SWEEP = "sweep: {training.learning_rate: [3.0e-4, 1.0e-3], seed: [1, 2]}\ntraining: {epochs: 1}\n"


def test_a_sweep_is_a_run_for_each_combination(root, project):
    """Each is evaluated, stands in the comparison, and can be continued or tried elsewhere by its name."""
    project.write("params/tiny/03_baseline_cnn-wide.yaml", SWEEP)
    project.write(
        "params/tiny/05_fine_tuning-wide.yaml",
        "fine_tuning: {continues: 03_baseline_cnn-wide-learning_rate-0.001-seed-2}\n",
    )
    steps = {step.run: step for step in plan(root / "params/tiny")}
    swept = {run: step.params for run, step in steps.items() if run.startswith("03_baseline_cnn-wide-")}
    assert {run: (p.training.learning_rate, p.seed, p.training.epochs) for run, p in swept.items()} == {
        "03_baseline_cnn-wide-learning_rate-0.0003-seed-1": (3e-4, 1, 1),
        "03_baseline_cnn-wide-learning_rate-0.0003-seed-2": (3e-4, 2, 1),
        "03_baseline_cnn-wide-learning_rate-0.001-seed-1": (1e-3, 1, 1),
        "03_baseline_cnn-wide-learning_rate-0.001-seed-2": (1e-3, 2, 1),
    }
    best = [*swept][-1]
    assert all(steps[f"06_evaluation-{run}"].params.seed == params.seed for run, params in swept.items())
    assert {f"06_evaluation-{run}" for run in swept} < set(steps["07_comparison"].upstream)
    assert steps["05_fine_tuning-wide"].upstream == [best]
    # One run of it, opened and run by its own name.
    said = project.run("run", "params/tiny/03_baseline_cnn-wide-none.yaml", code=2)
    assert best in said
    assert "seed = 2" in opened_copy(project, best)
    project.write(f"params/tiny/{best}.yaml", "training: {epochs: 77}\n")
    with pytest.raises(ParamsError, match=rf"{best} is a run of .*, too; rename one"):
        plan(root / "params/tiny")
    (root / f"params/tiny/{best}.yaml").unlink()
    project.write("params/tiny/05_fine_tuning-wide.yaml", "fine_tuning: {continues: 03_baseline_cnn}\n")
    with pytest.raises(ParamsError, match=rf"no training run of that name\..*Training runs: .*{best}"):
        plan(root / "params/tiny")


def opened_copy(project, run: str) -> str:
    project.run("open", f"tiny/{run}", "--no-browser")
    return (project.root / f"runs/interactive/tiny-{run}.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("run", "sweep", "said"),
    [
        ("05_fine_tuning-wide", "{seed: [1, 2]}", "only 03_baseline_cnn and 04_transfer_learning are swept"),
        ("03_baseline_cnn-wide", "{seed: 1}", "write keys with lists of values"),
        ("03_baseline_cnn-wide", "{seed: []}", "write keys with lists of values"),
        *(("03_baseline_cnn-wide", sweep, "write keys with lists of values") for sweep in ("[seed]", "{}", "[]", "0", "{1: [2]}")),
        ("03_baseline_cnn-wide", "{split.seed: [1, 2]}", "split.seed must be the same in all runs of a study"),
        ("03_baseline_cnn-wide", f"{{seed: {[*range(201)]}}}", "that makes 201 runs, and at most 200 are allowed"),
        ("03_baseline_cnn-wide", "{seed: [1, 2, 1]}", "two runs get one name"),
        ("03_baseline_cnn-wide", "{training.floors: [{}, {auroc: 0.9}]}", "write keys with lists of values"),
        ("03_baseline_cnn-wide", f"{{model.weights: [{'w' * 200}]}}", "more than 190 characters"),
        ("03_baseline_cnn-wide", "{training.epochs: [3]}\ntraining: {epochs: 9}", "training.epochs: set beside the sweep, too"),
        ("03_baseline_cnn-wide", "{seed: [3]}\nseed: 9", "seed: set beside the sweep, too; delete one"),
        ("03_baseline_cnn-wide", "{training.rate: [0.1]}", "training.rate: unknown key (received 0.1)"),
        ("03_baseline_cnn-wide", "{seed.x: [1]}", "seed: Input should be a valid integer (received {'x': 1})"),
        ("03_baseline_cnn-wide", "{features.views: [1]}", "features: notebook 03_baseline_cnn does not use it"),
    ],
)  # fmt: skip
def test_a_sweep_that_cannot_be_is_refused_by_file_and_key(root, project, run, sweep, said):
    project.write(f"params/tiny/{run}.yaml", f"sweep: {sweep}\n")
    with pytest.raises(ParamsError) as caught:
        plan(root / "params/tiny")
    assert f"params/tiny/{run}.yaml: " in str(caught.value)
    assert said in str(caught.value)


def test_faults_of_all_files_are_said_at_once(root, project):
    project.write("params/tiny/07_comparison.yaml", "model: {name: separable_cnn}\n")
    project.write("params/tiny/03_baseline_cnn-wide.yaml", "training: {epoch: 1}\n")
    said = project.run("report", "tiny", code=2)
    assert "07_comparison.yaml: model: notebook 07_comparison does not use it" in said
    assert "03_baseline_cnn-wide.yaml: training.epoch: unknown key" in said
    assert "no folder with NN_<notebook>.yaml. Studies found: tiny" in project.run("report", "none", code=2)
    project.write("params/tiny/06_evaluation-03_baseline_cnn.yaml", "")
    said = project.run("report", "tiny", code=2)
    assert "06_evaluation runs after every training run, with its parameters; delete this file" in said


def test_only_a_forced_run_forgets_its_training(root, monkeypatch):
    monkeypatch.setattr(running, "_run_notebook", Mock(side_effect=RuntimeError("stopped by the test")))
    for forced, reason in ((False, "has not finished yet"), (True, "FORCE=1")):
        step = plan(root / "params/tiny", force=forced)[0]
        assert (step.forced, step.reasons) == (forced, [reason])
        kept = step.training / "checkpoint.npz"
        other = root / "runs/tiny/trainings/04_transfer_learning-vgg19/checkpoint.npz"
        for file in (kept, other):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        with pytest.raises(PneumolibError, match="stopped by the test"):
            running.execute(step)
        assert kept.exists() != forced
        assert other.exists()


def test_what_smoke_makes_of_parameters():
    """Nothing is fetched or looked for; what decides which code runs stays."""
    made = smoke_params(check({
        "training": {"epochs": 40, "warmup_epochs": 2.0, "floors": {"auroc": 0.9}}, "image": {"size_px": 300, "channels": 3},
        "features": {"views": 0}, "split": {"validation": "as_published"}, "fine_tuning": {"unfreeze": "fire6_squeeze"},
        "model": {"name": "transfer", "backbone": "elsewhere.keras", "preprocess": "caffe", "head_units": 128},
    }))  # fmt: skip
    assert (made.features.views, made.training.floors, made.image.size_px) == (0, {"auroc": 0.9}, 128)
    assert (made.model.backbone, made.model.weights, made.model.preprocess) == ("MobileNetV2", "none", None)
    assert (made.model.head_units, made.fine_tuning.unfreeze) == (128, "all")
    vgg = {"name": "transfer", "backbone": "VGG19", "weights": "imagenet"}
    made = smoke_params(check({"model": vgg, "fine_tuning": {"unfreeze": 200}}))
    assert (made.model.backbone, made.model.weights, made.fine_tuning.unfreeze) == ("VGG19", "none", 10)


@pytest.mark.parametrize("study", sorted({p.parent for p in FILES}), ids=lambda p: p.name)
def test_every_study_of_the_repository_can_be_made_small(study):
    """And its published figures are beside runs that exist."""
    for path in sorted(p for p in FILES if p.parent == study):
        params, _ = load_run(path, smoke=True)
        assert params.study == f"{study.name}-smoke"
        assert (params.data.root, params.training.epochs) == ("data/smoke", 1)
        assert (params.external.data.hospital, params.external.data.n_images) == (2, params.data.n_images)
    published = load_run(study / "07_comparison.yaml")[0].published
    named = [name for name in published.figures if name[:2].isdigit()]
    assert [name for name in named if not (study / f"{name}.yaml").is_file()] == []
    assert bool(published.figures) == bool(published.source)
    assert set(published.other_data) <= set(published.figures)


def test_published_figures_are_test_metrics_of_ours():
    assert [name for name in METRICS if name not in ("mcc", "log_loss")] == list(PublishedMetric.__args__)
