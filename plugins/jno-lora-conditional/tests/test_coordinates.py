"""The coordinate in which adapters are linear: in bases, in `fit`, and chosen by errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import JnoLoraWarning, Net, SelectionError
from jno_lora_conditional import (
    Conditional,
    Function,
    Network,
    Powers,
    at,
    choose_coordinate,
    fit,
    load_conditional,
    save_conditional,
)
from jno_lora_conditional.testing import trained_at_random

KEY = jax.random.key(0)
X = jnp.array([0.3, -0.5, 0.8, 1.1])
FUNCTIONS = {"z": lambda z: z, "log": np.log, "sqrt": np.sqrt, "1/z": lambda z: 1 / z}
VALUES = (0.1, 0.06, 0.03, 0.01)


@pytest.mark.parametrize("coordinate", FUNCTIONS)
def test_powers_in_a_coordinate(coordinate):
    f = FUNCTIONS[coordinate]
    basis = Powers(source=0.1, unit=0.5, degree=2, coordinate=coordinate)
    u = (f(0.03) - f(0.1)) / 0.5
    np.testing.assert_allclose(basis(0.03), [u, u**2], rtol=1e-5)
    assert not np.any(basis(0.1))
    assert basis.log == (coordinate == "log")


def test_a_coordinate_that_the_source_lacks_is_refused():
    for arguments, fact in (
        ({"coordinate": "exp"}, "'sqrt'"),
        ({"log": True, "coordinate": "sqrt"}, "log=True"),
        ({"source": -1.0, "coordinate": "log"}, "source"),
        ({"source": 0.0, "coordinate": "1/z"}, "source"),
    ):
        with pytest.raises(SelectionError, match=fact):
            Powers(**{"source": 1.0, **arguments})
    with pytest.raises(SelectionError, match="non-negative parameters, but `z` is -2"):
        Powers(source=1.0, coordinate="sqrt")(-2.0)


@pytest.mark.parametrize("make", [Powers, lambda **given: Network(**given, key=KEY)])
@pytest.mark.parametrize("given", [{"log": True}, {"coordinate": "sqrt"}, {}])
def test_a_file_holds_the_coordinate(tmp_path, make, given):
    layer = eqx.nn.Linear(4, 3, key=KEY)
    basis = make(source=0.5, **given)
    conditional = trained_at_random(Conditional(Net(layer).freeze().lora(rank=2), basis))
    save_conditional(conditional, tmp_path / "c.safetensors")
    loaded = load_conditional(tmp_path / "c.safetensors", layer)
    assert loaded.basis.coordinate == basis.coordinate
    np.testing.assert_array_equal(at(loaded, 0.9)(X), at(conditional, 0.9)(X))


def moved(f):
    """Errors of a model that moves away from the solution in proportion to a coordinate."""
    return {z: np.sqrt(0.02**2 + (0.3 * (f(z) - f(0.1))) ** 2) for z in VALUES}


@pytest.mark.parametrize("coordinate", FUNCTIONS)
def test_the_right_coordinate_is_found_by_the_errors(coordinate):
    f = FUNCTIONS[coordinate]
    report = choose_coordinate(None, lambda _, e: e, moved(f), source=0.1)
    assert report.best == coordinate and report.values == VALUES[1:]
    assert report.rows[0].spread == pytest.approx(1, abs=1e-3)
    assert [row.spread for row in report.rows] == sorted(row.spread for row in report.rows)
    farthest = f(0.01) - f(0.1)
    np.testing.assert_allclose(report.rows[0].growth, 0.3, rtol=1e-3)
    expected = (f(0.03) - f(0.1)) / abs(farthest)
    np.testing.assert_allclose(report.basis(0.03), [expected], rtol=1e-5)
    assert coordinate in str(report) and "0.03" in str(report)


def test_functions_of_the_user_and_values_that_lack_a_coordinate():
    functions = {"square": jnp.square, "z": lambda z: z}
    errors = moved(np.square)
    report = choose_coordinate(None, lambda _, e: e, errors, 0.1, coordinates=functions)
    assert report.best == "square" and isinstance(report.basis, Function)
    np.testing.assert_allclose(report.basis(0.01), [-1], rtol=1e-5)
    errors = {0.0: 0.1, np.float32(0.2): 1.0, 0.4: 2.0}
    report = choose_coordinate(None, lambda _, e: e, errors, source=0.0)
    assert {row.coordinate for row in report.rows} == {"z", "sqrt"} and report.best == "z"
    with pytest.raises(SelectionError, match="None of the coordinates log"):
        choose_coordinate(None, lambda _, e: e, errors, source=0.0, coordinates=["log"])


def test_errors_that_do_not_grow_recommend_nothing():
    with pytest.warns(JnoLoraWarning, match="recommend no coordinate"):
        report = choose_coordinate(None, lambda _, e: e, {0.1: 0.05, 0.06: 0.04, 0.03: 0.2}, 0.1)
    assert report.best == "z" and "nothing can be told" in str(report)
    with pytest.raises(SelectionError, match="must be one of 'z', 'log'"):
        choose_coordinate(None, lambda _, e: e, moved(np.log), 0.1, coordinates=["lg"])
    tiny = {z * 1e-8: e for z, e in moved(np.log).items()}
    assert choose_coordinate(None, lambda _, e: e, tiny, source=1e-9).best == "log"


def test_data_that_cannot_tell_are_refused():
    for data, fact in (
        ({0.06: 1.0, 0.03: 2.0}, "of the source 0.1"),
        ({0.1: 0.1, 0.03: 2.0}, "two other values"),
        ({0.1: 0.1, 0.03: np.nan, 0.06: 1.0}, "must give numbers"),
    ):
        with pytest.raises(SelectionError, match=fact):
            choose_coordinate(None, lambda _, e: e, data, source=0.1)


def test_fit_steps_in_a_coordinate():
    layer = eqx.nn.Linear(4, 3, key=KEY)
    net = Net(layer).freeze().lora(rank=2)
    conditional = trained_at_random(Conditional(net, Powers(source=0.5)))
    y = at(conditional, 0.02)(X)

    def loss(model):
        return jnp.mean((model(X) - y) ** 2)

    found = fit(conditional, loss, jnp.array([0.01, 0.1, 1.0]), coordinate="log")
    assert found.z == pytest.approx(0.02, rel=1e-3) and found.loss < 1e-9
    with pytest.raises(SelectionError, match="'log'"):
        fit(conditional, loss, jnp.array([0.01, 0.1]), coordinate="exp")
    for coordinate in ("log", "sqrt", "1/z"):
        with pytest.raises(SelectionError, match="not 0, but go from 0 to"):
            fit(conditional, loss, jnp.array([0.0, 0.1]), coordinate=coordinate)
