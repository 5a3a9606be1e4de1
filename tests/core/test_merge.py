"""Merging restores the tree's form, is differentiable, and names the path of what fails."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    WrapperError,
    apply_lora,
    disabled,
    lora_report,
    lora_trainable_filter,
    merge_lora,
    refresh,
    unwrap_lora,
)

from .toys import (
    Block,
    ToyBlock,
    ToyConv,
    ToyLinear,
    ToyScale,
    ToyStacked,
    UserEmbedding,
    adapters_in,
    same,
    shaken,
)


def form(tree):
    arrays = [(x.shape, x.dtype) if eqx.is_array(x) else x for x in jax.tree.leaves(tree)]
    return jax.tree.structure(tree), arrays


def test_merging_restores_the_form_and_computes_what_the_adapted_model_does(model, getkey):
    mixed = {
        "model": model,
        "blocks": (Block(2, key=getkey()), None),
        "conv": [eqx.nn.Conv2d(1, 2, (3, 2), key=getkey())],
        "other": [jnp.arange(3), "text", jax.nn.relu, jax.random.key(0)],
    }
    classes = [ToyBlock, ToyLinear, ToyConv, UserEmbedding]
    adapted = shaken(apply_lora(mixed, 2, key=getkey(), wrapper=classes))
    assert len(adapters_in(adapted)) == 6
    merged = merge_lora(adapted)
    assert form(merged) == form(mixed)
    shapes = eqx.filter_eval_shape(merge_lora, adapted)
    assert jax.tree.structure(shapes) == jax.tree.structure(mixed)
    assert not same(merged, mixed) and same(unwrap_lora(adapted), mixed)
    x, image = jnp.arange(2.0), jnp.linspace(-1, 1, 30).reshape(1, 6, 5)
    assert jnp.allclose(merged["model"](3), adapted["model"](3), rtol=1e-5, atol=1e-6)
    assert jnp.allclose(merged["blocks"][0](x), adapted["blocks"][0](x), rtol=1e-5)
    assert jnp.allclose(merged["conv"][0](image), adapted["conv"][0](image), rtol=1e-5)
    for function in (merge_lora, unwrap_lora):  # a tree without adapters stays as it is
        assert same(function(mixed), mixed)
        assert function(3) == 3 and function(None) is None


def test_merging_inside_a_jitted_loss_trains_the_adapters(model, getkey):
    adapted = apply_lora(model, 1, key=getkey(), target="head", wrapper=ToyScale)
    trainable, frozen = eqx.partition(adapted, lora_trainable_filter(adapted))

    def loss(trainable, merge):
        model = eqx.combine(trainable, frozen)
        return jnp.sum((merge_lora(model) if merge else model)(1) ** 2)

    merged = eqx.filter_jit(eqx.filter_grad(loss))(trainable, True)
    direct = eqx.filter_grad(loss)(trainable, False)
    assert jnp.any(merged.head.gain != 0)
    assert jnp.allclose(merged.head.gain, direct.head.gain, rtol=1e-5)


def test_arrays_of_numpy_with_64_bits_are_merged_as_jax_computes_them(getkey):
    plain = jax.tree.map(lambda a: np.asarray(a, np.float64), eqx.nn.Linear(3, 2, key=getkey()))
    adapted = shaken(apply_lora([plain], 2, key=getkey(), wrapper=ToyLinear))
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), adapted)
    merged, expected = merge_lora(adapted)[0], merge_lora(single)[0]
    assert isinstance(merged.weight, np.ndarray) and merged.weight.dtype == np.float64
    assert merged.bias is plain.bias
    assert np.allclose(merged.weight, expected.weight)
    traced = eqx.filter_jit(merge_lora)(adapted)[0]
    assert jnp.allclose(traced.weight, expected.weight)


def test_a_template_is_told_what_it_is(model, getkey):
    template = eqx.filter_eval_shape(apply_lora, model, 1, key=getkey(), wrapper=ToyLinear)
    advice = r"To merge it: eqx\.filter_eval_shape\(merge_lora, model\)"
    with pytest.raises(WrapperError, match=rf"'encoder/0'(?s:.*)This is a template.*{advice}"):
        merge_lora(template)
    with pytest.raises(WrapperError, match="This is a template"):
        lora_report(template, merge_error=True)


def replaced(layer, value):
    return eqx.tree_at(lambda m: m.weight, layer, value)


BAD_MERGES = {
    "structure": (
        lambda base: eqx.tree_at(lambda m: m.bias, base, None),
        ["must return a layer of the structure that was wrapped", "bias=None"],
    ),
    "shape": (
        lambda base: replaced(base, jnp.ones((1, 1))),
        ["changes 'weight' from float32[3, 3] to float32[1, 1]", "keep the shape"],
    ),
    "dtype": (
        lambda base: replaced(base, base.weight.astype(jnp.float16)),
        ["changes 'weight' from float32[3, 3] to float16[3, 3]", "cast back"],
    ),
    "raising": (lambda base: 1 / 0, ["ZeroDivisionError: division by zero"]),
    "nothing": (lambda base: None, ["encoder/1"]),
}


@pytest.mark.parametrize(("result", "parts"), BAD_MERGES.values(), ids=BAD_MERGES.keys())
def test_a_bad_merge_or_unwrap_is_an_error_naming_adapter_and_path(model, getkey, result, parts):
    class Bad(ToyLinear):
        def merge(self):
            return result(self.base)

        def unwrap(self):
            return result(self.base)

    adapted = apply_lora(model, 1, key=getkey(), target="encoder/1", wrapper=Bad)
    for verb, function in {"merge": merge_lora, "unwrap": unwrap_lora}.items():
        with pytest.raises(WrapperError) as caught:
            function(adapted)
        for part in (verb, "Bad at 'encoder/1'", *parts):
            assert part in str(caught.value)


def test_a_class_that_is_edited_in_place_is_seen_after_a_refresh(getkey, registry):
    class Edited(ToyScale):
        adapter_fields = ()

    layers = [eqx.nn.Linear(3, 2, key=getkey())]
    with pytest.raises(WrapperError, match="non-empty tuple of field names"):
        apply_lora(layers, 1, key=getkey(), wrapper=Edited)
    Edited.adapter_fields = ToyScale.adapter_fields
    refresh()
    adapted = apply_lora(layers, 1, key=getkey(), wrapper=Edited)
    assert merge_lora(adapted)[0].weight.any()
    Edited.merge = lambda self: replaced(self.base, 0 * self.base.weight)
    refresh()
    assert not merge_lora(adapted)[0].weight.any()


def test_the_reference_model_has_no_gradient_and_no_copies():
    plain = eqx.nn.Linear(6, 4, key=jax.random.key(0))
    adapted = apply_lora(plain, 2, key=jax.random.key(1), wrapper=ToyLinear)
    assert disabled(adapted).weight is plain.weight
    assert disabled(plain).weight is plain.weight
    grads = eqx.filter_grad(lambda model: jnp.sum(disabled(model)(jnp.ones(6))))(adapted)
    assert not any(map(np.any, jax.tree.leaves(grads)))


# --- layers stacked along leading axes: adapted, run, merged and unwrapped one by one

SIZE = 3


def stacked(axes, key):
    make = lambda key: eqx.nn.Linear(SIZE, SIZE, key=key)  # noqa: E731
    for _ in axes:
        make = eqx.filter_vmap(make)
    return make(jax.random.split(key, axes))


def slice_of(tree, index):
    return jax.tree.map(lambda x: x[index] if eqx.is_array(x) else x, tree)


@pytest.mark.parametrize("axes", [(2,), (2, 4)], ids=["one axis", "two axes"])
def test_each_slice_starts_from_values_of_its_own_and_is_merged_and_unwrapped(axes):
    plain = stacked(axes, jax.random.key(1))
    adapted = apply_lora(plain, 2, key=jax.random.key(2), wrapper=ToyStacked)
    assert adapted.lora_A.shape == (*axes, 2, SIZE) and adapted.lora_B.shape == (*axes, SIZE, 2)
    assert adapted.rank == 2
    assert len({*map(tuple, adapted.lora_A.reshape(-1, 2 * SIZE).tolist())}) == np.prod(axes)
    adapted = shaken(adapted)
    merged = merge_lora(adapted)
    assert jax.tree.structure(merged) == jax.tree.structure(adapted.base)
    index = tuple(n - 1 for n in axes)
    one_by_one = slice_of(adapted, index).merge()
    assert jnp.allclose(slice_of(merged, index).weight, one_by_one.weight, rtol=1e-6)
    assert not jnp.array_equal(merged.weight, adapted.base.weight)
    assert jnp.array_equal(adapted.weight, merged.weight)
    assert same(unwrap_lora(adapted), plain)


def test_scan_over_the_stack_is_the_loop_over_its_layers(getkey):
    plain = stacked((3,), getkey())
    adapted = shaken(apply_lora(plain, 1, key=getkey(), wrapper=ToyStacked))

    def run(layers, x):
        arrays, rest = eqx.partition(layers, eqx.is_array)
        step = lambda x, layer: (eqx.combine(layer, rest)(x), None)  # noqa: E731
        return jax.lax.scan(step, x, arrays)[0]

    x = jnp.arange(3.0)
    by_hand = x
    for index in range(3):
        by_hand = slice_of(adapted, index)(by_hand)
    assert jnp.allclose(run(adapted, x), by_hand, rtol=1e-5)
    assert jnp.allclose(run(merge_lora(adapted), x), by_hand, rtol=1e-5)
