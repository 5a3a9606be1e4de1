"""Layers of one structure as one module, compiled once, that keeps only each layer's input."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jno.lora import SelectionError


class ScannedLayers(eqx.Module):
    """Layers of one structure, stacked, that run one after the other by `jax.lax.scan`.

    One layer is compiled instead of all of them. With `remat`, the gradient keeps the input of each
    layer, and computes everything inside the layer again.

    It computes what this loop computes: `for layer in layers: x = layer(x, *args)`. A layer may
    return a tuple: its first item goes to the next layer, and the others are returned as stacks.
    So a list with this one module takes the place of the list of layers in most models:

    ```python
    blocks = lambda model: model.blocks
    model = eqx.tree_at(blocks, model, [ScannedLayers(model.blocks)])
    net = Net(model).freeze().lora(rank=8)
    ...
    plain = eqx.tree_at(blocks, net.module, net.module.blocks[0].unstacked())
    ```

    The stack is a copy of the layers' arrays. Drop the first model if memory is short.

    **Arguments:**

    - `layers`: at least one, adapted or not, all of one structure, with arrays of the same shapes.
    - `remat`: whether the gradient computes the inside of each layer again.

    **Raises:** `SelectionError` if the layers differ.
    """

    stack: PyTree
    count: int = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(self, layers: Iterable[PyTree], *, remat: bool = True):
        layers = list(layers)
        forms = [_form(layer) for layer in layers]
        for number, form in enumerate(forms):
            if form != forms[0]:
                raise SelectionError(
                    f"Layers that are scanned should have one structure, but layer {number} "
                    "differs from layer 0 in its class, its static fields, or the shape or dtype "
                    "of an array. Scan each run of equal layers on its own."
                )
        if not forms:
            raise SelectionError("ScannedLayers should get at least one layer, but got none.")
        parts = [eqx.partition(layer, eqx.is_array) for layer in layers]
        arrays = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(arrays for arrays, _ in parts))
        self.stack = eqx.combine(arrays, parts[0][1])
        self.count, self.remat = len(layers), remat

    def __call__(self, x: Any, *args: Any, key: PRNGKeyArray | None = None) -> Any:
        """The last layer's output, for an input of the first.

        All layers get the same `args`. A `key` is split, one for each layer, as `key=`.
        """
        arrays, static = eqx.partition(self.stack, eqx.is_array)
        keys = None if key is None else jax.random.split(key, self.count)

        def body(x: Any, slices: Any) -> tuple[Any, Any]:
            arrays, key = slices
            named = {} if key is None else {"key": key}
            out = eqx.combine(arrays, static)(x, *args, **named)
            return (out[0], out[1:]) if isinstance(out, tuple) else (out, None)

        # A scan keeps the compiler from merging both computations, so nothing else needs to.
        body = jax.checkpoint(body, prevent_cse=False) if self.remat else body
        x, others = jax.lax.scan(body, x, (arrays, keys), length=self.count)
        return x if others is None else (x, *others)

    def unstacked(self) -> list[PyTree]:
        """The layers as they were, with the arrays that they have now."""
        arrays, static = eqx.partition(self.stack, eqx.is_array)
        return [
            eqx.combine(jax.tree.map(lambda leaf, i=i: leaf[i], arrays), static)
            for i in range(self.count)
        ]


def _form(layer: PyTree) -> Any:
    """The structure, static leaves, and shapes and dtypes of a layer."""
    arrays, static = eqx.partition(layer, eqx.is_array)
    shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays)]
    return jax.tree.structure(arrays), jax.tree.flatten(static), shapes
