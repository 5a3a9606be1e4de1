import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jno.lora import Net, resolve
from jno_lora_zoo import collect_statistics

X = jax.random.normal(jax.random.key(1), (16, 4))
Y = jnp.sin(2 * X[:, :3])


def loss(model, batch):
    x, y = batch
    return jnp.mean((jax.vmap(resolve(model))(x) - y) ** 2)


def test_the_adapter_is_found_trained_saved_loaded_and_merged(tmp_path):
    model = eqx.nn.MLP(4, 3, 6, 2, key=jax.random.key(0))
    net = Net(model).freeze()
    statistics = collect_statistics(model, [(X, Y)], loss, wrapper="principal-inputs")
    net.lora(rank=2, alpha=2, wrapper="principal-inputs", statistics=statistics)
    # The bank exists once.
    assert net.summary().trainable == 2 * (4 + 6 + 6) + 8 * 6 + 3 * 2 * 8
    np.testing.assert_allclose(jax.vmap(net)(X), jax.vmap(model)(X), atol=1e-5)
    trainable, frozen = net.partition()
    step = eqx.filter_jit(
        eqx.filter_value_and_grad(lambda trainable: loss(eqx.combine(trainable, frozen), (X, Y)))
    )
    losses = []
    for _ in range(30):
        value, grads = step(trainable)
        losses.append(value)
        trainable = jax.tree.map(lambda p, g: p - 0.2 * g, trainable, grads)
    assert losses[-1] < 0.98 * losses[0]
    net.update(trainable).save_adapters(tmp_path / "a.safetensors")
    expected = jax.vmap(net)(X)
    loaded = Net(model).load_adapters(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(jax.vmap(loaded)(X), expected)
    np.testing.assert_allclose(jax.vmap(loaded.merge())(X), expected, atol=1e-5)
