"""PEANuT and activated LoRA keep every promise, as the kit checks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora.testing import WrapperCase, parametrize_with_checks, standard_layers
from jno_lora_routed import ActivatedLoRA, Invocation, PEANuTLinear
from jno_lora_routed._peanut import ACTIVATIONS

R, IN, OUT, DEPTH = 2, 6, 4, 2
LINEAR, INPUTS = standard_layers()["Linear"]


class Always(Invocation):
    """Every token is active, as for a prompt that begins with the invocation."""

    def __call__(self, x, *, key=None):
        return jnp.ones(1, x.dtype)


class AlwaysActivatedLoRA(ActivatedLoRA):
    router_class = Always


def law(adapter):
    """In float64, one column of the weight after the other."""

    def silu(x):
        return x / (1 + np.exp(-x))

    W, A, B, E, D = (
        np.asarray(x, np.float64)
        for x in (adapter.base.weight, adapter.A, adapter.B, adapter.encoders, adapter.decoders)
    )
    columns = []
    for column in W.T:
        h0 = silu(A @ column)
        h1 = silu(E[0] @ h0)
        h2 = silu(E[1] @ h1)
        h3 = silu(D[0] @ h2) + h1
        columns.append(silu(D[1] @ h3) + h0)
    return W + adapter.alpha / adapter.rank * B @ np.stack(columns, 1)


CASES = [
    WrapperCase(
        PEANuTLinear,
        base=LINEAR,
        inputs=INPUTS,
        rank=R,
        options={"depth": DEPTH, "activation": "silu"},
        parameters=2 * R * OUT + 2 * DEPTH * R * R,
        law=law,
    ),
    WrapperCase(
        AlwaysActivatedLoRA,
        base=LINEAR,
        inputs=INPUTS,
        rank=R,
        options={"invocation": (3, 4)},
        parameters=R * (IN + OUT),
    ),
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    check()


def test_activations_are_those_of_peft():
    from jno_lora_peft.types.routed import _ACTIVATIONS

    assert tuple(ACTIVATIONS) == _ACTIVATIONS
    x = np.asarray([-3.0, -0.5, 0.0, 0.5, 7.0])
    assert np.allclose(ACTIVATIONS["relu6"](x), [0, 0, 0, 0.5, 6])
    assert np.allclose(ACTIVATIONS["relu2"](x), [0, 0, 0, 0.25, 49])
    assert np.allclose(ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), atol=1e-5)
    assert ACTIVATIONS["gelu"](0.5) != ACTIVATIONS["gelu_new"](0.5)


def test_no_array_is_empty():
    """Orbax saves no empty arrays."""
    adapter = PEANuTLinear(LINEAR(jax.random.key(0)), R, 1.0, key=jax.random.key(0), depth=1)
    assert all(array.size for array in adapter.state().values())


@pytest.mark.parametrize("options", [{"depth": -1}, {"depth": True}, {"activation": "sine"}])
def test_bad_options_are_told(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PEANuTLinear(LINEAR(jax.random.key(0)), R, 1.0, key=jax.random.key(0), **options)
