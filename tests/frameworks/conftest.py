"""Models of Flax and Haiku: run by `make test-frameworks` in an environment of their own.

`--frameworks-report PATH` writes the table of what passed between two comments of a page.
"""

import collections
import importlib.metadata
import os
import pathlib
import re

import jax
import pytest

# The tests do not depend on Flax and Haiku.
collect_ignore_glob = [] if os.environ.get("JNO_LORA_TEST_FRAMEWORKS") else ["test_*.py"]

NAMES = {"test_linen": "Flax Linen", "test_nnx": "Flax NNX", "test_haiku": "Haiku"}
METHODS = ("lora", "pissa", "vera", "dora", "oft", "ia3")


def pytest_addoption(parser):
    parser.addoption("--frameworks-report", metavar="PATH", type=pathlib.Path)


def pytest_configure(config):
    path = config.getoption("--frameworks-report", default=None)
    if path is not None:
        config.pluginmanager.register(Report(path))


class Report:
    """The table of the tests that ran: framework, test, methods."""

    def __init__(self, path):
        self.path = path
        self.found = collections.defaultdict(dict)

    def pytest_runtest_logreport(self, report):
        file, _, name = report.nodeid.partition("::")
        framework = NAMES.get(pathlib.Path(file).stem)
        if report.when != "call" or framework is None:
            return
        test, _, parameters = name.partition("[")
        given = parameters.rstrip("]").split("-") if parameters else []
        method = next((one for one in given if one in METHODS), "lora")
        others = [one for one in given if one not in METHODS]
        what = " ".join([test.removeprefix("test_").replace("_", " "), *others])
        self.found[framework, what][method] = report.outcome

    def pytest_sessionfinish(self):
        version = importlib.metadata.version
        versions = (f"{name} {version(name)}" for name in ("flax", "dm-haiku", "jax"))
        rows = [("framework", "test", *METHODS), ("---",) * (2 + len(METHODS))]
        for names, methods in sorted(self.found.items()):
            rows.append((*names, *(methods.get(method, "") for method in METHODS)))
        lines = [f"Run with {', '.join(versions)}.\n", *(f"| {' | '.join(row)} |" for row in rows)]
        text = "\n".join(lines) + "\n"
        pattern = r"(?<=<!-- frameworks -->\n).*?(?=<!-- /frameworks -->)"
        page, count = re.subn(pattern, lambda _: text, self.path.read_text(), flags=re.S)
        assert count == 1, f"{self.path} needs one place for the table"
        self.path.write_text(page)


@pytest.fixture(autouse=True)
def _as_their_authors_run_them():
    """JAX's own defaults: these layers multiply masks by floats, and add vectors to matrices."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
