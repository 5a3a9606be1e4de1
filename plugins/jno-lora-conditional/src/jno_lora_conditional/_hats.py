"""`Hats`: linear interpolation between given values of the parameter."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jno.lora import SelectionError

from ._bases import Basis, numbers, parameter


class Hats(Basis):
    """Piecewise linear functions of one parameter: `phi_k` is 1 at node `k`, 0 at other nodes.

    Between two nodes, both functions change linearly, so the adapters there are a weighted mean of
    the adapters at these nodes. `phi` is constant before the first and after the last node.

    **Arguments:**

    - `nodes`: at least two different numbers, counting the source.
    - `source`: the value at which the pretrained model does not change, which is a node without a
        function; or `None`.
    - `extrapolate`: whether `phi` continues linearly outside of the nodes.

    **Raises:** `SelectionError` if an argument makes no sense.
    """

    nodes: tuple[float, ...] = eqx.field(static=True)  # with the source, ascending
    source: Any = eqx.field(static=True)
    extrapolate: bool = eqx.field(static=True)

    def __init__(
        self, nodes: Sequence[float], source: float | None = None, extrapolate: bool = False
    ):
        values: list[Any] = np.atleast_1d(numbers(nodes, "nodes")).tolist()
        self.source = None if source is None else numbers(source, "source")
        self.nodes = tuple(
            sorted(values if self.source in (None, *values) else [*values, self.source])
        )
        self.extrapolate = bool(extrapolate)
        if len(set(self.nodes)) < max(2, len(self.nodes)):
            raise SelectionError(
                f"`Hats` needs at least two different nodes, but `nodes` is {nodes!r} and `source` "
                f"is {source!r}"
            )

    def __call__(self, z: Any) -> Float[Array, " K"]:
        z, _ = parameter(z, self.nodes[0])
        nodes = jnp.asarray(self.nodes, z.dtype)
        left = jnp.clip(jnp.searchsorted(nodes, z, side="right") - 1, 0, len(self.nodes) - 2)
        # Exactly 0 and 1 at the nodes.
        t = (z - nodes[left]) / (nodes[left + 1] - nodes[left])
        t = t if self.extrapolate else jnp.clip(t, 0, 1)
        index = jnp.arange(len(self.nodes), dtype=left.dtype)
        phi = jnp.where(index == left, 1 - t, jnp.where(index == left + 1, t, 0))
        return jnp.stack([phi[i] for i, node in enumerate(self.nodes) if node != self.source])
