"""`make test-costs` counts the programs of each test file."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
from tests.costs import Compilations, Costs


def test_the_programs_of_a_test_are_counted_and_the_dearest_files_come_first():
    compilations = Compilations()
    jax.jit(lambda x: x * 3 + len(compilations.durations))(jnp.ones(3)).block_until_ready()
    assert compilations.durations
    costs = Costs(shown=1)
    for file, programs in (("a.py", 1), ("b.py", 2), ("b.py", 3)):
        properties = [("programs", (programs, 0.5))]
        report = SimpleNamespace(nodeid=f"{file}::test", user_properties=properties, duration=1.0)
        costs.pytest_runtest_logreport(report)
    _, first, total = costs.table().splitlines()
    assert first.split() == ["5", "1.0", "2.0", "b.py"]
    assert total.split() == ["6", "1.5", "3.0", "all", "2", "files"]
