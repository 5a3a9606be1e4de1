"""Write LoRA into states of Qwix, Tunix and MaxText."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, Net, SelectionError, resolve
from jno.lora.extending import adapted_layers, expect_model, sharded_like, show_path
from jno_lora_peft.errors import NO_PRODUCT, MisfitError
from jno_lora_peft.layouts import Layout, Shape, stack_of
from jno_lora_peft.names import Rename, show_index
from jno_lora_peft.written import read_arrays
from jno_lora_zoo import known_factors

from ._pairs import Placed, Placer, shape_of

T = TypeVar("T")


def lora_state(
    model: PyTree | Net,
    like: T,
    *,
    alpha: float,
    rename: Rename = None,
    stack_axis: int | None = None,
) -> T:
    """The adapters of `model` as a state of Qwix, Tunix or MaxText, in the form of `like`.

    `nnx.update(theirs, state)` puts the state into a model of Flax, and
    `orbax.checkpoint.PyTreeCheckpointer().save(path, state)` into a folder.

    **Arguments:**

    - `model`: a `Net`, or an adapted model. Only its adapters are written.
    - `like`: the state of that library's model with LoRA, which determines names, shapes and
        dtypes: `nnx.state(theirs, nnx.LoRAParam)`, or its shapes by `jax.eval_shape`. It must have
        arrays for exactly the adapters of `model`.
    - `alpha`: the alpha of Qwix's `LoraRule`. If an adapter's scale differs, `lora_b` is rescaled.
    - `rename`, `stack_axis`: as for `load_lora_state`: from names in the state to paths here.

    **Returns:** a tree like `like`, with the same shardings. If its rank is larger than an
    adapter's rank, the factors are padded with zeros.

    **Raises:** `PeftFormatError` that lists all adapters and arrays without a counterpart, and
    adapters that are not a product of two factors or have too high a rank; `SelectionError` for a
    bad `rename` or model.
    """
    if alpha == 0:
        raise SelectionError("alpha must not be 0, since updates are divided by it")
    model = model.module if isinstance(model, Net) else model
    expect_model(model, "lora_state")
    placer = Placer(resolve(model), rename, stack_axis)
    leaves, structure = jtu.tree_flatten(like)
    left = {
        (path, index)
        for path, adapter in adapted_layers(model)
        for index in np.ndindex(*stack_of(adapter.base))
    }
    for placed in placer.place(like):
        left -= {*placed.places}
        with placer.problems.of(show_path(placed.pair.key)):
            for name, array in _arrays(placed, placer, alpha).items():
                number = placed.pair.places[name]
                new = jnp.asarray(array, leaves[number].dtype)
                is_array = isinstance(leaves[number], jax.Array)
                leaves[number] = sharded_like(new, leaves[number]) if is_array else new
    for path, index in sorted(left):
        layer = f"{show_path(path)}[{show_index(index)}]" if index else show_path(path)
        placer.problems.append(f"{layer}: the state has no arrays for it")
    placer.problems.refuse("The adapters do not fit the state", "Nothing was written.")
    return jtu.tree_unflatten(structure, leaves)


def _arrays(placed: Placed, placer: Placer, alpha: float) -> dict[str, np.ndarray]:
    """The two arrays of a pair. **Raises:** `MisfitError`."""
    pair = placed.pair
    if not pair.source.inputs_first:
        raise MisfitError("states of diffusers and kohya are read, not written")
    shapes = [shape_of(pair, name) for name in "AB"]
    if placed.axis is not None:
        shapes = [shape[: placed.axis] + shape[placed.axis + 1 :] for shape in shapes]
    scale = alpha / shapes[0][-1]
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for path, index in placed.places:
        first, second = _product(placer.modules[path], path)
        factors = first[index], second[index] / scale
        layers.append(_to_inputs_first(factors, placed.layout, *shapes))
    if placed.axis is None:
        return dict(zip("AB", layers[0], strict=True))
    stacks = zip(*layers, strict=True)
    return {name: np.stack(stack, placed.axis) for name, stack in zip("AB", stacks, strict=True)}


def _product(adapter: Any, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(rank, in)` and `(out, rank)` of the update, after any stack axes."""
    if not isinstance(adapter, LoRAWrapper):
        raise MisfitError(f"the layer at {show_path(path)!r} has no adapter to write")
    where = f"of the {type(adapter).__name__} at {show_path(path)!r}"
    product = known_factors(adapter)
    if product is None:
        raise MisfitError(NO_PRODUCT)
    arrays = read_arrays(product._asdict(), where)
    return arrays["A"], arrays["B"]


def _to_inputs_first(
    factors: tuple[np.ndarray, np.ndarray], layout: Layout, a: Shape, b: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(rank, in)` and `(out, rank)` as arrays of these shapes, padded with zeros.

    **Raises:** `MisfitError` if their rank is larger.
    """
    first, second = factors
    rank, missing = len(first), a[-1] - len(first)
    if missing < 0:
        room = f"the state has room for rank {a[-1]}. `to_lora` makes it smaller"
        raise MisfitError(f"its update has rank {rank}, and {room}")
    first, second = np.pad(first, ((0, missing), (0, 0))), np.pad(second, ((0, 0), (0, missing)))
    if layout.kernel:
        by_channel = first.reshape(a[-1], layout.inputs, *layout.kernel)
        return np.moveaxis(by_channel, (0, 1), (-1, -2)).reshape(a), second.T.reshape(b)
    return first.T.reshape(a), second.T.reshape(b)
