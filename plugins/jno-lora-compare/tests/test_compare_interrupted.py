"""Ctrl-C in `compare`: what is finished is returned, and nothing else has changed."""

from pathlib import Path

import equinox as eqx
import jax
import jax.tree_util as jtu
import numpy as np
import pytest
from compare_cases import SETTINGS, loss
from tests.core import interrupting
from tests.core.interrupting import state_of
from tests.core.toys import ToyLinear, ToyScale

import jno_lora_compare
import jno_lora_train
from jno.lora import Net
from jno_lora_compare import compare


class Interrupt(interrupting.Interrupt):
    """Counts the calls of the functions of jno-lora-compare and jno-lora-train too."""

    packages = (jno_lora_compare, jno_lora_train)
    sources = (interrupting.SOURCES, *(str(Path(package.__file__).parent) for package in packages))


# Two candidates, of which the first is there when the second is interrupted.
CANDIDATES = [ToyLinear, ToyScale]
# Functions that `compare` calls once for each candidate: as it builds, compiles and trains it.
PARTS = ("train_candidate", "compile", "fit", "milliseconds")
MODEL = eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))
LEAVES = jtu.tree_leaves(MODEL)


def run():
    batches = [(np.ones((6, 3), np.float32), np.zeros((6, 2), np.float32))]
    return compare(MODEL, loss, batches, CANDIDATES, **{**SETTINGS, "steps": 3, "rank": 1})


@pytest.fixture(scope="module")
def watched():
    """The names of the functions that are called, in order, and the result."""
    run()  # what is cached is not called again
    counter, results = Interrupt(), []
    counter.during(lambda: results.append(run()))
    (result,) = results
    assert [row.error for row in result] == [None, None]
    return counter.names, result


def calls_of(name, names):
    return [number for number, called in enumerate(names, start=1) if called == name]


@pytest.mark.parametrize("part", PARTS)
def test_an_interrupted_comparison_returns_the_finished_runs(part, watched):
    net = Net(MODEL).freeze().lora(1, wrapper=ToyScale).add_adapter("one").mask("layers/0")
    before = state_of(net)
    names, result = watched
    for candidate in (0, 1):
        made = []
        Interrupt(calls_of(part, names)[candidate]).during(lambda made=made: made.append(run()))
        (comparison,) = made
        assert comparison.interrupted
        assert [row.name for row in comparison] == [cls.__name__ for cls in CANDIDATES[:candidate]]
        for row, finished in zip(comparison, result, strict=False):
            assert row.error is None and row.losses == finished.losses
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    assert state_of(net) == before
    assert all(leaf is old for leaf, old in zip(jtu.tree_leaves(MODEL), LEAVES, strict=True))


def test_before_the_first_candidate_it_is_raised(watched):
    names, _ = watched
    for moment in {1, calls_of("check_loss", names)[0], calls_of("_train_all", names)[0]}:
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(run)
