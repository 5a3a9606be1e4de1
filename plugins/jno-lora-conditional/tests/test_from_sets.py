"""Trained sets, interpolated."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import perturb

from jno.lora import Net, SelectionError, extract_adapters, merge_lora
from jno_lora_conditional import Hats, at, from_sets, merge

MODEL = eqx.nn.MLP(3, 2, 8, 1, jnp.tanh, key=jax.random.key(0))
X = jnp.array([0.3, -0.5, 0.8])
VALUES = (1.0, 0.1, 0.3)


def trained(seed, wrapper="lora", rank=1, model=MODEL, **arguments):
    net = Net(model).freeze().lora(rank=rank, alpha=2.0, wrapper=wrapper, **arguments)
    return perturb(net.module, 0.3, seed)


def pairs(models):
    return [(z, extract_adapters(m)) for z, m in zip(VALUES, models, strict=True)]


@pytest.mark.parametrize(("wrapper", "ranks"), [("rslora", (1, 1, 1)), ("lora", (2, 1, 2))])
def test_sets_at_their_values(wrapper, ranks):
    """Ranks of 5 are more than the layers allow, so that whole matrices move."""
    models = [trained(seed, wrapper, rank) for seed, rank in enumerate(ranks)]
    conditional = from_sets(MODEL, pairs(models), source=0.5)
    run = jax.jit(lambda z: at(conditional, z)(X))
    for z, model in zip(VALUES, models, strict=True):
        np.testing.assert_allclose(run(z), model(X), atol=1e-6)
    np.testing.assert_array_equal(at(conditional, 0.5)(X), MODEL(X))
    assert eqx.tree_equal(merge(conditional, 0.5), MODEL)
    np.testing.assert_allclose(run(7.0), models[0](X), atol=1e-6)  # constant outside
    # Between values, the weights are the mean.
    first, second = (merge_lora(models[i]).layers[0].weight for i in (1, 2))
    middle = merge(conditional, 0.2).layers[0].weight
    np.testing.assert_allclose(middle, (first + second) / 2, atol=1e-6)


def test_without_a_source_and_beyond_the_values():
    models = [trained(seed) for seed in range(2)]
    sets = [(0.0, extract_adapters(models[0])), (1.0, extract_adapters(models[1]))]
    conditional = from_sets(MODEL, sets, extrapolate=True)
    weight = [merge_lora(m).layers[1].weight for m in models]
    np.testing.assert_allclose(merge(conditional, 0.0).layers[1].weight, weight[0], atol=1e-6)
    beyond = merge(conditional, 3.0).layers[1].weight
    np.testing.assert_allclose(beyond, weight[0] + 3 * (weight[1] - weight[0]), atol=1e-5)
    # A set without a layer leaves it as it is.
    models = [models[0], trained(1, target="layers/0")]
    conditional = from_sets(MODEL, [(z, extract_adapters(m)) for z, m in enumerate(models)])
    assert eqx.tree_equal(merge(conditional, 1.0).layers[1], MODEL.layers[1])
    np.testing.assert_allclose(at(conditional, 0.0)(X), models[0](X), atol=1e-6)


def test_hats():
    phi = jax.jit(jax.vmap(Hats([3.0, 1.0], source=2.0)))
    expected = [[1, 0], [1, 0], [0.5, 0], [0, 0], [0, 0.25], [0, 1], [0, 1]]
    np.testing.assert_array_equal(phi(jnp.array([0, 1, 1.5, 2, 2.25, 3, 9])), expected)
    beyond = Hats([3.0, 1.0], source=2.0, extrapolate=True)
    np.testing.assert_array_equal(beyond(5.0), [0, 3])
    np.testing.assert_array_equal(Hats([0.0, 1.0])(0.0), [1, 0])
    for arguments in ({"nodes": [1.0]}, {"nodes": [1.0, 1.0]}, {"nodes": [1.0], "source": 1.0}):
        with pytest.raises(SelectionError, match="at least two different nodes"):
            Hats(**arguments)
    with pytest.raises(SelectionError, match="`z` has the shape"):
        beyond(jnp.zeros(2))


@pytest.mark.usefixtures("unchecked")
def test_sets_that_are_refused():
    lora, dora = (extract_adapters(trained(0, wrapper)) for wrapper in ("lora", "dora"))
    with pytest.raises(
        SelectionError, match=r"layers/0 at 1: the update of a DoRALinear(.|\n)*to_"
    ):
        from_sets(MODEL, [(0.0, lora), (1.0, dora)])
    rslora = extract_adapters(trained(0, "rslora"))
    with pytest.raises(SelectionError, match="layers/0 at 1: a rsLoRALinear, but a LoRALinear at"):
        from_sets(MODEL, [(0.0, lora), (1.0, rslora)])
    with pytest.raises(SelectionError, match="there is a set for this value too"):
        from_sets(MODEL, [(0.0, lora), (1.0, lora)], source=1.0)
    with pytest.raises(SelectionError, match="at least two different nodes"):
        from_sets(MODEL, [(0.0, lora), (0.0, lora)])
    with pytest.raises(SelectionError, match="must be pairs of a number and a set"):
        from_sets(MODEL, [(0.0, lora), (1.0, MODEL)])
    with pytest.raises(SelectionError, match="must be pairs of a number and a set"):
        from_sets(MODEL, [lora, lora])
    other = eqx.nn.MLP(5, 2, 8, 1, key=jax.random.key(0))
    with pytest.raises(SelectionError, match="do not fit the model"):
        from_sets(other, [(0.0, lora), (1.0, lora)])
