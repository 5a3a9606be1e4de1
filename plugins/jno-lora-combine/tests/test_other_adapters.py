"""Nets in the place of a model, adapters without a rank, adapters that share arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.core.test_options import OutputGain
from tests.core.test_shared_arrays import X, adapted as of_tied, mlp, moved, run
from tests.core.toys import ToyLinear, shaken

from jno.lora import (
    AdapterSet,
    Net,
    SelectionError,
    adapter_effects,
    apply_lora,
    extract_adapters,
    plot_adapters,
    resolve,
    shrink,
    stack_adapters,
    swap_adapters,
    take_adapters,
    to_lora,
)


@pytest.mark.parametrize("function", [adapter_effects, plot_adapters, shrink, to_lora])
def test_nets_and_sets_are_refused_by_name(function, model, registry):
    net, name = Net(model).lora(1, wrapper=ToyLinear), function.__name__
    with pytest.raises(SelectionError, match=rf"^{name} takes a model.*Give net\.module$"):
        function(net)
    with pytest.raises(SelectionError, match=rf"^{name} takes a model, but was given an Adapter"):
        function(extract_adapters(net.module))


def test_adapters_without_a_rank_stack(model):
    adapted = shaken(apply_lora(model, key=jax.random.key(0), wrapper=OutputGain))
    adapters = extract_adapters(adapted)
    stacked = stack_adapters([adapters, adapters])
    assert stacked.adapters["head"].state["gain"].shape == (2, 2)


def test_sets_with_other_shared_arrays_do_not_stack():
    one = extract_adapters(of_tied())
    other = AdapterSet(one.adapters, {**one.shared, "tied-A": jnp.ones((3, 5))})
    with pytest.raises(
        SelectionError, match=r"shared arrays: \{'tied-A': 'float32\[2, 5\]', .*set 1"
    ):
        stack_adapters([one, other])


def test_sets_stack_with_their_shared_arrays():
    models = [of_tied(), moved(of_tied())]
    for model in (models[0], resolve(models[0])):
        assert len(adapter_effects(model)) == 3
    stacked = stack_adapters([extract_adapters(m) for m in models])
    assert stacked.shared["tied-A"].shape == (2, 2, 5)

    def one(slot, x):
        own = swap_adapters(mlp(), take_adapters(stacked, slot))
        return resolve(own)(x)

    found = jax.vmap(one)(jnp.array([1, 0]), jnp.asarray(X[:2]))
    expected = jnp.stack([run(models[1])[0], run(models[0])[1]])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
