"""The adapters keep every promise, as the kit checks it; options and activations of PEANuT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

from jno_lora_peft.types.routed import _ACTIVATIONS
from jno_lora_routed import HydraLoRA, Lily, MoELoRA, PEANuTLinear, Poly
from jno_lora_routed._cases import CASES
from jno_lora_routed._peanut import ACTIVATIONS
from jno_lora_routed.plugin import jno_lora_wrappers
from jno_lora_testing import WrapperCase, parametrize_with_checks, run_checks, standard_layers
from jno_lora_testing._commands import check

R, IN, OUT, N, DEPTH = 2, 6, 4, 3, 2
LINEAR, INPUTS = standard_layers()["Linear"]


def peanut(adapter):
    """The law in float64, one column of the weight after the other."""

    arrays = (adapter.base.weight, adapter.A, adapter.B, adapter.encoders, adapter.decoders)
    W, A, B, E, D = (np.asarray(x, np.float64) for x in arrays)
    columns = []
    for column in W.T:
        h0 = np.maximum(A @ column, 0)
        h1 = np.maximum(E[0] @ h0, 0)
        h2 = np.maximum(E[1] @ h1, 0)
        h3 = np.maximum(D[0] @ h2, 0) + h1
        columns.append(np.maximum(D[1] @ h3, 0) + h0)
    return W + adapter.alpha / adapter.rank * B @ np.stack(columns, 1)


def case(wrapper, parameters, **options):
    law = peanut if wrapper is PEANuTLinear else None
    given = {"base": LINEAR, "inputs": INPUTS, "rank": R, "law": law}
    return WrapperCase(wrapper, options=options, parameters=parameters, **given)


@parametrize_with_checks(
    [
        case(MoELoRA, N * (R * (IN + OUT) + IN), experts=N, top_k=2),
        case(PEANuTLinear, 2 * R * OUT + 2 * DEPTH * R * R, depth=DEPTH),
        *CASES,
    ]
)
def test_conformance(check):
    check()


def test_the_command_checks_the_plugin_with_the_options_that_its_adapters_need():
    only = ("--only", "identity-at-init", "--only", "gradients")
    result = CliRunner().invoke(check, ["jno-lora-routed", *only])
    assert result.exit_code == 0, result.output
    rows = [line.split()[:2] for line in result.output.splitlines() if "2/2" in line]
    names = [wrapper.__name__ for wrapper in jno_lora_wrappers()]
    assert {name.partition("-")[0] for name, _ in rows} == {*names}


# The other checks see the same in every adapter of this base class.
CHECKS = (
    *("contract", "identity-at-init", "adapter-acts", "parameter-count", "trainable-fields"),
    *("state-round-trip", "gradients", "stacked-layers", "shared-arrays"),
)


@pytest.mark.parametrize(
    "case",
    [
        case(HydraLoRA, R * IN + N * (R * OUT + IN), experts=N),
        case(Lily, R * (IN + N) + N * R * OUT, experts=N, group=1),
        case(Poly, N * (R * (IN + OUT) + 2 * 2), tasks=2, skills=N, splits=2),
    ],
    ids=str,
)
def test_other_adapters(case):
    for result in run_checks(case, CHECKS):
        assert result.error is None, result.error


def test_peanut_without_inner_layers():
    for result in run_checks(case(PEANuTLinear, None), ("gradients", "checkpoint", "input-jet")):
        assert result.error is None, result.error


def test_options_and_activations_of_peanut():
    adapter = PEANuTLinear(LINEAR(jax.random.key(0)), R, 1.0, key=jax.random.key(0), depth=1)
    assert all(array.size for array in adapter.state().values())  # Orbax saves no empty arrays
    for options in ({"depth": -1}, {"activation": "sine"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            PEANuTLinear(adapter.base, R, 1.0, key=jax.random.key(0), **options)
    assert tuple(ACTIVATIONS) == _ACTIVATIONS
    assert jnp.isnan(ACTIVATIONS["relu"](jnp.asarray(jnp.nan)))
    x = jnp.asarray([-3.0, -0.5, 0.0, 0.5, 7.0])
    assert np.allclose(ACTIVATIONS["relu6"](x), [0, 0, 0, 0.5, 6])
    assert np.allclose(ACTIVATIONS["relu2"](x), [0, 0, 0, 0.25, 49])
    assert np.allclose(ACTIVATIONS["quick_gelu"](x), x / (1 + np.exp(-1.702 * x)), atol=1e-5)
    assert ACTIVATIONS["gelu"](0.5) != ACTIVATIONS["gelu_new"](0.5)
