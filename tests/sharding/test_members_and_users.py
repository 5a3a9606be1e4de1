"""A run that outgrows one device: members and users along one axis of the mesh."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from jno.lora import Net, extract_adapters
from jno_lora_bank import AdapterBank, at_slot
from jno_lora_uncertainty import Ensemble, folds

COLLECTIVES = re.compile(r"(all-gather|all-reduce|all-to-all|collective-permute)")
MODEL = eqx.nn.MLP(6, 3, 16, 2, key=jax.random.key(0))
X = jax.random.normal(jax.random.key(1), (64, 6))
DATA = X, jnp.sin(X[:, :3])


def mesh_of(axis):
    return jax.make_mesh((8,), (axis,), axis_types=(AxisType.Auto,))


def error(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def test_an_ensemble_of_eight_trains_on_eight_devices_without_gathering_adapters():
    mesh = mesh_of("members")
    split, whole = NamedSharding(mesh, P("members")), NamedSharding(mesh, P())
    ensemble = Ensemble(lambda key: Net(MODEL, key=key).freeze().lora(2), 8, key=jax.random.key(3))
    loss, optimiser = Ensemble.loss(error), optax.sgd(0.1, momentum=0.9)
    batch = folds(64, 8, key=jax.random.key(2)).training(DATA)

    @eqx.filter_jit
    def step(trainable, frozen, state, batch):
        of_all = lambda t: loss(eqx.combine(t, frozen), batch)  # noqa: E731
        gradient = eqx.filter_grad(of_all)(trainable)
        updates, state = optimiser.update(gradient, state)
        return eqx.apply_updates(trainable, updates), state

    def trained(trainable, frozen, batch):
        state = optimiser.init(eqx.filter(trainable, eqx.is_array))
        for _ in range(3):
            trainable, state = step(trainable, frozen, state, batch)
        return trainable, step.lower(trainable, frozen, state, batch).compile()

    trainable, frozen = ensemble.partition()
    alone, _ = trained(trainable, frozen, batch)
    together, program = trained(
        eqx.filter_shard(trainable, split),
        eqx.filter_shard(frozen, whole),
        eqx.filter_shard(batch, split),
    )
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        assert other.sharding.is_equivalent_to(split, other.ndim)
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    assert "all-gather" not in COLLECTIVES.findall(program.compiled.as_text())


@pytest.mark.slow
def test_a_bank_of_64_users_runs_on_eight_devices_without_any_exchange():
    mesh = mesh_of("users")
    model = eqx.filter_shard(MODEL, NamedSharding(mesh, P()))

    def user(number):
        net = Net(MODEL, key=jax.random.key(number)).freeze().lora(rank=2)
        moved = jax.tree.map(lambda x: x + 0.002 * number, net.partition()[0])
        return extract_adapters(net.update(moved).module)

    users = {f"user {i}": user(i) for i in range(64)}
    bank = AdapterBank(model, users, slots=64, axis="users")
    expected = bank.run([*users], X)

    snapshot = bank.snapshot()
    arrays, static = eqx.partition(snapshot.model, eqx.is_array)
    specs = jax.tree.map(lambda x: x.sharding.spec, arrays)
    slots = snapshot.model.layers[0].lora_A.shape[0]

    @jax.jit
    def serve(arrays, slots_of, xs):
        def local(arrays, slots_of, xs):
            first = jax.lax.axis_index("users") * (slots // 8)  # of the slots on this device
            model = eqx.combine(arrays, static)
            return jax.vmap(lambda slot, x: at_slot(model, slot - first)(x))(slots_of, xs)

        given = (specs, P("users"), P("users"))
        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=given, out_specs=P("users"), check_vma=False
        )
        return mapped(arrays, slots_of, xs)

    places = snapshot.indices([*users])  # each example where its slot is
    xs = jnp.zeros((slots, 6)).at[places].set(X)
    outputs = serve(arrays, jnp.arange(slots), xs)[places]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
    text = serve.lower(arrays, jnp.arange(slots), xs).compile().as_text()
    assert not COLLECTIVES.findall(text)
