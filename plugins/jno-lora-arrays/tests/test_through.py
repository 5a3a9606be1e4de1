"""`through`: equal to the function itself for every method and use, in values and derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from jax.experimental.jet import jet

from jno.lora import JnoLoraError, LoRALinear, Net, apply_lora, lora_trainable_filter
from jno_lora_arrays import ArrayLayer, DeclaredArray, report_uses, through
from jno_lora_zoo import LinearLayer, LoRA, Method

# These have an update that is a product, as `ragged_dot` needs it.
LOW_RANK = {"lora", "pissa", "lora-xs", "vera"}
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

        def from_weights(x, weight):
            return jnp.tanh(x @ weight), None

        x, _ = jax.lax.scan(block, x, arrays)
        x, _ = jax.lax.scan(from_weights, x, self.blocks.weight)
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
    trainable, frozen = eqx.partition(model, lora_trainable_filter(model))
    leaves, treedef = jax.tree.flatten(trainable)
    keys = jr.split(jr.key(2), len(leaves))
    moved = [x + 0.2 * jr.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, moved), frozen


def value_and_gradient(function, trainable, frozen, *args):
    def loss(trainable):
        return jnp.sum(jnp.sin(function(eqx.combine(trainable, frozen), *args)))

    return eqx.filter_jit(eqx.filter_value_and_grad(loss))(trainable)


def assert_equal(function, trainable, frozen, *args):
    """The value and the gradient are those of the function itself."""
    expected = value_and_gradient(function, trainable, frozen, *args)
    found = value_and_gradient(through(function), trainable, frozen, *args)
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert jnp.max(jnp.abs(x - y)) <= 2e-5 * (1 + jnp.max(jnp.abs(x)))


IDS = jnp.array([0, 5, 23, -1, 5])


# LoRA is in `test_a_net_in_training`; others with a product compute as it does.
@pytest.mark.parametrize("method", ["pissa", "dora", "ia3", "lokr", "oft"])
def test_values_and_gradients_are_those_of_the_function(model, method):
    assert_equal(lambda m, ids: m(ids), *adapted(model, method), IDS)


@pytest.mark.parametrize("method", ["lora", "pissa", "vera", "dora", "oft"])
def test_the_adapter_computes_every_use_that_it_can(model, method):
    report = report_uses(lambda m, ids: m(ids), eqx.combine(*adapted(model, method)), IDS)
    merged = {use.operation.removesuffix("_general") for use in report if use.reason is not None}
    assert merged == (set() if method in LOW_RANK else {"ragged_dot"})
    assert {use.operation for use in report} >= {"dot_general", "gather"}


def test_without_reads_the_computation_is_the_same(model):
    trainable, frozen = adapted(model, "lora")

    def function(trainable, x):
        return jax.vmap(eqx.combine(trainable, frozen).dense)(x)

    x = jnp.ones((4, SIZE))
    assert str(jax.make_jaxpr(through(function))(trainable, x)) == str(
        jax.make_jaxpr(function)(trainable, x)
    )


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_control_flow_on_weights_that_were_read_before(model, method):
    def function(m, x):
        weight = m.dense.weight.T

        def turn(state):
            count, x = state
            x = jax.lax.cond(count > 1, lambda x: x @ weight, lambda x: x - weight[:1], x)
            return count + 1, x

        return jax.lax.fori_loop(0, 3, lambda i, x: turn((i, x))[1], x)

    assert_equal(function, *adapted(model, method), jnp.ones((2, SIZE)))


def test_while_loops_that_read_weights(model):
    def function(m, x):
        size = lambda x: jnp.sum(jnp.abs(x @ m.dense.weight))  # noqa: E731
        return jax.lax.while_loop(lambda x: size(x) > 0.1, lambda x: x @ m.dense.weight / 4, x)

    m = eqx.combine(*adapted(model, "lora"))
    x = jnp.ones((2, SIZE))
    assert jnp.allclose(eqx.filter_jit(through(function))(m, x), function(m, x), atol=1e-6)


def test_other_uses_get_the_merged_weight(model):
    def function(m, x):
        weight = m.dense.weight
        odd = weight[:, 2] + weight[2] + weight.reshape(-1)[:SIZE] + weight @ weight @ x[0]
        return odd[None] + x @ (weight * weight).T

    trainable, frozen = adapted(model, "lora")
    x = jnp.ones((2, SIZE))
    assert_equal(function, trainable, frozen, x)
    report = report_uses(function, eqx.combine(trainable, frozen), x)
    reasons = {use.reason for use in report}
    assert {"a product of two weights", "multiplied by an array"} <= reasons
    assert any("a reshape that joins" in str(reason) for reason in reasons)
    assert "need the merged weight" in str(report)


def rows_and_columns(m, x, place):
    """Of the table and the dense layer, by numbers, by ranges and by a number that is traced."""
    dense, table = m.dense.weight, m.table.weight
    some = dense[3] + dense[:, -2] + table[5] + table[place] + dense[place] + dense.T[2]
    return x @ table[4 : 4 + SIZE] + some[None] + x[:, 1:] @ dense[2:7, 1:].T @ dense[:5]


def one_of_a_stack(m, x, place):
    """Experts by number, some of them by a range, and rows of one."""
    w = m.experts.weight
    y = x @ w[1].T + x @ w[place].T + jnp.einsum("ni,eoi->neo", x, w[1:]).sum(axis=1)
    y = y + x[:, 1:] @ w[2, :, 1:].T
    return y @ w[-1] + x * w[0, 2][None] + jnp.einsum("ni,ei->ne", x, w[:, 3]) @ w[place, :3]


@pytest.mark.parametrize("function", [rows_and_columns, one_of_a_stack])
@pytest.mark.parametrize("method", ["lora", "vera", "lora-xs", "dora"])
def test_parts_of_weights(model, method, function):
    trainable, frozen = adapted(model, method)
    x = jr.normal(jr.key(5), (4, SIZE))
    assert_equal(function, trainable, frozen, x, jnp.array(2))
    report = report_uses(function, eqx.combine(trainable, frozen), x, jnp.array(2))
    merged = {use.operation for use in report if use.reason is not None}
    assert merged == (set() if method in LOW_RANK else {"slice", "dynamic_slice"})
    assert all(use.adapter.lower().startswith(method.replace("-", "")) for use in report)


@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_one_layer_of_a_stack_has_the_adapter_of_that_layer(model, method):
    def function(m, x, place):
        w = m.experts.weight
        return (x @ w[1].T + x @ w[place].T) @ w[-1] + jnp.einsum("ni,eoi->neo", x, w[:2])[:, 0, :1]

    trainable, frozen = adapted(model, method, target="experts")
    args = jr.normal(jr.key(5), (4, SIZE)), jnp.array(2)
    assert_equal(function, trainable, frozen, *args)
    report = report_uses(function, eqx.combine(trainable, frozen), *args)
    assert all(use.reason is None for use in report)


def test_parts_that_skip_places_are_merged(model):
    trainable, frozen = adapted(model, "lora")
    function = lambda m, x: x @ jax.lax.slice(m.dense.weight, (0, 0), (8, 8), (2, 1)).T  # noqa: E731
    assert_equal(function, trainable, frozen, jnp.ones((2, SIZE)))
    (use,) = report_uses(function, eqx.combine(trainable, frozen), jnp.ones((2, SIZE)))
    assert use.reason == "a slice with strides"


def test_a_row_costs_as_much_as_a_row(model):
    """Not as much as the merged table, in the forward and the backward pass."""

    def function(m, x):
        return x @ m.table.weight[3:5].T

    def largest(jaxpr):
        sizes = [
            v.aval.size for e in jaxpr.eqns if e.primitive.name == "dot_general" for v in e.outvars
        ]
        inner = [i.jaxpr for e in jaxpr.eqns for i in e.params.values() if hasattr(i, "jaxpr")]
        return max([0, *sizes, *map(largest, inner)])

    trainable, frozen = adapted(model, "lora", target="table")

    def step(function):
        loss = lambda t: jnp.sum(function(eqx.combine(t, frozen), jnp.ones((2, SIZE))))  # noqa: E731
        return largest(jax.make_jaxpr(jax.grad(loss))(trainable).jaxpr)

    assert step(function) == WORDS * SIZE
    assert step(through(function)) <= 2 * SIZE


@pytest.mark.parametrize("precision", ["highest", "high", None])
def test_products_have_the_precision_that_the_function_asks_for(model, precision):
    def function(m, x):
        return jnp.dot(x, m.dense.weight, precision=precision)

    trainable, frozen = adapted(model, "lora")
    x = jnp.ones((2, SIZE))
    assert_equal(function, trainable, frozen, x)
    m = eqx.combine(trainable, frozen)
    assert all(use.reason is None for use in report_uses(function, m, x))
    step = jax.make_jaxpr(lambda a, x: through(function)(eqx.combine(a, frozen), x))
    assert precision is None or "precision=None" not in str(step(trainable, x))


def test_functions_that_were_compiled_before_are_traced_anew(model):
    m = eqx.combine(*adapted(model, "lora"))
    compiled = eqx.filter_jit(lambda m, x: x @ m.dense.weight)
    x = jnp.ones((2, SIZE))
    expected = compiled(m, x)
    (use,) = report_uses(compiled, m, x)
    assert use.reason is None
    assert jnp.allclose(through(compiled)(m, x), expected, atol=1e-5)
    assert jnp.array_equal(compiled(m, x), expected)


# Methods whose forward has a loop, an elimination, a decomposition.
@pytest.mark.parametrize("method", ["boft", "oft", "hra"])
def test_taylor_mode_follows_layers_with_loops(model, method):
    m = eqx.combine(*adapted(model, method))
    x, series = jnp.linspace(-1, 1, SIZE), (jnp.ones(SIZE), jnp.zeros(SIZE))
    found = jet(lambda x: through(lambda m, x: jnp.tanh(m.dense(x)))(m, x), (x,), (series,))
    expected = jet(lambda x: jnp.tanh(m.dense(x)), (x,), (series,))
    assert eqx.tree_equal(found, expected, rtol=1e-5, atol=1e-6)


def test_reads_in_functions_with_a_rule_of_their_own_are_told(model):
    arrays, rest = eqx.partition(eqx.combine(*adapted(model, "lora")), eqx.is_array)

    @jax.custom_vjp
    def function(arrays, x):
        return x @ eqx.combine(arrays, rest).dense.weight

    function.defvjp(lambda a, x: (function(a, x), (a, x)), lambda kept, _: kept)
    (use,) = report_uses(function, arrays, jnp.ones((2, SIZE)))
    assert use.reason == "a function with a rule of its own reads it"


def test_derivatives_inside_of_the_function_are_merged_and_told(model):
    def function(m, x):
        return eqx.filter_grad(lambda m: jnp.sum((x @ m.dense.weight) ** 2))(m).dense.lora_A

    m = eqx.combine(*adapted(model, "lora"))
    x = jnp.ones((2, SIZE))
    assert jnp.allclose(through(function)(m, x), function(m, x), atol=1e-4)
    assert {use.operation for use in report_uses(function, m, x)} == {"read"}


def test_meshes_with_explicit_axes(model):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    m = eqx.combine(*adapted(model, "lora"))
    rows = jnp.arange(4.0 * SIZE).reshape(4, SIZE) / SIZE
    with jax.set_mesh(mesh):
        x = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.P("x")))
        found = through(lambda m, x: x @ m.table.weight.T)(m, x)
    assert jnp.allclose(found, rows @ m.table.weight.T, atol=1e-4)


def test_strict_names_the_use(model):
    m = eqx.combine(*adapted(model, "dora"))
    with pytest.raises(JnoLoraError, match=r"ragged_dot.* \(3, 8, 6\) of a DoRALinear needs"):
        eqx.filter_eval_shape(through(lambda m, ids: m(ids), strict=True), m, IDS)


def test_adapters_without_rules_are_merged():
    conv = eqx.nn.Conv1d(2, 4, 3, key=jr.key(0))
    trainable, frozen = adapted(conv, "lora")
    function = lambda m, x: jnp.einsum("oik,i->ok", m.weight, x)  # noqa: E731
    assert_equal(function, trainable, frozen, jnp.ones(2))
    (use,) = report_uses(function, eqx.combine(trainable, frozen), jnp.ones(2))
    assert (use.operation, use.reason) == ("read", "this adapter has no rules")


def test_declared_arrays_whose_adapter_merges_in_its_own_way_are_merged():
    class Doubled(LoRA, ArrayLayer):
        def merge(self):
            merged = super().merge()
            return DeclaredArray(2 * merged.array, merged.axes)

    box = DeclaredArray.of(jr.normal(jr.key(0), (3, 4)), "oi")
    m = eqx.combine(*adapted(box, Doubled))
    function = lambda w: w @ jnp.ones(4)  # noqa: E731
    assert jnp.allclose(through(function)(m), function(m.merge().plain()), atol=1e-5)
    (use,) = report_uses(function, m)
    assert (use.operation, use.reason) == ("read", "this adapter has no rules")


def test_methods_that_only_have_a_law_are_merged():
    """A product with the inputs, and one with the outputs."""

    class Shifted(Method):
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

    layer = eqx.nn.Linear(4, 3, key=jr.key(0))
    m = apply_lora(layer, 2, key=jr.key(1), wrapper=ShiftedLinear)
    function = lambda m, x: x @ m.weight.T @ m.weight  # noqa: E731
    x = jnp.ones((2, 4))
    assert jnp.allclose(through(function)(m, x), x @ (layer.weight + 1).T @ (layer.weight + 1))
    reasons = [use.reason for use in report_uses(function, m, x)]
    assert reasons == ["ShiftedLinear has no fast path here"] * 2
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(4, 3, key=key))(jr.split(jr.key(0), 2))
    stack = apply_lora(layers, 2, key=jr.key(1), wrapper=ShiftedLinear)
    of_stack = lambda m, x: jnp.einsum("ni,soi->sno", x, m.weight)  # noqa: E731
    assert jnp.allclose(through(of_stack)(stack, x), of_stack(stack, x), atol=1e-6)
    assert [use.reason for use in report_uses(of_stack, stack, x)] == reasons[:1]


def test_layers_with_a_leaf_that_cannot_be_hashed_are_merged():
    class Tagged(eqx.nn.Linear):
        tags: set

        def __init__(self):
            super().__init__(SIZE, 3, key=jr.key(0))
            self.tags = {"first"}

    m = eqx.combine(*adapted(Tagged(), "lora"))
    function = lambda x: x @ m.weight.T  # noqa: E731
    x = jnp.ones((2, SIZE))
    assert len(report_uses(function, x)) == 0
    assert jnp.allclose(through(function)(x), function(x), atol=1e-6)


def test_layers_that_lay_out_their_matrix_otherwise_are_merged():
    class Transposed(eqx.Module):
        """Its weight is `(in, out)`, which its adapter says."""

        weight: jax.Array
        in_features: int = eqx.field(static=True)
        out_features: int = eqx.field(static=True)

        def __call__(self, x):
            return x @ self.weight

    class TransposedLayer(LinearLayer):
        @classmethod
        def fits(cls, leaf):
            return isinstance(leaf, Transposed)

        @classmethod
        def matrix(cls, layer):
            return layer.weight.T

        @classmethod
        def with_matrix(cls, base, matrix):
            return eqx.tree_at(lambda m: m.weight, base, matrix.T)

        def computes(self, x):
            return False

    class LoRATransposed(LoRA, TransposedLayer):
        pass

    layer = Transposed(jr.normal(jr.key(0), (4, 3)), 4, 3)
    trainable, frozen = adapted(layer, LoRATransposed)
    function = lambda m, x: x @ m.weight  # noqa: E731
    assert_equal(function, trainable, frozen, jnp.ones((2, 4)))
    (use,) = report_uses(function, eqx.combine(trainable, frozen), jnp.ones((2, 4)))
    assert use.reason == "this adapter has no rules"


def test_ensembles_under_vmap_are_merged(model):
    make = eqx.filter_vmap(lambda key: apply_lora(model.dense, 2, key=key))
    ensemble = make(jr.split(jr.key(3), 2))
    function = eqx.filter_vmap(lambda m, x: m.weight @ x, in_axes=(eqx.if_array(0), None))
    x = jnp.ones(SIZE)
    assert jnp.allclose(through(function)(ensemble, x), function(ensemble, x), atol=1e-6)


def test_half_precision_rounds_as_the_adapter_does(model):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, model.dense)
    m = eqx.combine(*adapted(half, "lora"))
    x = jr.normal(jr.key(4), (3, SIZE), jnp.bfloat16)
    result = through(lambda m, x: x @ m.weight.T)(m, x)
    called = jax.vmap(m)(x) - m.bias[None]
    assert result.dtype == jnp.bfloat16
    assert jnp.max(jnp.abs(result - called)) <= 0.05


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

    found = through(function)(m, x)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_array(x) else x, m)
    expected = function(wide, x.astype(jnp.float32))
    for y, z, bound in zip(found, expected, (1e-5, 1e-5, 0.05), strict=True):
        assert y.dtype == jnp.float32
        assert jnp.max(jnp.abs(y - z)) <= bound * (1 + jnp.max(jnp.abs(z)))


def test_results_may_hold_weights_and_anything_else(model):
    m = eqx.combine(*adapted(model, "lora"))
    weight, name, layer = through(lambda m: (m.dense.weight, "name", m.dense))(m)
    assert jnp.allclose(weight, m.dense.weight, atol=1e-6)
    assert name == "name"
    assert isinstance(layer, LoRALinear)


def test_models_may_come_by_closure(model):
    m = eqx.combine(*adapted(model, "lora"))
    function = lambda x: x @ m.dense.weight  # noqa: E731
    x = jnp.ones((2, SIZE))
    assert all(use.reason is None for use in report_uses(function, x))
    assert jnp.allclose(through(function)(x), function(x), atol=1e-5)


def test_a_net_in_training(model):
    net = Net(model).freeze().lora(2, wrapper="auto")
    trainable, frozen = net.partition()
    assert_equal(lambda m, ids: m(ids), trainable, frozen, IDS)


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

    words, size = 512, 128
    table = eqx.nn.Embedding(words, size, key=jr.key(0))
    call = lambda m, ids: m(ids)  # noqa: E731
    flops, memory = cost(through(call), Tied(table))
    head = eqx.nn.Linear(size, words, use_bias=False, key=jr.key(1))
    of_layers = cost(call, Layers(table, head))
    of_merging = cost(call, Tied(table))
    assert flops <= 1.05 * of_layers[0] < of_merging[0]
    assert memory <= 1.05 * of_layers[1] < of_merging[1]
