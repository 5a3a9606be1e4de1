"""Inside `WeightNorm` and `SpectralNorm`: refused by default, adapted as one when asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import (
    OPTIONS,
    WHOLE_KIT,
    assert_close,
    check_kind,
    kind_only,
    parameter_count,
    perturb,
)

import jno_lora_zoo
from jno.lora import (
    JnoLoraWarning,
    Net,
    SelectionError,
    apply_lora,
    merge_lora,
    unwrap_lora,
)
from jno.lora.testing import WrapperCase, parametrize_with_checks

R = 3


def weight_norm(key):
    return eqx.nn.WeightNorm(eqx.nn.Linear(7, 5, key=key))


def whole_norm(key):
    """One norm for all rows, which keeps their proportions."""
    return eqx.nn.WeightNorm(eqx.nn.Linear(7, 5, key=key), axis=None)


def case_of(method):
    return WrapperCase(
        getattr(jno_lora_zoo, f"{method}InNorm"),
        base=whole_norm if method in ("IA3", "IA3Out") else weight_norm,
        inputs=lambda key: (jax.random.normal(key, (7,)),),
        rank=R,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, R, 5, 7),
    )


@parametrize_with_checks(map(case_of, WHOLE_KIT))
def test_conformance(check):
    check()


@pytest.mark.parametrize("method", kind_only("InNorm"))
def test_other_methods(method):
    check_kind(case_of(method))


def test_ia3_is_refused_where_the_norm_takes_out_all_that_it_trains(getkey):
    linear = eqx.nn.Linear(4, 3, key=getkey())
    with pytest.raises(SelectionError, match="scale of each row out again"):
        apply_lora(eqx.nn.WeightNorm(linear), 1, key=getkey(), wrapper="ia3-in-norm")
    whole = whole_norm(getkey())
    adapted = apply_lora(whole, 1, key=getkey(), wrapper="ia3-in-norm")
    x = jax.random.normal(getkey(), (7,))
    assert not np.allclose(perturb(adapted)(x), whole(x), rtol=1e-3)


def test_a_norm_around_something_else_is_explained(getkey):
    model = eqx.nn.WeightNorm(eqx.nn.GRUCell(3, 2, key=getkey()), "weight_hh")
    with pytest.raises(SelectionError, match="norms 'weight_hh' of a GRUCell"):
        apply_lora(model, 1, key=getkey(), wrapper="lora-in-norm")
    with pytest.raises(TypeError, match="linear or convolution layer in the WeightNorm, got GRUC"):
        jno_lora_zoo.LoRAInNorm.matrix(model)


def test_spectral_norm_keeps_its_state_and_works_in_a_sequential(getkey):
    def make(key):
        first, second, norm = jax.random.split(key, 3)
        return eqx.nn.Sequential(
            [
                eqx.nn.Linear(4, 3, key=first),
                eqx.nn.SpectralNorm(eqx.nn.Linear(3, 5, key=second), "weight", key=norm),
                eqx.nn.Lambda(jax.nn.relu),
            ]
        )

    model, state = eqx.nn.make_with_state(make)(getkey())
    x = jax.random.normal(getkey(), (4,))
    net = Net(model).lora(2, wrapper=["lora", "lora-in-norm"])
    assert [row.wrapper.__name__ for row in net.summary()] == ["LoRALinear", "LoRAInNorm"]
    run = eqx.filter_jit(lambda model, state: model(x, state))
    (y, after), (expected, expected_state) = run(net.module, state), run(model, state)
    assert_close(y, expected, 1e-5)
    assert_close(
        jnp.stack(jax.tree.leaves(jax.tree.map(jnp.sum, after))),
        jnp.stack(jax.tree.leaves(jax.tree.map(jnp.sum, expected_state))),
        1e-5,
    )
    moved = perturb(net.module)
    assert_close(run(moved, state)[0], run(merge_lora(moved), state)[0], 1e-5)
    assert eqx.tree_equal(unwrap_lora(moved), model)
    # Both flags, that of the norm inside the adapter included.
    quiet = eqx.nn.inference_mode(moved)
    assert quiet.layers[1].base.inference is True and quiet.layers[1].inference is True
    _, kept = run(quiet, state)
    assert eqx.tree_equal(kept, state)


def test_without_asking_it_is_refused_with_the_reason(getkey):
    model = [weight_norm(getkey()), eqx.nn.Linear(7, 5, key=getkey())]
    for wrapper in (None, "lora", "auto"):
        with pytest.warns(JnoLoraWarning, match=r"(?s)WeightNorm.*in-norm.*0/layer"):
            net = Net(model).lora(2, wrapper=wrapper)
        assert [row.path for row in net.summary()] == ["1"]


def test_a_stack_of_norms_is_adapted_slice_by_slice(getkey):
    stack = eqx.filter_vmap(weight_norm)(jax.random.split(getkey(), 3))
    adapted = apply_lora(stack, 2, 4.0, key=getkey(), wrapper="PiSSAInNorm")
    assert adapted.lora_A.shape == (3, 2, 7)
    xs = jax.random.normal(getkey(), (3, 7))
    run = eqx.filter_vmap(lambda layer, x: layer(x))
    assert_close(run(adapted, xs), run(stack, xs), 1e-5)


def test_another_weight_of_the_layer_is_not_taken_for_its_matrix(getkey):
    norm = eqx.nn.WeightNorm(eqx.nn.Linear(3, 4, key=getkey()), "bias", axis=None)
    assert not jno_lora_zoo.LoRAInNorm.applies_to(norm)


@pytest.mark.parametrize(
    "norm",
    [
        lambda layer, key: eqx.nn.WeightNorm(layer, axis=None),
        lambda layer, key: eqx.nn.SpectralNorm(layer, "weight", key=key),
    ],
)
def test_ia3_is_refused_where_a_norm_takes_the_scale_of_the_only_row(norm):
    keys = jax.random.split(jax.random.key(0))
    for outputs, applies in ((1, False), (2, True)):
        normed = norm(eqx.nn.Linear(3, outputs, key=keys[0]), keys[1])
        assert jno_lora_zoo.IA3InNorm.applies_to(normed) is applies
        reason = jno_lora_zoo.IA3InNorm.why_not(normed)
        assert applies or "takes the scale of each row out again" in reason
