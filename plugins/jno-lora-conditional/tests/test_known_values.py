"""A value of the parameter that is known while a step is compiled."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import Net
from jno_lora_conditional import Conditional, Indexed, Network, Powers, at
from jno_lora_conditional.testing import trained_at_random

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("basis", "z", "is_summed"),
    [
        (Indexed(4), 2, True),
        (Powers(source=0.1), 0.3, True),
        (Powers(source=0.1), jnp.array(0.3), True),
        (Network(source=0.1, key=KEY), 0.3, False),  # its arrays are traced
    ],
)
def test_directions_are_summed_for_a_known_value(basis, z, is_summed):
    """A roll-out over four contexts would cost four products for each call otherwise."""
    net = Net(eqx.nn.Linear(4, 3, key=KEY)).freeze().lora(rank=2)
    conditional = trained_at_random(Conditional(net, basis))
    seen = []

    @eqx.filter_jit
    def step(conditional, x):
        adapter = at(conditional, z)
        seen.append(adapter.direction_weights is None)
        return adapter(x)

    x = jnp.ones(4)
    y = step(conditional, x)
    assert seen == [is_summed]
    assert jnp.allclose(y, at(conditional, z)(x), atol=1e-5)
