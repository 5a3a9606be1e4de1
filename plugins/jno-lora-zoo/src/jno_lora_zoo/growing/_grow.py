"""Give a layer more outputs, inputs or tokens, and load its file."""

import math
import operator
from collections.abc import Iterable
from typing import Any, Literal, SupportsIndex, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import PRNGKeyArray

from jno.lora import LoRAWrapper, SelectionError, load_adapters, read_adapters
from jno.lora.extending import (
    bullets,
    expect_model,
    is_coded,
    layers_at,
    modules_by_path,
    nearest,
    norms_around,
    over_stack,
    path_str,
    replace_layers,
    show_path,
)

from .._weighted import with_attributes
from .adapters import Grown, GrownConv, GrownEmbedding, GrownLinear

M = TypeVar("M")

# The adapter of each kind of layer, and the sizes of its layers: outputs, inputs.
_KINDS: dict[type[Grown], tuple[str, str]] = {
    GrownLinear: ("out_features", "in_features"),
    GrownConv: ("out_channels", "in_channels"),
    GrownEmbedding: ("embedding_size", "num_embeddings"),
}
# The sizes of the layers of an attention that contain its heads.
_HEADS = {"output_proj": "inputs"} | dict.fromkeys(
    ("query_proj", "key_proj", "value_proj"), "outputs"
)


def grow(
    model: M,
    path: str,
    *,
    outputs: SupportsIndex = 0,
    inputs: SupportsIndex = 0,
    start: str | Iterable[SupportsIndex] | None = None,
    key: PRNGKeyArray | None = None,
) -> M:
    """`model` with a larger layer at `path`, whose new entries train around the frozen old weight.

    Use it to add a field, a channel, a token or a class. The layer becomes an adapter around a
    larger layer, and `merge_lora` returns this layer with the trained values. New entries come
    last. Grow the layers before and after too, so that their sizes fit.

    **Arguments:**

    - `model`: a pytree, such as a model or an adapted model. It is not changed.
    - `path`: of an `eqx.nn.Linear`, a convolution without groups, or an `eqx.nn.Embedding`, stacked
        or not, and layers that look like these.
    - `outputs`, `inputs`: how many to add. The inputs of an embedding are its tokens, and its
        outputs are the features of a token.
    - `start`: how new outputs (of an embedding: new tokens) start: `"zeros"`; `"mean"` of the old
        rows; `"random"`, normal with the old weight's standard deviation; or the indices of old
        rows to copy, one per new row. The default is `"zeros"`, or `"mean"` for an embedding. New
        inputs of other layers are zero, so that the old outputs do not change.
    - `key`: for `"random"`.

    **Returns:** the model with an adapter at `path`. Its file contains only the new entries, and
    `load_grown` loads it onto the small model.

    **Raises:** `SelectionError`, naming the path, if there is no such layer, if it cannot grow or
    already has an adapter, if its weight's array occurs in several places, or if a number or
    `start` is invalid. `TypeError` if a number is no integer.
    """
    expect_model(model, "grow")
    layer = layers_at(model, [path]).get(path)
    if layer is None:
        paths = [name for name, node in modules_by_path(model).items() if _class_for(node)]
        near = bullets(nearest(path, paths)) or "  - none"
        raise SelectionError(
            f"The model has no layer at {path!r}. The nearest layers that grow:\n{near}"
        )
    cls = _class_for(layer)
    _check(model, path, layer, cls)
    outputs, inputs = operator.index(outputs), operator.index(inputs)
    _check_sizes(model, path, outputs, inputs)
    checked_start = _checked_start(start, (outputs, inputs)[cls.start_axis], key, layer, cls)
    columns = inputs * math.prod(getattr(layer, "kernel_size", ()))
    rank = outputs + columns

    def adapted(layer: Any, key: PRNGKeyArray) -> Grown:
        adapter: Grown = cls(layer, rank, float(rank), key=key, rows=outputs, columns=columns)
        return adapter.with_start(checked_start, key)

    larger = _enlarged(layer, cls, outputs, inputs)
    stack = larger.weight.shape[: cls.stack_ndim(larger)]
    key = jax.random.key(0) if key is None else key
    keys = jax.random.split(key, stack) if stack else key
    return replace_layers(model, {path: over_stack(adapted, len(stack))(larger, keys)})


def load_grown(
    model: M,
    file: Any,
    *,
    strict: bool | Literal["values"] = True,
    wrappers: type[LoRAWrapper] | Iterable[type[LoRAWrapper]] | None = (),
) -> M:
    """`model` with the grown layers and all adapters from a file that `save_adapters` wrote.

    **Arguments:**

    - `model`: the small model, before `grow`.
    - `file`: the path of the file.
    - `strict`: as in `jno.lora.load_adapters`. With `"values"`, the layers must have the values
        that the adapters were made for.
    - `wrappers`: as in `jno.lora.load_adapters`, for other adapters of the file.

    **Raises:** `SelectionError` if a layer cannot grow; as `jno.lora.load_adapters`.
    """
    expect_model(model, "load_grown")
    # No plugin registers these classes, because no other call makes them.
    classes = (*_KINDS, *([wrappers] if isinstance(wrappers, type) else wrappers or ()))
    for path, loose in read_adapters(file, wrappers=classes).adapters.items():
        sizes = {name.split("/")[-1]: array.shape for name, array in loose.state.items()}
        layer = layers_at(model, [path]).get(path)
        if "new_rows" not in sizes or layer is None:
            continue
        cls = _class_for(layer)
        _check(model, path, layer, cls)
        rows, columns = sizes["new_rows"][-2], sizes["new_columns"][-1]
        kernel = math.prod(getattr(layer, "kernel_size", ()))
        model = replace_layers(model, {path: _enlarged(layer, cls, rows, columns // kernel)})
    return load_adapters(model, file, strict=strict, wrappers=classes)


def _class_for(layer: object) -> Any:
    return next((cls for cls in _KINDS if cls.applies_to(layer)), None)


def _check(model: Any, path: str, layer: Any, cls: Any) -> None:
    """**Raises:** `SelectionError` unless the layer at `path` can grow."""
    place = f"The {type(layer).__name__} at {show_path(path)!r} cannot grow"
    if isinstance(layer, LoRAWrapper):
        raise SelectionError(
            f"{place}: it carries an adapter. Merge it, and grow all sizes in one call."
        )
    if cls is None:
        raise SelectionError(
            f"{place}. Linear layers, convolutions and embeddings with a floating weight in the "
            "layout (out, in, ...) grow. Make a larger layer by hand."
        )
    if getattr(layer, "groups", 1) != 1:
        raise SelectionError(f"{place}: its channels are in {layer.groups} groups, expected 1.")
    if "scalar" in (getattr(layer, name) for name in _KINDS[cls]):
        raise SelectionError(f"{place}: its size is 'scalar', expected a number.")
    if is_coded(layer.weight):
        raise SelectionError(f"{place}: its weight is quantised. Grow first, and quantise then.")
    if norms := norms_around(model, [path]):
        raise SelectionError(f"{place}: the norm at {show_path(norms[path])!r} rewrites it.")
    places = [path_str(keys) for keys, x in jtu.tree_leaves_with_path(model) if x is layer.weight]
    if len(places) > 1:
        raise SelectionError(
            f"{place}: one array is its weight and in other places, which would not see the new "
            f"entries:\n{bullets(places)}\nTie them by `eqx.nn.Shared`, or read the layer's weight."
        )


def _check_sizes(model: Any, path: str, outputs: int, inputs: int) -> None:
    """**Raises:** `SelectionError` unless the layer at `path` can grow by these numbers."""
    sizes = {"outputs": outputs, "inputs": inputs}
    if min(sizes.values()) < 0:
        raise SelectionError(f"`outputs` and `inputs` must be at least 0, but are {sizes}.")
    if not any(sizes.values()):
        raise SelectionError(f"Nothing grows at {show_path(path)!r}: give `outputs=` or `inputs=`.")
    parent, _, name = path.rpartition("/")
    attention = modules_by_path(model).get(parent)
    if isinstance(attention, eqx.nn.MultiheadAttention) and sizes.get(_HEADS.get(name, "")):
        raise SelectionError(
            f"The {_HEADS[name]} of {show_path(path)!r} cannot grow: the attention cuts them into "
            "heads, so that old outputs would change."
        )


def _checked_start(
    start: str | Iterable[SupportsIndex] | None,
    number: int,
    key: PRNGKeyArray | None,
    layer: Any,
    cls: type[Grown],
) -> str | tuple[int, ...]:
    """How the `number` of new entries start: a name, or the indices of old rows."""
    if start is None:
        return ("zeros", "mean")[cls.start_axis]
    if not number:
        entries, option = (("outputs", "outputs="), ("tokens", "inputs="))[cls.start_axis]
        raise SelectionError(
            f"`start` says how new {entries} start, and there are none: leave it out, or give "
            f"`{option}`."
        )
    if isinstance(start, str):
        names = ("zeros", "mean", "random")
        if start not in names:
            raise SelectionError(f"`start` must be one of {names} or numbers, but is {start!r}.")
        if start == "random" and key is None:
            raise SelectionError('start="random" needs a `key=` as well: jax.random.key(0)')
        return start
    rows, old = tuple(map(operator.index, start)), getattr(layer, _KINDS[cls][cls.start_axis])
    if len(rows) != number or not all(0 <= row < old for row in rows):
        raise SelectionError(
            f"`start` must hold {number} numbers of old rows, at least 0 and below {old}, but is "
            f"{start!r}."
        )
    return rows


def _enlarged(layer: Any, cls: Any, outputs: int, inputs: int) -> Any:
    """`layer` with zeros for new outputs and inputs."""
    stack = cls.stack_ndim(layer)
    pads = [(0, 0)] * layer.weight.ndim
    for letter, number in {"o": outputs, "i": inputs}.items():
        pads[stack + cls.weight_axes.index(letter)] = (0, number)
    fields = {"weight": jnp.pad(layer.weight, pads)}
    if getattr(layer, "bias", None) is not None:
        after = [(0, 0)] * (layer.bias.ndim - stack - 1)
        fields["bias"] = jnp.pad(layer.bias, [*[(0, 0)] * stack, (0, outputs), *after])
    for name, number in zip(_KINDS[cls], (outputs, inputs), strict=True):
        fields[name] = getattr(layer, name) + number
    return with_attributes(layer, fields)
