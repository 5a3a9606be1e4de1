"""The environment of the matrix, and its table, which `--models-report` writes."""

from pathlib import Path

import jax
import pytest

from ._report import Table


def pytest_addoption(parser):
    parser.addoption(
        "--models-report", metavar="PATH", type=Path, help="write the table of tests/models there"
    )


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the process that xdist's workers report to
        config.pluginmanager.register(Table(config.getoption("--models-report", default=None)))


@pytest.fixture(autouse=True)
def _as_their_authors_run_them():
    """JAX's own defaults: these models add integers to floats, and vectors to matrices.

    That the adapters work under strict rules is what the tests of the plugins show. Warnings stay
    errors, as in the whole suite: no model gives one.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
