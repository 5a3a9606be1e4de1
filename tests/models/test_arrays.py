"""Models of other projects that keep their weights as bare arrays."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from jno.lora import Net
from jno_lora_arrays import declare, infer, plain, report_uses, through

from ._model import Model, normal
from .zoo_of_models import every_model

ZOO = {model.name: model for model in every_model()}


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

    base = Normal(jnp.zeros(3))
    return masked_autoregressive_flow(key, base_dist=base, flow_layers=2, nn_width=8, nn_depth=1)


class Case(NamedTuple):
    """A model with bare arrays.

    - `coverage`: the part of the matrices' entries that `infer` reaches, at the least.
    - `others`: the ends of the names of arrays that are not matrices of a product.
    - `merged`: why some uses are merged, besides that merging is cheaper.
    """

    model: Model
    coverage: float
    others: tuple[str, ...] = ("bias",)
    merged: frozenset[str] = frozenset()


CASES = [
    Case(ZOO["pdequinox-fno"], 0.98),
    Case(ZOO["pdequinox-modern-unet-periodic"], 0.98),
    # Its tables of distances are constants, and `r` is a scale for them.
    Case(ZOO["foundax-pit"], 0.85, ("bias", "r", "m_dist_down", "m_dist_proc", "m_dist_up")),
    Case(
        Model("foundax-walrus", walrus, normal((1, 2, 8, 8, 2), (1, 2, 8, 8, 8, 2)), call_walrus),
        0.98,
        (),
        frozenset({"summed over an axis", "reversed"}),
    ),
    # Biases of scanned layers have two axes, and count as matrices.
    Case(
        dataclasses.replace(ZOO["flowjax-masked-autoregressive"], build=flow),
        0.83,
        merged=frozenset({"masked"}),
    ),
]


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model.name)
def test_bare_arrays_are_adapted(case, method):
    model, call = case.model.build(jr.key(0)), case.model.call
    inputs = case.model.inputs(jr.key(1))
    axes = infer(call, model, *inputs)
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
        for f in (through(call), lambda model, *x: call(plain(model), *x))
    )
    largest = max(jnp.max(jnp.abs(b)) for b in jax.tree.leaves(expected[1]))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # Norms undo the magnitude of a kernel, so that terms of DoRA's gradient by it cancel. With
        # 64 bits the two agree to 1e-11.
        assert jnp.max(jnp.abs(a - b)) <= 1e-6 * largest + 1e-4 * jnp.max(jnp.abs(b))
    if method == "lora":
        uses = [use for use in report_uses(call, net.module, *inputs) if use.reason]
        assert {u.reason for u in uses if "merging is cheaper" not in u.reason} == case.merged
