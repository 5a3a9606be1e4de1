"""Inside `WeightNorm` and `SpectralNorm`: refused by default, adapted as one when asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import METHODS, PARAMETER_COUNT, assert_close

import jno_lora_zoo
from jno.lora import (
    JnoLoraWarning,
    Net,
    SelectionError,
    apply_lora,
    lora_trainable_filter,
    merge_lora,
    unwrap_lora,
)
from jno.lora.testing import WrapperCase, parametrize_with_checks

R = 3
SOME = ("LoRA", "DoRA", "PiSSA", "VeRA", "OFT")


def weight_norm(key):
    return eqx.nn.WeightNorm(eqx.nn.Linear(7, 5, key=key))


@parametrize_with_checks(
    WrapperCase(
        getattr(jno_lora_zoo, f"{method}InNorm"),
        base=weight_norm,
        inputs=lambda key: (jax.random.normal(key, (7,)),),
        rank=R,
        parameters=PARAMETER_COUNT[method](R, 5, 7),
    )
    for method in SOME
)
def test_conformance(check):
    check()


def trained(model, key):
    def move(leaf, trains):
        return leaf + 0.3 * jax.random.normal(key, leaf.shape) if trains else leaf

    return jax.tree.map(move, model, lora_trainable_filter(model))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "IA3"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda key: eqx.nn.Linear(4, 6, key=key), (4,)),
        (lambda key: eqx.nn.Conv1d(2, 6, 2, padding=1, key=key), (2, 5)),
        (lambda key: eqx.nn.ConvTranspose1d(2, 6, 2, key=key), (2, 5)),
    ],
    ids=["linear", "conv", "conv transpose"],
)
def test_the_norm_acts_on_the_adapted_weight(method, layer, shape, getkey):
    norm = eqx.nn.WeightNorm(layer(getkey()))
    x = jax.random.normal(getkey(), shape)
    adapted = apply_lora({"n": norm}, 2, 3.0, key=getkey(), wrappers=f"{method}InNorm")["n"]
    assert_close(adapted(x), norm(x), 1e-5)
    adapted = trained(adapted, getkey())
    # By hand: the merged weight of the layer inside, then `g v / ||v||` row by row.
    inner = adapted.merge().layer
    v = np.asarray(inner.weight, np.float64)
    norms = np.sqrt(np.sum(v**2, axis=tuple(range(1, v.ndim)), keepdims=True))
    weight = jnp.asarray(v * np.asarray(norm.g, np.float64) / norms, jnp.float32)
    by_hand = eqx.tree_at(lambda m: m.weight, inner, weight)
    assert_close(adapted(x), by_hand(x), 1e-5)
    assert not np.allclose(adapted(x), norm(x), rtol=1e-3)


def test_ia3_is_refused_where_the_norm_takes_out_all_that_it_trains(getkey):
    linear = eqx.nn.Linear(4, 3, key=getkey())
    with pytest.raises(SelectionError, match="scale of each row out again"):
        apply_lora(eqx.nn.WeightNorm(linear), 1, key=getkey(), wrappers="ia3-in-norm")
    whole = eqx.nn.WeightNorm(linear, axis=None)  # one norm for all rows keeps their proportions
    adapted = apply_lora(whole, 1, key=getkey(), wrappers="ia3-in-norm")
    x = jax.random.normal(getkey(), (4,))
    assert not np.allclose(trained(adapted, getkey())(x), whole(x), rtol=1e-3)


def test_a_norm_around_something_else_is_explained(getkey):
    model = eqx.nn.WeightNorm(eqx.nn.GRUCell(3, 2, key=getkey()), "weight_hh")
    with pytest.raises(SelectionError, match="norms 'weight_hh' of a GRUCell"):
        apply_lora(model, 1, key=getkey(), wrappers="lora-in-norm")


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
    moved = trained(net.module, getkey())
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
    adapted = apply_lora(stack, 2, 4.0, key=getkey(), wrappers="PiSSAInNorm")
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
