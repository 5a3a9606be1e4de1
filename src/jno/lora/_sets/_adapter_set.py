"""Adapters without their model, taken out of one."""

import dataclasses
import enum
from collections.abc import Iterable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._compute import held_dtype
from .._contract import Loose, LoRAWrapper, evaluated, expect_model, over_stack, why
from .._errors import SelectionError, WrapperError
from .._paths import path_str, show_path
from .._tree import adapted_layers, refuse_second


@dataclasses.dataclass(frozen=True)
class LayerForm:
    """What a layer must look like for an adapter to fit.

    - `layer`: the name of its class.
    - `arrays`: path, shape and dtype of each of its arrays, those of a stack with all their axes.
      The dtype is the one that JAX computes in: float32 for NumPy's float64, unless x64 is on.
    - `stack_ndim`: how many leading axes come before one layer's own.
    """

    layer: str
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    stack_ndim: int = 0

    @classmethod
    def of(cls, layer: Any, stack_ndim: int) -> "LayerForm":
        """The form of `layer`."""
        # PiSSA, which changes the weight, holds that of NumPy as JAX does.
        found = (
            (path_str(keys), tuple(leaf.shape), str(held_dtype(leaf)))
            for keys, leaf in jtu.tree_leaves_with_path(layer)
            if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)
        )
        return cls(type(layer).__name__, tuple(found), stack_ndim)

    def __str__(self) -> str:
        arrays = ", ".join(f"{path} {_array((shape, dtype))}" for path, shape, dtype in self.arrays)
        return f"{self.layer}({arrays})"

    def problems(self, layer: Any) -> list[str]:
        """What keeps `layer` from having this form, apart from the name of its class."""
        # A subclass, or a class of the same arrays, computes with the same weights.
        here = {path: (shape, dtype) for path, shape, dtype in LayerForm.of(layer, 0).arrays}
        wanted = {path: (shape, dtype) for path, shape, dtype in self.arrays}
        # NumPy's arrays also fit by the dtype that they have themselves.
        itself = {
            path_str(keys): (tuple(leaf.shape), str(leaf.dtype))
            for keys, leaf in jtu.tree_leaves_with_path(layer)
            if eqx.is_array(leaf)
        }
        return [
            f"{path}: the adapter was made for {_array(wanted.get(path))}, the "
            f"{type(layer).__name__} has {_array(here.get(path))}"
            for path in dict.fromkeys([*wanted, *here])
            if wanted.get(path) not in (here.get(path), itself.get(path, here.get(path)))
        ]


class LooseAdapter(eqx.Module):
    """One adapter without its layer.

    - `state`: its arrays, as `LoRAWrapper.state()` gives them; those of a stack are stacked.
    - `wrapper`, `rank`, `alpha`: how it is built again. The rank is the effective one.
    - `layer`: the form of the layer that it was made for.
    """

    state: dict[str, Any]
    wrapper: type[LoRAWrapper] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    alpha: float | None = eqx.field(static=True)
    layer: LayerForm = eqx.field(static=True)


class AdapterSet(Loose, eqx.Module):
    """The adapters of a model by the paths of their layers, without the model. A pytree.

    Made by `extract_adapters`, put around the layers of a model by `swap_adapters`.
    """

    adapters: dict[str, LooseAdapter]

    def __len__(self) -> int:
        return len(self.adapters)

    def __iter__(self) -> Iterator[str]:
        """The paths."""
        return iter(self.adapters)

    def __getitem__(self, path: str) -> LooseAdapter:
        return self.adapters[path]


def check_set(given: Any, what: str) -> None:
    """**Raises:** `SelectionError` if what was given as `what` is no set."""
    if not isinstance(given, AdapterSet):
        raise SelectionError(
            f"`{what}` must be an AdapterSet, but is of type {type(given).__name__}. "
            "extract_adapters(model) gives that of a model, read_adapters(path) that of a file."
        )


def listed_sets(sets: Any) -> list[AdapterSet]:
    """`sets` as a list.

    **Raises:** `SelectionError` if it is none, or holds something else than sets.
    """
    if isinstance(sets, AdapterSet) or not isinstance(sets, Iterable):
        raise SelectionError(
            f"`sets` must be a list of AdapterSets, but is of type {type(sets).__name__}. Of a "
            "single set, give a list: [adapters]"
        )
    listed = list(sets)
    for index, one in enumerate(listed):
        check_set(one, f"sets[{index}]")
    return listed


def extract_adapters(model: PyTree) -> AdapterSet:
    """The adapters of `model`, without their layers.

    **Arguments:**

    - `model`: an adapted model, or a template of one (`eqx.filter_eval_shape`).

    **Returns:** an `AdapterSet`; empty for a model without adapters. Of a template, one that holds
    shapes, for `eqx.tree_deserialise_leaves`.

    **Raises:** `SelectionError` if two adapted layers have the same slash-joined path (a dict key
    that holds a slash), which no file and no set could tell apart; or if `model` is a `Net` or a
    set already. `WrapperError`, naming the path, if an adapter's `state` fails, or leaves out an
    option that its class keeps in a static field.
    """
    expect_model(model, "extract_adapters")
    found: dict[str, LooseAdapter] = {}
    lost_options = _LostOptions()
    for path, node in adapted_layers(model):
        refuse_second(path, found, "adapted layers")
        cls = type(node)
        try:
            ndim = evaluated(cls.stack_ndim, node.base)
            state = evaluated(over_stack(lambda w: dict(w.state()), ndim), node)
        except Exception as err:
            reason = why(err, node, "")
            raise WrapperError(
                f"Could not take the {cls.__name__} at {show_path(path)!r} out: {reason}"
            ) from err
        form = LayerForm.of(node.base, ndim)
        lost = lost_options.of(node, form)
        if lost:
            raise WrapperError(
                f"Could not take the {cls.__name__} at {show_path(path)!r} out: an option in a "
                f"static field is not in `state()`: {'; '.join(lost)}. Keep it in an array, or "
                "write a `from_state` that finds it out."
            )
        found[path] = LooseAdapter(state, cls, node.rank, node.alpha, form)
    return AdapterSet(found)


class _LostOptions:
    """`_lost_options`, once for adapters of one form."""

    def __init__(self) -> None:
        self._known: dict[Any, list[str]] = {}

    def of(self, wrapper: LoRAWrapper, form: LayerForm) -> list[str]:
        key = (jtu.tree_structure(wrapper), form)
        try:
            if key not in self._known:
                self._known[key] = _lost_options(wrapper, form.stack_ndim)
            return self._known[key]
        except TypeError:  # a static field that cannot be hashed
            return _lost_options(wrapper, form.stack_ndim)


def _lost_options(wrapper: LoRAWrapper, ndim: int) -> list[str]:
    """The static fields that `wrapper`, built again from its state, would have otherwise.

    The default `from_state` calls the constructor without any option.
    """
    cls = type(wrapper)
    own = [
        f.name
        for f in dataclasses.fields(cls)
        if f.metadata.get("static", False) and f.name not in ("rank", "alpha")
    ]
    if not own:
        return []

    def again(w: LoRAWrapper) -> LoRAWrapper:
        return cls.from_state(w.unwrap(), w.state(), w.rank, w.alpha)

    try:
        made = eqx.filter_eval_shape(over_stack(again, ndim), wrapper)
    except Exception:  # what needs the values cannot be told here
        return []
    pairs = ((name, getattr(wrapper, name, None), getattr(made, name, None)) for name in own)
    return [
        f"`{name}`, which is {is_!r}, would be {would_be!r}"
        for name, is_, would_be in pairs
        if _differ(is_, would_be)
    ]


def _differ(one: Any, other: Any) -> bool:
    """Whether two static values are not the same. Of what has no equality, such as functions, none
    need be another that is made again.
    """
    if one is other:
        return False
    if isinstance(one, type | enum.Enum):
        return True
    if all(callable(x) or type(x).__eq__ is object.__eq__ for x in (one, other)):
        return False
    try:
        return bool(one != other) and bool(one == one)
    except Exception:  # an array has no single answer
        return False


def _array(form: tuple[tuple[int, ...], str] | None) -> str:
    return "no such array" if form is None else f"{form[1]}{list(form[0])}"
