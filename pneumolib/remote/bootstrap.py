"""The first code cell of every notebook, in one place."""

SOURCE = """\
# Makes Colab and Kaggle ready: the library at REF, a folder that lasts, the data. At home it does nothing.
from importlib.util import find_spec

LIBRARY, REF = "{repository}", "{ref}"
if find_spec("pneumolib") is None:
    get_ipython().run_line_magic("pip", f"install -q --no-deps lazy-loader git+{{LIBRARY}}@{{REF}}")
from pneumolib.hosts import prepare

here = prepare()"""


def bootstrap_cell(repository: str, ref: str) -> dict:
    """The cell as notebook JSON.

    Args:
        repository: address of the git repository.
        ref: branch, tag or commit to install from; what `make kaggle` and `make colab` build carries the commit.
    """
    source = SOURCE.format(repository=repository, ref=ref)
    return {"cell_type": "code", "execution_count": None, "id": "bootstrap", "metadata": {"tags": ["bootstrap"]},
            "outputs": [], "source": source.splitlines(keepends=True)}  # fmt: skip
