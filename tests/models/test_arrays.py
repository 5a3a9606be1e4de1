"""Models of other projects that keep their weights as bare arrays."""

import os
from typing import Any, NamedTuple

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


def unet(key):
    import pdequinox

    return pdequinox.arch.ModernUNet(
        1, 2, 3, hidden_channels=8, num_levels=1, num_blocks=1, key=key
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


def walrus(key):
    import foundax

    return foundax.walrus(
        hidden_dim=16,
        intermediate_dim=8,
        n_states=6,
        processor_blocks=1,
        groups=2,
        num_heads=2,
        base_kernel_size=((4, 2),) * 3,
        encoder_groups=2,
        key=key,
    )


def call_walrus(model, plane, space):
    """Each number of dimensions has an encoder and a decoder of its own."""
    labels = jnp.array([3, 5])
    return (
        model(plane, labels, [[2, 2], [0, 0]], (2, 2, 1), (2, 2, 1)),
        model(space, labels, [[2, 2], [0, 0], [2, 2]], (2, 2, 2), (2, 2, 2)),
    )


def flow(key):
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow

    return masked_autoregressive_flow(
        key, base_dist=Normal(jnp.zeros(3)), flow_layers=2, nn_width=8, nn_depth=1
    )


def log_prob(model, x):
    return model.log_prob(x)


class Case(NamedTuple):
    """A model with bare arrays.

    - `make`, `call`, `shapes`: the model, how it is called, and the shapes of its inputs.
    - `coverage`: the part of the matrices' entries that `infer` reaches, at the least.
    - `others`: the ends of the names of arrays that are not matrices of a product.
    - `merged`: why some uses are merged, besides that merging is cheaper.
    """

    make: Any
    call: Any
    shapes: tuple[tuple[int, ...], ...]
    coverage: float
    others: tuple[str, ...] = ()
    merged: frozenset[str] = frozenset()


MODELS = {
    "pdequinox-fno": Case(fno, call, ((2, 16),), 0.98, ("bias",)),
    "pdequinox-unet": Case(unet, call, ((2, 16),), 0.98, ("bias",)),
    # Its tables of distances are constants, and `r` is a scale for them.
    "foundax-pit": Case(
        pit, call, ((1, 16, 2),), 0.85, ("bias", "r", "m_dist_down", "m_dist_proc", "m_dist_up")
    ),
    "foundax-walrus": Case(
        walrus,
        call_walrus,
        ((1, 2, 8, 8, 2), (1, 2, 8, 8, 8, 2)),
        0.98,
        merged=frozenset({"summed over an axis", "reversed"}),
    ),
    # Biases of scanned layers have two axes, and count as matrices.
    "flowjax-masked-autoregressive": Case(
        flow, log_prob, ((5, 3),), 0.83, ("bias",), frozenset({"masked"})
    ),
}


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("name", MODELS)
def test_bare_arrays_are_adapted(name, method):
    case = MODELS[name]
    keys = jr.split(jr.key(1), len(case.shapes))
    model = case.make(jr.key(0))
    inputs = [jr.normal(key, shape) for key, shape in zip(keys, case.shapes, strict=True)]
    axes = infer(case.call, model, *inputs)
    assert axes.coverage >= case.coverage, str(axes)
    missed = [
        row
        for row in axes
        if row.axes is None and not row.reason.endswith(("own", "not a parameter"))
    ]
    assert all(row.path.endswith(case.others) for row in missed if len(row.shape) > 1), str(axes)
    net = Net(declare(model, axes)).freeze().lora(rank=2, alpha=3.0, wrapper=method)
    trainable, frozen = net.partition()
    moved = jax.tree.map(
        lambda t: t + 0.05 * jr.normal(jr.key(t.size), t.shape, t.dtype), trainable
    )

    def loss(trainable, computed):
        y = computed(eqx.combine(trainable, frozen), *inputs)
        return sum(jnp.sum(jnp.sin(one)) for one in jax.tree.leaves(y)), y

    found, expected = (
        eqx.filter_jit(eqx.filter_value_and_grad(lambda t, f=f: loss(t, f), has_aux=True))(moved)
        for f in (through(case.call), lambda model, *x: case.call(plain(model), *x))
    )
    largest = max(jnp.max(jnp.abs(b)) for b in jax.tree.leaves(expected[1]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Norms undo the magnitude of a kernel, so that terms of DoRA's gradient by it cancel. With
        # 64 bits the two agree to 1e-11.
        assert jnp.max(jnp.abs(a - b)) <= 1e-6 * largest + 1e-4 * jnp.max(jnp.abs(b))
    if method == "lora":
        uses = [use for use in report_uses(case.call, net.module, *inputs) if use.reason]
        assert {u.reason for u in uses if "merging is cheaper" not in u.reason} == case.merged
