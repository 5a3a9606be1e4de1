"""Write LoRA into states of Qwix, Tunix and MaxText."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, Net, SelectionError, resolve
from jno.lora.extending import adapted_layers, expect_model, sharded_like, show_path
from jno_lora_peft.errors import NO_PRODUCT, MisfitError
from jno_lora_peft.layouts import Layout, Shape, stack_of
from jno_lora_peft.names import Rename, indexed
from jno_lora_peft.written import read_arrays
from jno_lora_zoo import known_factors

from ._placing import Placed, Placer

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
                number = placed.pair.leaves[name]
                new = jnp.asarray(array, leaves[number].dtype)
                is_array = isinstance(leaves[number], jax.Array)
                leaves[number] = sharded_like(new, leaves[number]) if is_array else new
    for path, index in sorted(left):
        placer.problems.append(f"{indexed(show_path(path), index)}: the state has no arrays for it")
    placer.problems.refuse("The adapters do not fit the state", "Nothing was written.")
    return jtu.tree_unflatten(structure, leaves)


def _arrays(placed: Placed, placer: Placer, alpha: float) -> dict[str, np.ndarray]:
    """The two arrays of a pair. **Raises:** `MisfitError`."""
    if not placed.pair.source.inputs_first:
        raise MisfitError("states of diffusers and kohya are read, not written")
    a, b = placed.pair.shape_of("A"), placed.pair.shape_of("B")
    if placed.axis is not None:
        a, b = (shape[: placed.axis] + shape[placed.axis + 1 :] for shape in (a, b))
    layers: list[tuple[np.ndarray, np.ndarray]] = []
    for path, index in placed.places:
        A, B = _product(placer.modules[path], path)
        layers.append(_to_inputs_first(A[index], B[index], placed.layout, a, b))
    first, second = zip(*layers, strict=True)
    scale = alpha / a[-1]
    if placed.axis is None:
        return {"A": first[0], "B": second[0] / scale}
    return {"A": np.stack(first, placed.axis), "B": np.stack(second, placed.axis) / scale}


def _product(adapter: object, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(rank, in)` and `(out, rank)` of the update, after any stack axes."""
    if not isinstance(adapter, LoRAWrapper):
        raise MisfitError(f"the layer at {show_path(path)!r} has no adapter to write")
    product = known_factors(adapter)
    if product is None:
        raise MisfitError(NO_PRODUCT)
    arrays = read_arrays(product._asdict(), f"of the adapter at {show_path(path)!r}")
    return arrays["A"], arrays["B"]


def _to_inputs_first(
    A: np.ndarray, B: np.ndarray, layout: Layout, a: Shape, b: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Factors `(rank, in)` and `(out, rank)` as arrays of the shapes `a` and `b`.

    A smaller rank is padded with zeros. **Raises:** `MisfitError` if the rank is larger.
    """
    rank, room = len(A), a[-1]
    if rank > room:
        problem = f"its update has rank {rank}, and the state has room for rank {room}"
        raise MisfitError(f"{problem}. `to_lora` makes it smaller")
    A, B = np.pad(A, ((0, room - rank), (0, 0))), np.pad(B, ((0, 0), (0, room - rank)))
    if layout.kernel:
        by_channel = A.reshape(room, layout.inputs, *layout.kernel)
        return np.moveaxis(by_channel, (0, 1), (-1, -2)).reshape(a), B.T.reshape(b)
    return A.T.reshape(a), B.T.reshape(b)
