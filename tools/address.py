"""Writes the repository's address, and the commit to install, into notebooks, guides and CITATION.cff: `python tools/address.py [REF]`.

The address is `Repository` under `[project.urls]` of pyproject.toml: a fork changes it there and runs this. REF is the branch
or tag that a notebook installs on Colab and Kaggle, `main` by default; write a release's tag before it is tagged.
"""

import argparse
import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

NAMES = {
    "01_exploration": "Exploration and audit",
    "02_histogram_equalisation": "Histogram equalisation",
    "03_baseline_cnn": "Baseline CNN",
    "04_transfer_learning": "Transfer learning",
    "05_fine_tuning": "Fine-tuning",
    "06_evaluation": "Evaluation",
    "07_comparison": "Comparison",
    "08_external_validation": "External validation",
}
BOOTSTRAP = """\
# Makes Colab and Kaggle ready: the library at REF, a folder that lasts, the data. At home it does nothing.
from importlib.util import find_spec

LIBRARY, REF = "{repository}", "{ref}"
if find_spec("pneumolib") is None:
    get_ipython().run_line_magic("pip", f"install -q --no-deps lazy-loader git+{{LIBRARY}}@{{REF}}")
from pneumolib.hosts import prepare

here = prepare()"""
BEGIN, END = "<!-- links: tools/address.py -->", "<!-- end of links -->"


def address(pyproject: dict) -> str:
    """The repository's address, without a slash at its end."""
    return pyproject["project"]["urls"]["Repository"].rstrip("/")


def links(repository: str, ref: str = "main") -> str:
    """The table of docs/platforms.md: each notebook on Colab and Kaggle."""
    owner_and_name = repository.removeprefix("https://github.com/")
    lines = ["| notebook | open it on |", "|---|---|"]
    for notebook, words in NAMES.items():
        file = f"{owner_and_name}/blob/{ref}/notebooks/{notebook}.ipynb"
        colab = f"https://colab.research.google.com/github/{file}"
        kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{file}"
        lines.append(f"| {words} | [Colab]({colab}), [Kaggle]({kaggle}) |")
    return "\n".join(lines)


def guides() -> list[Path]:
    """The files for readers: README, CONTRIBUTING, CHANGELOG and docs."""
    own = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return own + sorted((ROOT / "docs").glob("*.md"))


def with_links(text: str, repository: str, ref: str = "main") -> str:
    """A text with the repository's address in `git clone`, `repository-code` and the table of notebooks, where it has them."""
    table = f"{BEGIN}\n{links(repository, ref)}\n{END}"
    text = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: table, text, flags=re.DOTALL)
    return re.sub(r"((?:git clone|repository-code:) )\S+", lambda found: found[1] + repository, text)


def bootstrap_cell(repository: str, ref: str) -> dict:
    """The first code cell of every notebook, as JSON; `make kaggle` and `make colab` put their commit in place of REF."""
    source = BOOTSTRAP.format(repository=repository, ref=ref)
    return {"cell_type": "code", "execution_count": None, "id": "bootstrap", "metadata": {"tags": ["bootstrap"]},
            "outputs": [], "source": source.splitlines(keepends=True)}  # fmt: skip


def with_bootstrap(notebook: dict, repository: str, ref: str = "main") -> dict:
    """A notebook's JSON with its bootstrap cell written anew, or put behind the title."""
    cells = [cell for cell in notebook["cells"] if "bootstrap" not in cell["metadata"].get("tags", [])]
    cells.insert(1, bootstrap_cell(repository, ref))
    return notebook | {"cells": [cell | {"id": str(number)} for number, cell in enumerate(cells)]}


def main(ref: str = "main") -> None:
    """Write all of them."""
    repository = address(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    for name in NAMES:
        file = ROOT / f"notebooks/{name}.ipynb"
        notebook = with_bootstrap(json.loads(file.read_text(encoding="utf-8")), repository, ref)
        file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in [*guides(), ROOT / "CITATION.cff"]:
        file.write_text(with_links(file.read_text(encoding="utf-8"), repository, ref), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", nargs="?", default="main", help="branch, tag or commit that the links name [main]")
    main(parser.parse_args().ref)
