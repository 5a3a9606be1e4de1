"""Methods that share arrays between layers: who shares what, starts, options and refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo_cases import assert_close, fields_of, perturb, shapes_in_jaxpr
from zoo_cases.laws_shared import vb_factors

import jno.lora
from jno.lora import WrapperError, apply_lora, merge_lora, resolve
from jno_lora_combine import to_lora
from jno_lora_zoo import known_factors

VB = {"vectors": 8, "vector_length": 4, "top_k": 2}
OPTIONS = {"vera-shared": {}, "tied-lora": {}, "vb-lora": VB}
every = pytest.mark.parametrize("variant", OPTIONS)
X = np.asarray(jax.random.normal(jax.random.key(2), (5, 6)))


def mlp():
    return eqx.nn.MLP(6, 4, 8, 3, key=jax.random.key(0))


def adapted(variant, model=None, rank=3, **options):
    options = {**OPTIONS[variant], **options}
    model = mlp() if model is None else model
    return apply_lora(model, rank, key=jax.random.key(1), wrapper=variant, options=options)


@eqx.filter_jit
def run(model):
    return jax.vmap(resolve(model))(X)


@eqx.filter_jit
@eqx.filter_grad
def gradients(trainable, frozen):
    return jnp.sum(jax.vmap(resolve(eqx.combine(trainable, frozen)))(X) ** 2)


def gradients_of(model):
    return gradients(*eqx.partition(model, jno.lora.lora_trainable_filter(model)))


def named(model, end):
    paths = [jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(model)]
    return [path for path in paths if path.endswith(end)]


@every
def test_the_start_is_the_model_and_training_is_merged_saved_and_loaded(variant, tmp_path):
    model = adapted(variant)
    np.testing.assert_array_equal(run(model), run(mlp()))
    trained = perturb(model)
    assert_close(run(merge_lora(trained)), run(trained), 1e-5)
    jno.lora.save_adapters(trained, tmp_path / "file.safetensors")
    loaded = jno.lora.load_adapters(mlp(), tmp_path / "file.safetensors")
    assert eqx.tree_equal(loaded, trained)
    plain, _ = to_lora(trained)
    assert_close(run(plain), run(trained), 1e-5)


@every
def test_a_restored_model_has_the_structure_of_the_one_that_was_built(variant):
    # Whatever the options were, so that a function compiled for the one runs the other.
    options = {"vera-shared": {"d_initial": 0.5}, "tied-lora": {"zero": "b"}}
    options["vb-lora"] = {"vectors": 9, "top_k": 3, "initial": "random"}
    trained = perturb(adapted(variant, **options[variant]))
    swapped = jno.lora.swap_adapters(mlp(), jno.lora.extract_adapters(trained))
    assert eqx.tree_equal(swapped, trained)


def stack_of(number, inputs, outputs):
    keys = jax.random.split(jax.random.key(0), number)
    return eqx.filter_vmap(lambda key: eqx.nn.Linear(inputs, outputs, key=key))(keys)


def scanned(stack, x):
    arrays, rest = eqx.partition(stack, eqx.is_array)
    return jax.lax.scan(lambda x, own: (jnp.tanh(eqx.combine(own, rest)(x)), None), x, arrays)[0]


def mapped(stack, x):
    return eqx.filter_vmap(lambda layer: layer(x))(stack)


@every
@pytest.mark.parametrize("call", [scanned, mapped])
def test_a_stack_is_called_and_trained_like_its_merged_layers(variant, call):
    trained = perturb(adapted(variant, stack_of(3, 6, 6)))
    varied, fixed = eqx.partition(trained, jno.lora.lora_trainable_filter(trained))
    ready = (lambda model: model) if variant == "vera-shared" else resolve

    def loss(varied, prepare):
        return jnp.sum(call(prepare(eqx.combine(varied, fixed)), X[0]) ** 2)

    found, expected = (
        jax.tree.leaves(eqx.filter_jit(eqx.filter_value_and_grad(loss))(varied, prepare))
        for prepare in (ready, merge_lora)
    )
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-5)


@every
def test_the_factors_of_a_resolved_stack_are_those_of_its_layers(variant):
    stack = stack_of(2, 4, 8)
    trained = perturb(adapted(variant, {"stack": stack}))
    A, B = known_factors(resolve(trained)["stack"])
    update = merge_lora(trained)["stack"].weight - stack.weight
    assert_close(jnp.einsum("loi,lij->loj", B, A), update, 1e-5)


def test_vera_shares_one_pair_of_the_largest_sizes_and_each_layer_reads_its_part():
    model = perturb(adapted("vera-shared", rank=5))
    first, *_, last = model.layers
    assert len({(id(layer.A.value), id(layer.B.value)) for layer in model.layers}) == 1
    merged = merge_lora(model)
    assert_close(jax.vmap(model)(X), run(merged), 1e-5)  # without `resolve`
    A, B = (np.asarray(x.value).astype(np.float64) for x in (first.A, first.B))
    assert (A.shape, B.shape) == ((5, 8), (8, 5))
    for n, layer in ((0, first), (-1, last)):
        plain = mlp().layers[n]
        out, inputs = plain.weight.shape
        b, d = (np.asarray(x).astype(np.float64) for x in (layer.b, layer.d))
        update = np.diag(b) @ B[:out] @ np.diag(d) @ A[:, :inputs]
        assert_close(merged.layers[n].weight, plain.weight + update, 1e-6)
    assert jno.lora.lora_report(model).trainable == 4 * 5 + 3 * 8 + 4


def test_vera_starts_as_published():
    model = adapted("vera-shared", eqx.nn.Linear(300, 200, key=jax.random.key(0)), rank=256)
    assert np.all(np.asarray(model.d) == np.float32(0.1)) and not np.any(model.b)
    for array, fan_in in ((model.A.value, 300), (model.B.value, 256)):
        bound = (6 / fan_in) ** 0.5
        assert 0.99 * bound < np.max(np.abs(array)) <= bound
        assert_close(np.var(array), 2 / fan_in, 0.02)
    assert model.scaling == 1.0


@pytest.mark.parametrize(("variant", "arrays"), [("vera-shared", 3), ("tied-lora", 4)])
def test_lookups_share_another_matrix(variant, arrays):
    key = jax.random.key(0)
    model = [eqx.nn.Embedding(12, 6, key=key), eqx.nn.Linear(12, 6, key=key)]
    around = apply_lora(model, 3, key=key, wrapper=[variant, f"{variant}-embedding"])
    names = set(jno.lora.extract_adapters(around).shared)
    assert len(names) == arrays
    assert len([name for name in names if "lookups" in name]) == arrays - 2


def test_layers_of_one_shape_are_tied_and_a_lower_rank_reads_the_first_components():
    model = adapted("tied-lora")
    assert named(model, ".lora_A.value") == [f".layers[{n}].lora_A.value" for n in (0, 1, 3)]
    assert model.layers[1].lora_A.name == model.layers[2].lora_A.name
    specs = [
        {"target": "layers/1", "rank": 2, "wrapper": "tied-lora"},
        {"target": "layers/2", "rank": 3, "wrapper": "tied-lora"},
    ]
    model = perturb(apply_lora(mlp(), key=jax.random.key(1), specs=specs))
    one = model.layers[1]
    A, B = one.lora_A.value, one.lora_B.value
    assert A.shape == (3, 8)
    update = np.diag(one.b) @ B[:, :2] @ np.diag(one.d) @ A[:2]  # a scale of 1
    assert_close(merge_lora(model).layers[1].weight, mlp().layers[1].weight + update, 1e-5)


def test_the_mean_of_chosen_vectors_trains_the_chosen_alone():
    model = perturb(adapted("vb-lora"))
    for layer, grad in zip(model.layers, gradients_of(model).layers, strict=True):
        for logits, of in ((layer.logits_A, grad.logits_A), (layer.logits_B, grad.logits_B)):
            chosen = np.argsort(logits, axis=-1)[..., -2:]
            rest = np.asarray(of).copy()
            np.put_along_axis(rest, chosen, 0, axis=-1)
            assert not np.any(rest) and np.any(of)


def test_the_zero_start_of_vb_lora_trains_bank_and_logits():
    model = adapted("vb-lora")
    grads = gradients_of(model)
    assert np.any(grads.layers[0].bank.value)
    assert all(np.any(layer.logits_B) and not np.any(layer.logits_A) for layer in grads.layers)
    bank = model.layers[0].bank.value
    np.testing.assert_array_equal(bank[::2], -bank[1::2])
    for layer in model.layers:  # the factors of the zero start: `A` alone is something
        fields = fields_of(eqx.tree_at(lambda m: m.bank, layer, model.layers[0].bank))
        A, B = vb_factors(fields, np.asarray(layer.base.weight))
        assert np.max(np.abs(A)) > 1e-3 and not np.any(B)


def test_the_random_start_is_that_of_the_paper():
    model = adapted("vb-lora", vectors=9, top_k=3, initial="random")
    assert np.max(np.abs(run(model) - run(mlp()))) > 1e-6
    bank = model.layers[0].bank.value
    assert bank.shape == (9, 4) and 0.015 < np.max(np.abs(bank)) <= 0.02
    assert_close(np.std(model.layers[0].logits_A), 0.1, 0.2)


def test_a_step_forms_no_matrix_of_the_layer():
    layer = eqx.nn.Linear(40, 36, key=jax.random.key(0))
    for variant in OPTIONS:
        wrapper = perturb(adapted(variant, layer))
        assert (36, 40) not in shapes_in_jaxpr(lambda w, x: w(x), wrapper, jnp.ones(40))


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("vb-lora", {"vectors": 0}, "`vectors` must be a whole number"),
        ("vb-lora", {"top_k": 10}, "the bank has only 8 vectors"),
        ("vb-lora", {"top_k": 3}, "takes vectors in pairs"),
        ("vb-lora", {"vectors": 9}, "takes vectors in pairs"),
        ("vb-lora", {"initial": "paper"}, '"zero" or "random"'),
        ("tied-lora", {"zero": "A"}, '`zero` must be "B" or "b"'),
    ],
)
def test_options_that_are_refused(variant, options, message):
    with pytest.raises(WrapperError, match=message):
        adapted(variant, **options)
