"""`through`: equal to the function itself for every method and use, in values and derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.experimental.jet import jet
from tests.pairs import ALL
from zoo_cases import perturb

from jno.lora import JnoLoraError, LoRALinear, apply_lora, lora_trainable_filter
from jno_lora_arrays import ArrayLayer, DeclaredArray, plain, report_uses, through
from jno_lora_zoo import LinearLayer, LoRA, Method

WORDS, SIZE, HIDDEN, EXPERTS = 24, 8, 6, 3


class Model(eqx.Module):
    """A small transformer's parts, all of which read weights: a tied head, experts, a stack."""

    table: eqx.nn.Embedding
    dense: eqx.nn.Linear
    experts: eqx.nn.Linear
    blocks: eqx.nn.Linear

    def __init__(self, key):
        keys = jr.split(key, 4)
        self.table = eqx.nn.Embedding(WORDS, SIZE, key=keys[0])
        self.dense = eqx.nn.Linear(SIZE, SIZE, key=keys[1])
        make = eqx.filter_vmap(lambda key: eqx.nn.Linear(SIZE, HIDDEN, key=key))
        self.experts = make(jr.split(keys[2], EXPERTS))
        make = eqx.filter_vmap(lambda key: eqx.nn.Linear(SIZE, SIZE, key=key))
        self.blocks = make(jr.split(keys[3], 2))

    def __call__(self, ids):
        x = self.embed(ids)
        x = self.mix(x)
        x = self.repeat(x)
        x = self.route(x)
        return jnp.tanh(x) @ self.table.weight.T

    def embed(self, ids):
        row = jnp.take(self.table.weight, -1, axis=0, fill_value=0)
        return self.table.weight[ids] + self.table.weight.at[ids].get(mode="clip") + row[None]

    def mix(self, x):
        x = x @ self.dense.weight.T + jnp.einsum("...i,io->...o", x, self.dense.weight)
        x = jax.checkpoint(lambda x: (self.dense.weight @ x.T).T + self.dense.bias[None])(x)
        x = eqx.filter_jit(lambda layer, x: jax.vmap(lambda v: layer.weight @ v)(x))(self.dense, x)
        return jax.vmap(self.dense)(jnp.tanh(x))

    def repeat(self, x):
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)

        def block(x, arrays):
            return jnp.tanh(x @ eqx.combine(arrays, rest).weight.T), None

        x, _ = jax.lax.scan(block, x, arrays)
        each = jnp.einsum("ni,soi->sno", x, self.blocks.weight)
        each = jnp.einsum("sno,soi->nsi", each, self.blocks.weight)
        return each.sum(axis=1)

    def route(self, x):
        sizes = jnp.array([2, 0, 3])
        hidden = jax.lax.ragged_dot(x, self.experts.weight.transpose(0, 2, 1), sizes)
        return jax.lax.ragged_dot(jax.nn.silu(hidden), self.experts.weight, sizes)


@pytest.fixture(scope="module")
def model():
    return Model(jr.key(0))


def adapted(model, method, **kwargs):
    """The model, with adapters away from their start, split into what trains and what does not."""
    # The variants of embeddings have names of their own.
    is_variant = isinstance(method, str) and method != "auto"
    wrappers = [method, f"{method}-embedding"] if is_variant else method
    model = apply_lora(model, 2, 3.0, key=jr.key(1), wrapper=wrappers, **kwargs)
    return eqx.partition(perturb(model, 0.2), lora_trainable_filter(model))


def assert_equal(function, trainable, frozen, *args):
    """The value and the gradient are those of the function itself."""

    @eqx.filter_jit  # one program, which takes less time to compile than two
    def both(trainable, *args):
        def of(function):
            loss = lambda t: jnp.sum(jnp.sin(function(eqx.combine(t, frozen), *args)))  # noqa: E731
            return eqx.filter_value_and_grad(loss)(trainable)

        return of(function), of(through(function))

    for x, y in zip(*map(jax.tree.leaves, both(trainable, *args)), strict=True):
        assert jnp.max(jnp.abs(x - y)) <= 2e-5 * (1 + jnp.max(jnp.abs(x)))


IDS = jnp.array([0, 5, 23, -1, 5])


# Another structure of methods each. `auto` is LoRA, as in a net.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "dora", "oft", "vera", *(["lokr"] if ALL else [])])
def test_values_gradients_and_reports_are_those_of_the_function(model, method):
    call = lambda m, ids: m(ids)  # noqa: E731
    trainable, frozen = adapted(model, method)
    assert_equal(call, trainable, frozen, IDS)
    m = eqx.combine(trainable, frozen)
    report = report_uses(call, m, IDS)
    assert {use.operation for use in report} >= {"dot_general", "gather"}
    # `ragged_dot` needs an update that is a product.
    merged = {use.operation.removesuffix("_general") for use in report if use.reason is not None}
    assert merged == (set() if method in ("auto", "vera") else {"ragged_dot"})
    if merged:
        assert "2 of " in str(report) and "uses need the merged weight" in str(report)
        with pytest.raises(JnoLoraError, match=r"ragged_dot.* \(3, 8, 6\) of a \w+Linear needs"):
            eqx.filter_eval_shape(through(call, strict=True), m, IDS)


@pytest.mark.slow
def test_while_loops_that_read_weights(model):
    def function(m, x):
        size = lambda x: jnp.sum(jnp.abs(x @ m.dense.weight))  # noqa: E731
        return jax.lax.while_loop(lambda x: size(x) > 0.1, lambda x: x @ m.dense.weight / 4, x)

    m = eqx.combine(*adapted(model, "lora"))
    x = jnp.ones((2, SIZE))
    assert jnp.allclose(eqx.filter_jit(through(function))(m, x), function(m, x), atol=1e-6)


@pytest.mark.slow
def test_without_reads_the_computation_is_the_same(model):
    trainable, frozen = adapted(model, "lora")

    def function(trainable, x):
        return jax.vmap(eqx.combine(trainable, frozen).dense)(x)

    x = jnp.ones((4, SIZE))
    assert str(jax.make_jaxpr(through(function))(trainable, x)) == str(
        jax.make_jaxpr(function)(trainable, x)
    )


@pytest.mark.slow
def test_functions_that_were_compiled_before_are_traced_anew(model):
    m = eqx.combine(*adapted(model, "lora"))
    compiled = eqx.filter_jit(lambda m, x: x @ m.dense.weight)
    x = jnp.ones((2, SIZE))
    expected = compiled(m, x)
    (use,) = report_uses(compiled, m, x)
    assert use.reason is None
    assert jnp.allclose(through(compiled)(m, x), expected, atol=1e-5)
    assert jnp.array_equal(compiled(m, x), expected)


# Methods whose forward has an elimination, or a loop.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["oft", "hra"])
def test_taylor_mode_follows_layers_with_loops(model, method):
    m = eqx.combine(*adapted(model, method))
    x, series = jnp.linspace(-1, 1, SIZE), (jnp.ones(SIZE), jnp.zeros(SIZE))
    found = jet(lambda x: through(lambda m, x: jnp.tanh(m.dense(x)))(m, x), (x,), (series,))
    expected = jet(lambda x: jnp.tanh(m.dense(x)), (x,), (series,))
    assert eqx.tree_equal(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_reads_that_are_differentiated_inside_of_the_function_are_merged_and_told(model):
    m = eqx.combine(*adapted(model, "lora"))
    arrays, rest = eqx.partition(m, eqx.is_array)
    x = jnp.ones((2, SIZE))

    @jax.custom_vjp
    def with_a_rule(arrays, x):
        return x @ eqx.combine(arrays, rest).dense.weight

    with_a_rule.defvjp(lambda a, x: (with_a_rule(a, x), (a, x)), lambda kept, _: kept)
    (use,) = report_uses(with_a_rule, arrays, x)
    assert use.reason == "a function with a rule of its own reads it"

    def derivative(m, x):
        return eqx.filter_grad(lambda m: jnp.sum((x @ m.dense.weight) ** 2))(m).dense.lora_A

    assert jnp.allclose(through(derivative)(m, x), derivative(m, x), atol=1e-4)
    assert {use.operation for use in report_uses(derivative, m, x)} == {"read"}


@pytest.mark.slow
def test_meshes_with_explicit_axes(model):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    m = eqx.combine(*adapted(model, "lora"))
    rows = jnp.arange(4.0 * SIZE).reshape(4, SIZE) / SIZE
    with jax.set_mesh(mesh):
        x = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.P("x")))
        found = through(lambda m, x: x @ m.table.weight.T)(m, x)
    assert jnp.allclose(found, rows @ m.table.weight.T, atol=1e-4)


class OwnMerge(LoRA, ArrayLayer):
    def merge(self):
        merged = super().merge()
        return DeclaredArray(2 * merged.array, merged.axes)


class OwnMatrix(LoRA, ArrayLayer):
    @classmethod
    def matrix(cls, layer):
        return -super().matrix(layer)

    @classmethod
    def with_matrix(cls, base, matrix):
        return super().with_matrix(base, -matrix)


class Shifted(Method):
    """A method that only has a law."""

    adapter_fields = ("shift",)
    shift: jax.Array

    @classmethod
    def effective_rank(cls, rank, outputs, inputs):
        return rank

    def start(self, W, r, key, dtype):
        return {"shift": jnp.ones((), dtype)}

    def law(self, W):
        return W + self.shift.astype(W.dtype)


class ShiftedLinear(Shifted, LinearLayer):
    pass


def layer_of(sizes, cls=eqx.nn.Linear, stack=None):
    make = lambda key: cls(*sizes, key=key)  # noqa: E731
    return eqx.filter_vmap(make)(jr.split(jr.key(0), stack)) if stack else make(jr.key(0))


BOX = DeclaredArray.of(jr.normal(jr.key(0), (3, 4)), "oi")
NO_RULES, NO_PATH = "this adapter has no rules", "ShiftedLinear has no fast path here"
ONES = jnp.ones((2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "wrapper", "function", "reasons"),
    [
        (
            *(layer_of((2, 4, 3), eqx.nn.Conv1d), "lora"),
            *(lambda m: jnp.einsum("oik,i->ok", m.weight, jnp.ones(2)), [NO_RULES]),
        ),
        (BOX, OwnMerge, lambda w: w @ jnp.ones(4), [NO_RULES]),
        (BOX, OwnMatrix, lambda w: w @ jnp.ones(4), [NO_RULES]),
        (layer_of((4, 3)), ShiftedLinear, lambda m: ONES @ m.weight.T @ m.weight, [NO_PATH] * 2),
        (
            *(layer_of((4, 3), stack=2), ShiftedLinear),
            *(lambda m: jnp.einsum("ni,soi->sno", ONES, m.weight), [NO_PATH]),
        ),
    ],
)
def test_adapters_without_a_rule_are_merged_and_told(layer, wrapper, function, reasons):
    m = eqx.combine(*adapted(layer, wrapper))
    assert jnp.allclose(through(function)(m), function(plain(m)), atol=1e-5)
    assert [use.reason for use in report_uses(function, m)] == reasons


@pytest.mark.slow
def test_layers_with_a_leaf_that_cannot_be_hashed_are_merged():
    class Tagged(eqx.nn.Linear):
        tags: set

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.tags = {"first"}

    m = eqx.combine(*adapted(layer_of((4, 3), Tagged), "lora"))
    function = lambda x: x @ m.weight.T  # noqa: E731
    assert len(report_uses(function, ONES)) == 0
    assert jnp.allclose(through(function)(ONES), function(ONES), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_products_that_are_wider_than_their_factors_keep_their_digits(model, method):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, model)
    m = eqx.combine(*adapted(half, method, target="dense|experts"))
    x = jr.normal(jr.key(4), (5, SIZE), jnp.bfloat16)

    def function(m, x):
        wide = jnp.dot(x, m.dense.weight, preferred_element_type=jnp.float32)
        cast = x.astype(jnp.float32) @ m.dense.weight.astype(jnp.float32)
        weight = m.experts.weight.transpose(0, 2, 1)
        sizes = jnp.array([2, 0, 3])
        ragged = jax.lax.ragged_dot(x, weight, sizes, preferred_element_type=jnp.float32)
        return wide, cast, ragged

    called = jax.vmap(m.dense)(x) - m.dense.bias[None]
    assert jnp.max(jnp.abs(through(lambda m, x: x @ m.dense.weight.T)(m, x) - called)) <= 0.05
    found = through(function)(m, x)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_array(x) else x, m)
    expected = function(wide, x.astype(jnp.float32))
    for y, z, bound in zip(found, expected, (1e-5, 1e-5, 0.05), strict=True):
        assert y.dtype == jnp.float32
        assert jnp.max(jnp.abs(y - z)) <= bound * (1 + jnp.max(jnp.abs(z)))


@pytest.mark.slow
def test_results_may_hold_weights_and_models_may_come_by_closure(model):
    m = eqx.combine(*adapted(model, "lora"))
    weight, name, layer = through(lambda m: (m.dense.weight, "name", m.dense))(m)
    assert jnp.allclose(weight, m.dense.weight, atol=1e-6)
    assert name == "name"
    assert isinstance(layer, LoRALinear)
    function = lambda x: x @ m.dense.weight  # noqa: E731
    x = jnp.ones((2, SIZE))
    assert all(use.reason is None for use in report_uses(function, x))
    assert jnp.allclose(through(function)(x), function(x), atol=1e-5)


@pytest.mark.slow
def test_a_tied_head_costs_as_much_as_its_adapter():
    class Tied(eqx.Module):
        table: eqx.nn.Embedding

        def __call__(self, ids):
            return self.table.weight[ids] @ self.table.weight.T

    class Layers(eqx.Module):
        table: eqx.nn.Embedding
        head: eqx.nn.Linear

        def __call__(self, ids):
            return jax.vmap(self.head)(jax.vmap(self.table)(ids))

    def cost(function, model):
        trainable, frozen = adapted(model, "auto")
        arrays, rest = eqx.partition(frozen, eqx.is_array)

        def step(trainable, arrays):
            loss = lambda t: jnp.sum(function(eqx.combine(t, arrays, rest), jnp.arange(64)) ** 2)  # noqa: E731
            return jax.grad(loss)(trainable)

        compiled = jax.jit(step).lower(trainable, arrays).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    words, size = 256, 64
    table = eqx.nn.Embedding(words, size, key=jr.key(0))
    call = lambda m, ids: m(ids)  # noqa: E731
    flops, memory = cost(through(call), Tied(table))
    head = eqx.nn.Linear(size, words, use_bias=False, key=jr.key(1))
    of_layers = cost(call, Layers(table, head))
    of_merging = cost(call, Tied(table))
    assert flops <= 1.05 * of_layers[0] < of_merging[0]
    assert memory <= 1.05 * of_layers[1] < of_merging[1]
