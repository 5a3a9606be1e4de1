"""The checks of every model of another framework."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from jno.lora import Net
from jno_lora_arrays import declare, infer, plain, report_uses, through

METHODS = ("lora", "pissa", "vera", "dora", "oft", "ia3")


def net_of(function: Any, params: Any, *args: Any, method: str = "lora", axes: Any = None) -> Net:
    """A net whose adapters are away from their start."""
    axes = infer(function, params, *args) if axes is None else axes
    net = Net(declare(params, axes)).freeze().lora(rank=2, alpha=3.0, wrapper=method)
    trainable, _ = net.partition()
    leaves, treedef = jax.tree.flatten(trainable)
    keys = jr.split(jr.key(7), len(leaves))
    moved = [x + 0.1 * jr.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    return net.update(jax.tree.unflatten(treedef, moved))


def check(function: Any, params: Any, *args: Any, method: str = "lora", tolerance: float = 1e-4):
    """The value and the gradient are those of the function with merged arrays.

    **Returns:** the uses that need a merged array.
    """
    net = net_of(function, params, *args, method=method)
    trainable, frozen = net.partition()

    def loss(trainable: Any, computed: Any, args: Any) -> Any:
        y = computed(eqx.combine(trainable, frozen), *args)
        return sum(jnp.sum(jnp.sin(x.astype(jnp.float32))) for x in jax.tree.leaves(y)), y

    def merged(params: Any, *args: Any) -> Any:
        return function(plain(params), *args)

    found, expected = (
        jax.jit(jax.value_and_grad(lambda t, args, f=f: loss(t, f, args), has_aux=True))(
            trainable, args
        )
        for f in (through(function), merged)
    )
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = 1 + jnp.max(jnp.abs(y.astype(jnp.float32)))
        assert jnp.max(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))) <= tolerance * scale
    assert any(jnp.any(x != 0) for x in jax.tree.leaves(found[1]))
    return [use for use in report_uses(function, net.module, *args) if use.reason is not None]
