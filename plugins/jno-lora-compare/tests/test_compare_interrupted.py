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
# The functions that `compare` calls at the start of each part of its work, once for each candidate.
STARTS = {"building": "train_candidate", "compiling": "compile", "training": "fit"}
# The first call after it: of the next part, or of what a row is made of, last of all.
ENDS = {"building": "compile", "compiling": "fit", "training": "milliseconds"}


@pytest.fixture(scope="module")
def model():
    return eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0))


@pytest.fixture(scope="module")
def run(model):
    batches = [(np.ones((6, 3), np.float32), np.zeros((6, 2), np.float32))]
    return lambda: compare(model, loss, batches, CANDIDATES, **{**SETTINGS, "steps": 3, "rank": 1})


@pytest.fixture(scope="module")
def watched(run):
    """The names of the functions that are called, in order, and the result."""
    run()  # what is cached is not called again
    counter, results = Interrupt(), []
    counter.during(lambda: results.append(run()))
    (result,) = results
    assert [row.error for row in result] == [None, None]
    return counter.names, result


def calls_of(part, candidate, names):
    """The numbers of some calls of a part of the work on a candidate, the first and last too."""
    begin = find(STARTS[part], names)[candidate]
    end = min(number for number in find(ENDS[part], names) if number > begin)
    assert end - begin > 3
    return sorted({*np.linspace(begin, end - 1, 4).astype(int).tolist()})


def find(name, names):
    return [number for number, found in enumerate(names, start=1) if found == name]


@pytest.mark.parametrize("candidate", [0, 1])
@pytest.mark.parametrize("part", STARTS)
def test_an_interrupted_comparison_returns_the_finished_runs(part, candidate, run, watched, model):
    net = Net(model).freeze().lora(1, wrapper=ToyScale).add_adapter("one").mask("layers/0")
    before, leaves = state_of(net), jtu.tree_leaves(model)
    values = [np.array(leaf) for leaf in leaves if isinstance(leaf, jax.Array)]
    names, result = watched
    for moment in calls_of(part, candidate, names):
        made = []
        Interrupt(moment).during(lambda made=made: made.append(run()))
        (comparison,) = made
        assert comparison.interrupted
        assert [row.name for row in comparison] == [cls.__name__ for cls in CANDIDATES[:candidate]]
        for row, other in zip(comparison, result, strict=False):
            assert row.error is None and row.losses == other.losses
        assert jax.config.jax_numpy_dtype_promotion == "strict"
        assert state_of(net) == before
        assert all(one is other for one, other in zip(jtu.tree_leaves(model), leaves, strict=True))
    now = [np.array(leaf) for leaf in leaves if isinstance(leaf, jax.Array)]
    assert all(map(np.array_equal, values, now))
    again = run()
    assert not again.interrupted
    assert [row.losses for row in again] == [row.losses for row in result]


def test_before_the_first_candidate_it_is_raised(run, watched, model):
    names, _ = watched
    leaves = jtu.tree_leaves(model)
    for moment in {1, 2, find("check_loss", names)[0], find("_train_all", names)[0]}:
        with pytest.raises(KeyboardInterrupt):
            Interrupt(moment).during(run)
        assert all(one is other for one, other in zip(jtu.tree_leaves(model), leaves, strict=True))
