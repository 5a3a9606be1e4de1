"""Arrow and X-LoRA: sets that do not fit, stacked layers, files, and what trains."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from routed_sets import lora_sets

from jno.lora import (
    AdapterSet,
    DoRALinear,
    Net,
    SelectionError,
    WrapperError,
    extract_adapters,
    load_adapters,
    save_adapters,
    swap_adapters,
)
from jno.lora.extending import adapted_layers
from jno_lora_bank import AdapterBank
from jno_lora_routed import ArrowLoRA, HydraLoRA, MoELoRA, Poly, Softmax, XLoRA, arrow, average_over

IN, LAYERS, N = 4, 2, 3
KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(5).normal(size=(5, IN)), jnp.float32)


class Stack(eqx.Module):
    """Layers of one shape as one object, which a scan calls."""

    layers: eqx.nn.Linear

    def __call__(self, x):
        arrays, static = eqx.partition(self.layers, eqx.is_array)
        return jax.lax.scan(lambda x, a: (jnp.tanh(eqx.combine(a, static)(x)), None), x, arrays)[0]


class Row(eqx.Module):
    """The same layers, one by one."""

    layers: list

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


@pytest.fixture(scope="module")
def models():
    """Both forms, and sets of the same adapters for each."""

    def part(tree, j):
        return jax.tree.map(lambda x: x[j] if eqx.is_array(x) else x, tree)

    keys = jax.random.split(KEY, LAYERS)
    layers = eqx.filter_vmap(lambda key: eqx.nn.Linear(IN, IN, key=key))(keys)
    stack, row = Stack(layers), Row([part(layers, j) for j in range(LAYERS)])
    of_stack, of_row = lora_sets(stack, N), lora_sets(row, N)
    for whole, adapters in zip(of_stack, of_row, strict=True):
        for j in range(LAYERS):
            adapters[f"layers/{j}"].state.update(part(dict(whole["layers"].state), j))
    return stack, of_stack, row, of_row


def hidden(model, x):
    return model(x)


def test_a_stack_is_routed_as_its_layers_are(models):
    stack, of_stack, row, of_row = models
    options = {"features": IN, "key": KEY, "layerwise": True, "softmax": False}
    for route in (
        lambda model, sets: arrow(model, sets, top_k=2),
        lambda model, sets: XLoRA(model, sets, hidden, **options),
    ):
        routed = route(stack, of_stack)
        outputs = jax.vmap(routed)(X)
        np.testing.assert_allclose(outputs, jax.vmap(route(row, of_row))(X), atol=1e-5)
        assert not np.allclose(outputs, jax.vmap(stack)(X), atol=1e-3)
    assert routed.scalings(X[0]).shape == (LAYERS, N)


def test_general_knowledge_in_a_stack(models):
    stack, of_stack, row, of_row = models
    for count in (LAYERS, N):  # as many experts as layers, and more
        factors = arrow(stack, of_stack[:count], general=of_stack[1:]).layers
        layers = arrow(row, of_row[:count], general=of_row[1:]).layers
        for name in ("lora_A", "lora_B"):
            expected = [getattr(layer, name) for layer in layers]
            np.testing.assert_allclose(getattr(factors, name), np.stack(expected), atol=1e-6)


def test_an_adapter_that_changes_nothing_has_no_prototype(models):
    stack, _, row, sets = models
    for model, made in ((stack, models[1]), (row, sets)):
        plain = extract_adapters(Net(model).lora(rank=2).module)  # `B` is zero
        routers = [layer.routing for _, layer in adapted_layers(arrow(model, [plain, made[0]]))]
        for router in routers:
            assert not np.any(router.weight[..., 0, :])
            norms = np.linalg.norm(router.weight[..., 1, :], axis=-1)
            np.testing.assert_allclose(norms, 1, atol=1e-6)


def test_only_the_classifier_trains_by_default(models):
    _, _, row, sets = models
    for train_experts in (False, True):
        xlora = XLoRA(row, sets, hidden, features=IN, key=KEY, train_experts=train_experts)
        trainable, frozen = xlora.partition()
        loss = lambda t, f=frozen: jnp.sum(eqx.combine(t, f)(X[0]) ** 2)  # noqa: E731
        gradients = eqx.filter_grad(loss)(trainable)
        assert all(np.any(g) for g in jax.tree.leaves(gradients.classifier))
        assert bool(jax.tree.leaves(gradients.model)) is train_experts
        assert all(np.any(g) for g in jax.tree.leaves(gradients.model))


def test_files_of_arrow(models, tmp_path):
    _, _, row, sets = models
    bank = AdapterBank(row, dict(zip("abc", sets, strict=True)))
    routed = arrow(row, [bank.adapters(name) for name in bank.slots], top_k=2, temperature=0.5)
    path = tmp_path / "arrow.safetensors"
    save_adapters(routed, path)
    assert eqx.tree_equal(load_adapters(row, path, wrappers=ArrowLoRA), routed)
    for index, adapters in enumerate(sets):
        save_adapters(swap_adapters(row, adapters), tmp_path / f"{index}.safetensors")
    files = sorted(tmp_path.glob("?.safetensors"))
    assert eqx.tree_equal(arrow(row, files, top_k=2, temperature=0.5), routed)


def test_smaller_ranks_are_padded(models):
    _, _, row, sets = models
    (small,) = lora_sets(row, 1, rank=1)
    adapter = arrow(row, [*sets, small]).layers[0]
    factors = small["layers/0"].state
    assert adapter.rank == 2
    np.testing.assert_allclose(
        adapter.lora_B[N] @ adapter.lora_A[N], factors["lora_B"] @ factors["lora_A"], atol=1e-6
    )
    with pytest.raises(SelectionError, match="`general` needs sets of one rank"):
        arrow(row, sets, general=[small])


def test_sets_that_do_not_fit(models):
    stack, _, row, sets = models
    with pytest.raises(SelectionError, match="There are no adapters to route between"):
        arrow(row, [])
    first = AdapterSet({"layers/0": sets[0]["layers/0"]})
    with pytest.raises(SelectionError, match="set 1 adapts layers/0, not layers/0, layers/1"):
        XLoRA(row, [sets[0], first], hidden, features=IN, key=KEY)
    dora = {p: dataclasses.replace(sets[0][p], wrapper=DoRALinear) for p in sets[0]}
    with pytest.raises(SelectionError, match="DoRALinear is not a product of factors"):
        arrow(row, [sets[0], AdapterSet(dora)])
    with pytest.raises(SelectionError, match="do not fit the model"):
        arrow(stack, sets)
    for options in ({"top_k": 0}, {"temperature": 0.0}):
        with pytest.raises(SelectionError, match="must be"):
            arrow(row, sets, **options)


def test_options_of_xlora(models, unchecked):
    _, _, row, sets = models
    given = {"hidden": hidden, "features": IN, "key": KEY}
    with pytest.raises(ValueError, match="`top_k` must be"):
        XLoRA(row, sets, **given, top_k=N + 1)
    twice = lambda model, x: jnp.stack([x, x])  # noqa: E731
    for options, message in (
        ({"features": 3}, r"shape \(4,\)\. It must give \(3,\)"),
        ({"hidden": twice}, "with `axis`, the name of the axis"),
        ({"hidden": twice, "axis": "tokens"}, r"vmap\(\.\.\., axis_name='tokens'\)"),
    ):
        with pytest.raises(WrapperError, match=message):
            XLoRA(row, sets, **{**given, **options})(X[0])


def test_no_array_of_a_set_is_empty(models):
    """Orbax refuses empty arrays."""
    for wrapper, options in (("lily", {}), ("lily", {"group": 2}), ("poly", {})):
        module = Net(models[2]).lora(rank=2, wrapper=wrapper, options=options).module
        adapters = extract_adapters(module)
        assert all(array.size for array in jax.tree.leaves(adapters))
        assert eqx.tree_equal(swap_adapters(models[2], adapters), module)


def test_options_of_adapters():
    layer = eqx.nn.Linear(6, 4, key=KEY)
    for wrapper, options, text in (
        (HydraLoRA, {"experts": 0}, "`experts` must be an int of at least 1"),
        (MoELoRA, {"experts": 2, "top_k": 3}, "`top_k` must be an int from 1 to 2"),
        (Poly, {"splits": 4}, "`splits` must divide 6 inputs and 4 outputs"),
    ):
        with pytest.raises(ValueError, match=text):
            wrapper(layer, 2, 2.0, key=KEY, **options)

    class OnSoftmax(MoELoRA):
        router_class = Softmax

    assert OnSoftmax(layer, 2, 2.0, key=KEY).routing(jnp.ones(6)).shape == (4,)
    with pytest.raises(ValueError, match="`top_k` is for a TopK, not for a Softmax"):
        OnSoftmax(layer, 2, 2.0, key=KEY, top_k=2)

    class OfTokens(Poly):
        router_class = Softmax

    adapter = OfTokens(layer, 2, 2.0, key=KEY, skills=3, splits=2)
    assert adapter.routing(jnp.ones(6)).shape == (6,)
    with pytest.raises(ValueError, match="`tasks` and `sampled` are for a Tasks, not for a Soft"):
        OfTokens(layer, 2, 2.0, key=KEY, tasks=2)
    with pytest.raises(SelectionError, match="no adapters with a gate"):
        average_over(layer, "tokens")
    averaged = average_over(HydraLoRA(layer, 2, 2.0, key=KEY), "toks")
    with pytest.raises(WrapperError, match=r"vmap\(\.\.\., axis_name='toks'\)"):
        jax.vmap(averaged)(jnp.ones((3, 6)))


def test_only_layers_with_known_axes_are_adapted():
    class Other(eqx.nn.Linear):
        def __call__(self, x, *, key=None):
            return 2 * super().__call__(x)

    other = Other(6, 4, key=KEY)
    assert not HydraLoRA.applies_to(other)
    assert "which axis of its input a Other has features on" in HydraLoRA.why_not(other)
    scalar = eqx.nn.Linear("scalar", "scalar", key=KEY)
    matrix = eqx.nn.Linear(6, 4, use_bias=False, key=KEY)
    for layer, x in ((scalar, jnp.asarray(2.0)), (matrix, jnp.ones((6, 3)))):
        adapter = MoELoRA(layer, 2, 2.0, key=KEY)
        assert np.array_equal(adapter(x), layer(x))
