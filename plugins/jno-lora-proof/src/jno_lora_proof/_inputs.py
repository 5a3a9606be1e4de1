"""The inputs of a proof: what the model is called with, there and here."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from jno.lora import SelectionError, resolve

_AXES = (
    "The arrays of a proof's inputs have a leading axis of examples, over which the model is "
    "mapped, unless they are Inputs(args, batched=False)."
)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a proof calls the model with.

    - `args`, `kwargs`: pytrees of dicts, lists, tuples and arrays. An array may be a
        `jax.ShapeDtypeStruct`: then a file has the shape and `seed` alone, and random values are
        drawn (normal; integers below `high`), so that no data are published.
    - `batched`: whether every array has a leading axis of examples, over which the model is mapped
        (`jax.vmap`), as for Equinox's layers. If not, the model gets the arrays as they are.
    - `call`: `call(model, *args, **kwargs)`, for a model that is not called itself. A file does not
        keep it: pass it to `prove` again.
    """

    args: tuple[PyTree, ...]
    kwargs: Mapping[str, PyTree] = dataclasses.field(default_factory=dict)
    batched: bool = True
    seed: int = 0
    high: int = 100
    call: Callable[..., PyTree] | None = None

    @classmethod
    def of(cls, given: Any) -> "Inputs":
        """Inputs as users pass them: `Inputs`, a tuple of arguments, or the one argument."""
        if isinstance(given, Inputs):
            return given
        return cls(given if type(given) is tuple else (given,))

    def arrays(self) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
        """The arguments, with values in the place of shapes."""
        draws = np.random.default_rng(self.seed)

        def drawn(leaf: Any) -> Any:
            if not isinstance(leaf, jax.ShapeDtypeStruct):
                return leaf
            if np.issubdtype(leaf.dtype, np.integer):
                return draws.integers(0, self.high, leaf.shape).astype(leaf.dtype)
            return draws.normal(size=leaf.shape).astype(leaf.dtype)

        return jax.tree.map(drawn, (self.args, dict(self.kwargs)))

    def outputs(self, model: PyTree) -> list[np.ndarray]:
        """The model's output arrays, with a leading axis of examples, without dropout.

        **Raises:** `SelectionError` if the model is random.
        """
        # Adapters that train one array together are called after `resolve`.
        model, call = resolve(eqx.nn.inference_mode(model)), self.call or _call
        args, kwargs = self.arrays()

        try:
            runs = [_run(model, call, self.batched, args, kwargs) for _ in range(2)]
        except (TypeError, ValueError) as err:
            err.add_note(_AXES)
            raise
        found, again = (_arrays(outputs, self.batched) for outputs in runs)
        if not all(map(np.array_equal, found, again, [True] * len(found))):
            raise SelectionError(
                "The model is random: two calls on the same inputs differ. Pass it a fixed key "
                "(kwargs={'key': ...}), or switch the randomness off."
            )
        return found

    def stored(self) -> tuple[dict[str, np.ndarray], str]:
        """The arrays of a file, and JSON of everything else.

        **Raises:** `SelectionError` if an argument is no pytree of dicts, lists, tuples and arrays.
        """
        arrays: dict[str, np.ndarray] = {}

        def describe(node: Any) -> Any:
            if isinstance(node, tuple | list):
                return {"is": type(node).__name__, "items": [describe(x) for x in node]}
            if isinstance(node, Mapping):
                return {"is": "dict", "items": {key: describe(x) for key, x in node.items()}}
            if isinstance(node, jax.ShapeDtypeStruct):
                return {"is": "shape", "shape": node.shape, "dtype": str(node.dtype)}
            if eqx.is_array(node) or isinstance(node, np.ndarray):
                name = f"inputs/{len(arrays)}"
                array = np.asarray(node)
                # NumPy's safetensors cannot read bfloat16, which float32 holds.
                arrays[name] = array if array.dtype.isbuiltin == 1 else array.astype(np.float32)
                return {"is": "array", "name": name, "dtype": str(array.dtype)}
            if node is None or isinstance(node, bool | int | float | str):
                return {"is": "value", "value": node}
            raise SelectionError(
                f"A file cannot keep an input of type {type(node).__name__}. Give dicts, lists, "
                "tuples and arrays, and a `call` that makes the object of them."
            )

        facts = {"batched": self.batched, "seed": self.seed, "high": self.high}
        tree = {"args": describe(tuple(self.args)), "kwargs": describe(dict(self.kwargs))}
        return arrays, json.dumps({**facts, **tree})

    @classmethod
    def read(cls, arrays: Mapping[str, np.ndarray], text: str) -> "Inputs":
        """The inputs that `stored` wrote."""

        def rebuild(node: Any) -> Any:
            match node["is"]:
                case "dict":
                    return {key: rebuild(x) for key, x in node["items"].items()}
                case "array":
                    array = arrays[node["name"]]
                    return array.astype(node.get("dtype", array.dtype))
                case "shape":
                    return jax.ShapeDtypeStruct(tuple(node["shape"]), node["dtype"])
                case "value":
                    return node["value"]
                case kind:
                    items = [rebuild(x) for x in node["items"]]
                    return tuple(items) if kind == "tuple" else items

        facts = json.loads(text)
        args, kwargs = rebuild(facts.pop("args")), rebuild(facts.pop("kwargs"))
        return cls(args, kwargs, **facts)


@eqx.filter_jit
def _run(model: PyTree, call: Any, batched: bool, args: Any, kwargs: Any) -> PyTree:
    def single(args: Any, kwargs: Any) -> PyTree:
        return call(model, *args, **kwargs)

    return jax.vmap(single)(args, kwargs) if batched else single(args, kwargs)


def _call(model: Any, *args: Any, **kwargs: Any) -> PyTree:
    return model(*args, **kwargs)


def _arrays(outputs: PyTree, batched: bool) -> list[np.ndarray]:
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(eqx.filter(outputs, eqx.is_array))]
    # bfloat16 is no number to NumPy's functions.
    arrays = [x if x.dtype.kind in "biufc" else x.astype(np.float32) for x in arrays]
    return [x if batched and x.ndim else x.reshape(1, -1) for x in arrays]
