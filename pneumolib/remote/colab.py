"""A bundle on Colab: the commands to type, for the `colab` command line and for Google Cloud's schedules.

Options of `colab` are those of google-colab-cli 0.7.5, by its own help; those of `gcloud colab schedules create` were read in
its reference. No account was at hand to run either.
"""

import shlex

from pneumolib.remote.bundle import Bundle

MACHINES = {"tpu": ["--tpu", "v5e1"], "gpu": ["--gpu", "T4"], "none": []}
PLACE = "/content/pneumolib"
HOURS = 11.5  # a session ends after twelve, or earlier
WEEKLY = "0 3 * * 6"  # Saturdays at three, UTC


def commands(bundle: Bundle, accelerator: str = "tpu", hours: float = 8.5) -> list[str]:
    """A session of one's own: open, mount Drive, where results go, run, close; one line each, in this order."""
    name, notebook = bundle.notebook.stem, str(bundle.notebook)
    lines = [
        ["colab", "new", "-s", name, *MACHINES[accelerator]],
        ["colab", "drivemount", "-s", name],
        ["colab", "exec", "-s", name, "-f", notebook, "--timeout", str(round(3600 * hours + 600))],
        ["colab", "stop", "-s", name],
    ]
    return [shlex.join(line) for line in lines]


def schedule(bundle: Bundle, hours: float = 8.5) -> list[str]:
    """Every week in Colab Enterprise; what stands in capitals is a person's own, and the machine is the template's.

    Results are the executed notebook in the bucket: that of the run cell says where it wrote.
    """
    name = bundle.notebook.stem
    lines = [
        ["gcloud", "storage", "cp", str(bundle.notebook), f"gs://BUCKET/{name}.ipynb"],
        [
            "gcloud", "colab", "schedules", "create", "--region=REGION", f"--display-name={name}",
            f"--cron-schedule=TZ=UTC {WEEKLY}", f"--execution-display-name={name}",
            f"--gcs-notebook-uri=gs://BUCKET/{name}.ipynb", f"--gcs-output-uri=gs://BUCKET/{name}",
            "--notebook-runtime-template=TEMPLATE", "--service-account=ACCOUNT",
            f"--execution-timeout={round(hours * 60 + 30)}m", "--max-concurrent-runs=1",
        ],
    ]  # fmt: skip
    return [shlex.join(line) for line in lines]
