"""Layers of the same structure as one module, compiled once, with less saved for the gradient."""

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from jno.lora import SelectionError

from ._save_products import save_products


class ScannedLayers(eqx.Module):
    """Stacked layers of the same structure that `jax.lax.scan` runs, so only one layer is compiled.

    The result equals this loop's: `for layer in layers: x = layer(x, *args)`. A layer may return a
    tuple: the first item goes to the next layer, and the module returns the remaining items
    stacked. In most models, a list with only this module can therefore replace the list of layers:

    ```python
    blocks = lambda model: model.blocks
    model = eqx.tree_at(blocks, model, [ScannedLayers(model.blocks)])
    net = Net(model).freeze().lora(rank=8)
    ...
    plain = eqx.tree_at(blocks, net.module, net.module.blocks[0].unstacked())
    ```

    The stack copies the layers' arrays, so drop the original model if memory is short.

    **Arguments:**

    - `layers`: at least one layer, adapted or not. All must have the same structure and shapes.
    - `remat`: how much the gradient recomputes. `True`: all but each layer's input, which takes one
      more forward pass. `"products"`: all but the products with weights (`save_products`), which
      takes a few per cent more operations. `False`: nothing.

    **Raises:** `SelectionError` if the layers differ, or for another `remat`.
    """

    stack: PyTree
    count: int = eqx.field(static=True)
    remat: bool | str = eqx.field(static=True)

    def __init__(self, layers: Iterable[PyTree], *, remat: bool | str = True):
        layers = list(layers)
        if remat not in (True, False, "products"):
            raise SelectionError(f'remat should be True, False or "products", but is {remat!r}.')
        first_form = _form(layers[0])
        for number, layer in enumerate(layers):
            if _form(layer) != first_form:
                raise SelectionError(
                    f"Layers that are scanned should have one structure, but layer {number} "
                    "differs from layer 0 in its class, its static fields, or the shape or dtype "
                    "of an array. Scan each run of equal layers by a ScannedLayers of its own."
                )
        arrays = [eqx.filter(layer, eqx.is_array) for layer in layers]
        static = eqx.filter(layers[0], eqx.is_array, inverse=True)
        self.stack = eqx.combine(jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays), static)
        self.count, self.remat = len(layers), remat

    def __call__(self, x: PyTree, *args: PyTree, key: PRNGKeyArray | None = None) -> PyTree:
        """Run all layers on `x`, an input of the first layer.

        All layers get the same `args`. A `key` is split into one `key=` for each layer.
        """
        arrays, static = eqx.partition(self.stack, eqx.is_array)
        keys = None if key is None else jax.random.split(key, self.count)

        def body(x: PyTree, slices: tuple[PyTree, Array | None]) -> tuple[PyTree, PyTree]:
            arrays, key = slices
            keywords = {} if key is None else {"key": key}
            out = eqx.combine(arrays, static)(x, *args, **keywords)
            return (out[0], out[1:]) if isinstance(out, tuple) else (out, None)

        if self.remat:
            # The scan already keeps the compiler from merging the two computations of a layer.
            policy = save_products(self.stack) if self.remat == "products" else None
            body = jax.checkpoint(body, prevent_cse=False, policy=policy)
        x, extras = jax.lax.scan(body, x, (arrays, keys), length=self.count)
        return x if extras is None else (x, *extras)

    def unstacked(self) -> list[PyTree]:
        """The layers as a list, with their current arrays."""
        return [
            jax.tree.map(lambda leaf, i=i: leaf[i] if eqx.is_array(leaf) else leaf, self.stack)
            for i in range(self.count)
        ]


def _form(layer: PyTree) -> tuple[object, list[object]]:
    """The structure and static leaves of a layer, and the shapes and dtypes of its arrays."""
    leaves, treedef = jax.tree.flatten(layer)
    return treedef, [(x.shape, x.dtype) if eqx.is_array(x) else x for x in leaves]
