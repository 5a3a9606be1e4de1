"""Arrays that many adapters share: one leaf, its gradient the sum over all of its users."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jno.lora
from jno.lora import Net, SelectionError, Shared, WrapperError, resolve
from jno.lora._shared_arrays import names_to_resolve
from jno.lora.extending import put_around

from .tied import Frozen, Tied, X, adapted, apply, leaves_named, mlp, moved, normal, run, with_stack


def test_an_array_is_one_leaf_of_the_first_adapter_in_its_largest_shape() -> None:
    model = adapted()
    assert leaves_named(model, ".A.value") == [".layers[0].A.value"]
    assert model.layers[0].A.value.shape == (2, 5) and model.layers[0].B.value.shape == (5, 2)
    assert jno.lora.lora_report(model).trainable == 2 * 5 + (5 + 5 + 2)
    specs = [{"target": "layers/0", "wrapper": Frozen}, {"wrapper": Tied}]
    assert leaves_named(apply(None, specs=specs), ".A.value") == [".layers[0].A.value"]


def test_the_gradient_is_the_sum_over_all_users() -> None:
    model = adapted()
    trainable, frozen = eqx.partition(model, jno.lora.lora_trainable_filter(model))

    @eqx.filter_jit
    def gradient(trainable: Any, ready: Any) -> Any:
        def loss(trainable: Any) -> Any:
            return jnp.sum(jax.vmap(ready(eqx.combine(trainable, frozen)))(X) ** 2)

        return eqx.filter_grad(loss)(trainable)

    def by_hand(arrays: list[Any]) -> Any:
        """With a copy of the array for each layer."""

        def layer(at: Any, A: Any, x: Any) -> Any:
            B = model.layers[0].B.value[: at.b.size]
            return at.base(x) + at.b * (B @ (A[:, : x.size] @ x))

        def one(x: Any) -> Any:
            for at, A in zip(model.layers[:-1], arrays[:-1], strict=True):
                x = jax.nn.relu(layer(at, A, x))
            return layer(model.layers[-1], arrays[-1], x)

        return jnp.sum(jax.vmap(one)(X) ** 2)

    A, found = model.layers[0].A.value, gradient(trainable, resolve)
    expected = sum(jax.grad(by_hand)([A, A, A]))
    np.testing.assert_allclose(found.layers[0].A.value, expected, rtol=1e-4, atol=1e-4)
    merged = gradient(trainable, jno.lora.merge_lora)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_what_resolve_is_for() -> None:
    with pytest.raises(WrapperError, match=r"jno\.lora\.resolve\("):
        jax.vmap(adapted())(X)
    resolved = resolve(adapted())
    with pytest.raises(SelectionError, match="was resolved"):  # and is not trained by mistake
        jno.lora.lora_trainable_filter(resolved)
    assert eqx.tree_equal(jax.tree.leaves(resolve(resolved)), jax.tree.leaves(resolved))
    plain, model, traces = mlp(), adapted(), []
    assert resolve(plain) is plain

    @eqx.filter_jit
    def call(model: Any, x: Any) -> Any:
        traces.append(None)
        return model(x)

    for _ in range(3):  # a compiled function is found again
        call(resolve(model), jnp.asarray(X[0]))
    assert len(traces) == 1


def test_merge_unwrap_and_weights_that_are_read() -> None:
    model = adapted()
    np.testing.assert_allclose(jax.vmap(jno.lora.merge_lora(model))(X), run(model), rtol=1e-5)
    assert eqx.tree_equal(jno.lora.unwrap_lora(model), mlp())
    resolved = resolve(model)
    merged = jno.lora.merge_lora(resolved)
    np.testing.assert_array_equal(resolved.layers[1].weight, merged.layers[1].weight)
    with pytest.raises(WrapperError, match="resolve"):
        _ = model.layers[1].weight


def sharing(make_A: Any) -> Any:
    """An adapter whose `A` is of another form."""

    class Sharing(Tied):
        A: Any

        def __init__(self, base: Any, rank: int, alpha: float, *, key: Any):
            super().__init__(base, rank, alpha, key=key)
            self.A = make_A(self.A.shape)

    return Sharing


# Its array is made by a function that differs from adapter to adapter.
Sized = sharing(lambda shape: Shared("sized-A", shape, lambda key, shape: 3 * normal(key, shape)))


@pytest.mark.parametrize("wrapper", [Tied, Frozen, Sized])
def test_sets_and_swaps(wrapper: Any) -> None:
    model = adapted(wrapper=wrapper)
    adapters = jno.lora.extract_adapters(model)
    assert len(adapters.shared) == 2 and "A/value" not in adapters["layers/0"].state
    name = model.layers[0].A.name
    assert adapters.shared[name] is model.layers[0].A.value
    for base in (mlp(), moved(model)):
        swapped = jno.lora.swap_adapters(base, adapters)
        assert eqx.tree_equal(swapped, model)
        if wrapper is Frozen:  # one buffer
            assert {id(layer.A.value) for layer in swapped.layers} == {id(adapters.shared[name])}


@pytest.mark.parametrize("wrapper", [Tied, Frozen])
def test_named_adapters_and_later_calls_of_a_net_use_the_array_that_exists(wrapper: Any) -> None:
    net = Net(mlp()).freeze().lora(rank=2, wrapper=wrapper, target="layers/[12]")
    kept = net.module.layers[1].A.value
    net.lora(rank=2, wrapper=wrapper, target="layers/0")
    trains = wrapper is Tied
    assert net.module.layers[0].A.value is kept
    assert (net.module.layers[1].A.value is kept) is not trains
    assert bool(net.trainable.layers[0].A.value) is trains
    net.add_adapter("one").update(moved(net.partition()[0]))
    expected = jax.vmap(net)(X)
    if trains:
        net.mask(r"layers/0/A").freeze()
    net.deactivate().activate("one")
    np.testing.assert_array_equal(jax.vmap(net)(X), expected)
    assert not net.trainable.layers[0].A.value and net.trainable.layers[1].b


def scanned(model: Any, x: Any) -> Any:
    arrays, rest = eqx.partition(model[0], eqx.is_array)
    x, _ = jax.lax.scan(lambda x, own: (jnp.tanh(eqx.combine(own, rest)(x)), None), x, arrays)
    return model[1](x)


def test_stacked_layers_run_by_a_scan() -> None:
    model = adapted(with_stack(2))

    def loss(model: Any, ready: Any) -> Any:
        return jnp.sum(jax.vmap(lambda x: scanned(ready(model), x))(X) ** 2)

    (one, by_call), (two, by_merge) = (
        eqx.filter_jit(eqx.filter_value_and_grad(loss))(model, ready)
        for ready in (resolve, jno.lora.merge_lora)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    np.testing.assert_allclose(by_call[0].A.value, by_merge[0].A.value, rtol=1e-4, atol=1e-5)
    # Without `resolve`: we see a slice of the array, or JAX an array without the axis of the stack.
    with pytest.raises(WrapperError, match="resolve"):
        loss(model, lambda model: model)
    with pytest.raises(ValueError, match="different leading axis sizes"):
        loss(adapted(with_stack(3)), lambda model: model)
    report = Net(model).summary(merge_error=True)
    assert all(row.merge_error is not None for row in report)


def test_a_stack_has_a_copy_of_a_frozen_array_for_each_layer() -> None:
    model = adapted(with_stack(3), wrapper=Frozen)
    stack, last = model
    assert stack.A.value.shape == (3, 2, 3) and last.A.value.shape == (2, 3)
    assert not names_to_resolve(model) and names_to_resolve(adapted(with_stack(3))) == {"tied-A"}
    outputs = jax.vmap(partial(scanned, model))(X)  # without `resolve`
    for ready in (resolve, jno.lora.merge_lora):
        expected = jax.vmap(partial(scanned, ready(model)))(X)
        np.testing.assert_allclose(outputs, expected, rtol=1e-5)
    mapped = eqx.filter_vmap(lambda layer, x: layer(x), in_axes=(eqx.if_array(0), None))
    expected = mapped(jno.lora.merge_lora(stack), X[0])
    np.testing.assert_allclose(mapped(stack, X[0]), expected, rtol=1e-5)
    adapters = jno.lora.extract_adapters(model)
    assert {array.shape for array in adapters.shared.values()} == {(2, 3), (3, 2)}
    assert eqx.tree_equal(jno.lora.swap_adapters(with_stack(3), adapters), model)
    net = Net(with_stack(3)).freeze().lora(rank=2, wrapper=Frozen, target="^0$")
    net.lora(rank=2, wrapper=Frozen, target="^1$")
    np.testing.assert_array_equal(net.module[0].A.value[2], net.module[1].A.value)
    adapt = partial(jno.lora.apply_lora, with_stack(3)[1], 2, wrapper=Frozen)
    several = eqx.filter_vmap(lambda key: adapt(key=key))(jax.random.split(jax.random.key(0), 2))
    with pytest.raises(SelectionError, match="two models"):  # their arrays differ
        jno.lora.extract_adapters(several)


def test_a_sharded_model_keeps_the_array_on_every_device() -> None:
    mesh = Mesh(jax.devices()[:2], ("x",))
    model = eqx.filter_shard(mlp(), NamedSharding(mesh, PartitionSpec()))
    array = adapted(model).layers[0].A.value
    assert array.sharding == NamedSharding(mesh, PartitionSpec())


def test_a_part_of_a_model_lacks_the_array_and_gets_no_other_one() -> None:
    alone = adapted().layers[1]
    restored = Tied.from_state(alone.base, alone.state(), 2, 1.0)
    for adapter, key in ((alone, None), (alone, jax.random.key(0)), (restored, jax.random.key(0))):
        with pytest.raises(SelectionError, match="'tied-A', which is missing"):
            resolve(adapter, key=key)
    # An adapter that is built by hand gets it from a key.
    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    by_hand: Any = Tied(layer, 2, 1.0, key=jax.random.key(1))
    with pytest.raises(WrapperError, match=r"resolve\(adapter, key=key\)"):
        by_hand(X[0])
    whole: Any = resolve(by_hand, key=jax.random.key(1))
    np.testing.assert_array_equal(whole(X[0]), layer(X[0]))


def test_an_array_that_is_there_already_is_refused() -> None:
    for call in (resolve, jno.lora.extract_adapters):
        with pytest.raises(SelectionError, match="two models"):
            call([adapted(), adapted()])
    net = Net(mlp()).lora(rank=2, wrapper=Tied, target="layers/0")
    brought = jno.lora.extract_adapters(apply(target="layers/1"))
    with pytest.raises(SelectionError, match="share an array 'tied-A' already"):
        put_around(net.module, brought)
    with pytest.raises(SelectionError, match="in one call"):  # it needs a larger array
        net.lora(rank=2, wrapper=Tied, target="layers/1")
    assert net.module.layers[1].__class__ is eqx.nn.Linear


def test_names_that_clash() -> None:
    line = sharing(lambda shape: Shared("tied-A", shape[:1], normal))
    with pytest.raises(SelectionError, match=r"array 'tied-A' is .* shape"):
        apply(None, specs=[{"target": "layers/0", "wrapper": line}, {"wrapper": Tied}])
    with pytest.raises(WrapperError, match="must be a field of the adapter itself, or in a dict"):
        apply(sharing(lambda shape: [Shared("tied-A", shape, normal)]))


def test_two_packages_do_not_share_an_array_by_accident() -> None:
    def ones(key: Any, shape: Any) -> Any:
        return jnp.ones(shape)

    Foreign = sharing(lambda shape: Shared("tied-A", shape, partial(partial(ones))))

    class Borrowing(Tied):
        """Of another package, with the arrays of `Tied`."""

    Foreign.__module__ = Borrowing.__module__ = "acme_lora.adapters"
    first = apply(target="layers/1")
    borrowed = jno.lora.apply_lora(first, 2, key=jax.random.key(0), wrapper=Borrowing)
    assert leaves_named(borrowed, ".A.value")
    for module in ("acme_lora.adapters", "jax.nn"):  # JAX's functions belong to no adapter
        ones.__module__ = module
        with pytest.raises(SelectionError, match="share an array 'tied-A', but different packages"):
            jno.lora.apply_lora(first, 2, key=jax.random.key(0), wrapper=Foreign)


def test_a_frozen_array_is_one_buffer_that_every_adapter_holds() -> None:
    net = Net(mlp()).lora(rank=2, wrapper=Frozen).unfreeze()
    net.update(moved(net.partition()[0]))
    arrays = {(id(layer.A.value), id(layer.B.value)) for layer in net.module.layers}
    assert len(arrays) == 1
    assert not any(layer.A.value or layer.B.value for layer in net.trainable.layers)
    expected = jax.vmap(jno.lora.merge_lora(net.module))(X)
    np.testing.assert_allclose(jax.vmap(net.module)(X), expected, rtol=1e-5)
    np.testing.assert_array_equal(run(net.module), jax.vmap(net.module)(X))
    model = apply(Frozen)
    assert jno.lora.lora_report(model).trainable == 5 + 5 + 2
    assert Net(model).summary().total == Net(mlp()).summary().total + 5 + 5 + 2


def test_copies_of_a_frozen_array_are_one_array_and_other_values_are_two() -> None:
    model = adapted(wrapper=Frozen)
    copied = jax.tree.map(lambda x: x.copy() if eqx.is_array(x) else x, model)
    assert copied.layers[0].A.value is not copied.layers[1].A.value
    sets = [jno.lora.extract_adapters(one) for one in (model, copied)]
    assert eqx.tree_equal(*sets)
    pair = [model, adapted(wrapper=Frozen, seed=3)]
    call = lambda pair: [jax.vmap(one)(X) for one in resolve(pair)]  # noqa: E731
    for found in (call(pair), eqx.filter_jit(call)(pair)):
        for one, result in zip(pair, found, strict=True):
            np.testing.assert_allclose(result, run(one), rtol=1e-6)
    with pytest.raises(SelectionError, match="'tied-A' in this tree"):
        jno.lora.extract_adapters(pair)


def test_an_optimiser_sees_one_array_and_training_moves_it() -> None:
    net = Net(mlp()).freeze().lora(rank=2, wrapper=Tied)
    trainable, frozen = net.partition()
    assert len(leaves_named(trainable, ".A.value")) == 1
    before = net.module.layers[0].A.value
    gradient = eqx.filter_jit(eqx.filter_grad(lambda t: jnp.sum(run(eqx.combine(t, frozen)) ** 2)))
    for _ in range(2):  # `b` is zero at first
        trainable = jax.tree.map(lambda p, g: p - 0.01 * g, trainable, gradient(trainable))
    net.update(trainable)
    assert not jnp.allclose(net.module.layers[0].A.value, before)
    np.testing.assert_array_equal(jax.vmap(net)(X), run(net.module))
