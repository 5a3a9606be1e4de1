"""The studies are written for JAX's own defaults, and go on after they were killed."""

import jax
import pytest
from studies._records import read


@pytest.fixture(autouse=True)
def defaults():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def killed(file, lines=None):
    """Leave in a file of records what a run leaves that is killed while it writes the last line."""
    lines = file.read_text().splitlines() if lines is None else lines
    file.write_text("\n".join([*lines[:-1], lines[-1][:20]]))
    return lines[:-1]


def once(file, names):
    """The records of a file, which must hold each setting once."""
    records = read(file)
    settings = [tuple(record.get(name) for name in names) for record in records]
    assert len(set(settings)) == len(settings)
    return records
