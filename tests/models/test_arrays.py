"""Models of other projects that keep their weights as bare arrays."""

import os

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno.lora import Net
from jno_lora_arrays import declare, infer, plain, report_uses, through

pytestmark = pytest.mark.skipif(
    not os.environ.get("JNO_LORA_TEST_MODELS"), reason="run by `make test-models`"
)


def call(model, x):
    return model(x)


def fno(key):
    import pdequinox

    return pdequinox.arch.ClassicFNO(
        1, 2, 2, hidden_channels=8, num_modes=4, num_blocks=2, activation=jax.nn.gelu, key=key
    )


def pit(key):
    import foundax

    return foundax.pit(
        2,
        3,
        hid_channels=8,
        n_head=2,
        input_res=(4, 4),
        latent_res=(2, 2),
        output_res=(4, 4),
        key=key,
    )


# The model, its input, and the ends of the names of arrays that are no matrices of a product: PiT's
# tables of distances are constants, and `r` is a scale for them.
MODELS = {
    "pdequinox-fno": (fno, (2, 16), ("bias",)),
    "foundax-pit": (pit, (1, 16, 2), ("bias", "r", "m_dist_down", "m_dist_proc", "m_dist_up")),
}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_bare_arrays_are_adapted(name, method):
    make, shape, others = MODELS[name]
    model, x = make(jr.key(0)), jr.normal(jr.key(1), shape)
    axes = infer(call, model, x)
    missed = [row for row in axes if row.axes is None and "in a layer" not in row.reason]
    assert all(row.path.endswith(others) for row in missed if len(row.shape) > 1), str(axes)
    net = Net(declare(model, axes)).freeze().lora(rank=2, alpha=3.0, wrapper=method)
    trainable, frozen = net.partition()
    moved = jax.tree.map(
        lambda t: t + 0.05 * jr.normal(jr.key(t.size), t.shape, t.dtype), trainable
    )

    def loss(trainable, computed):
        y = computed(eqx.combine(trainable, frozen), x)
        return jnp.sum(jnp.sin(y)), y

    found, expected = (
        eqx.filter_jit(eqx.filter_value_and_grad(lambda t, f=f: loss(t, f), has_aux=True))(moved)
        for f in (through(call), lambda model, x: plain(model)(x))
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.max(jnp.abs(a - b)) <= 1e-3 * (1 + jnp.max(jnp.abs(b)))
    if method == "lora":
        uses = report_uses(call, net.module, x)
        assert all("merging is cheaper" in use.reason for use in uses if use.reason is not None)
