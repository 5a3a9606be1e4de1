"""Sets of adapters without their model: take them out of a model, and put them around layers."""

import dataclasses
import enum
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .._compute.precision import held_dtype
from .._contract.calling import call_or_trace, over_stack, safely_applies
from .._contract.checks import NotAModel, expect_model
from .._contract.coded import is_coded
from .._contract.matrix_adapter import MatrixAdapter
from .._contract.wrapper import LoRAWrapper, is_adapter
from .._errors import SelectionError, WrapperError, errors_as
from .._merge import plain_layer, unwrap_lora
from .._paths import FEW, bullets, nearest, path_str, show_path, show_place
from .._run import run
from .._sharding import place_like_base
from .._shared_arrays import names_shared_in, put_shared, shared_arrays, without_shared
from .._tree import (
    adapted_layers,
    layers_at,
    map_adapters,
    modules_by_path,
    norms_around,
    refuse_second,
    replace_layers,
)

M = TypeVar("M")

# Dtypes that differ only in precision. JAX's x64 decides between integers of 32 and 64 bits.
_PRECISION = re.compile(r"^b?(float|complex)\w+|^(u?int)(32|64)\b")


@dataclasses.dataclass(frozen=True)
class LayerForm:
    """The class and the arrays of the layer that an adapter was made for.

    - `layer`: the name of its class.
    - `arrays`: path, shape (with the axes of a stack) and dtype of each of its arrays. JAX computes
      in this dtype: float32 for NumPy's float64, unless x64 is on.
    - `stack_ndim`: how many leading axes a stack has.
    """

    layer: str
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    stack_ndim: int = 0

    @classmethod
    def of(cls, layer: PyTree, stack_ndim: int) -> "LayerForm":
        # PiSSA makes a JAX array of a NumPy weight, so NumPy's dtypes are not comparable.
        arrays = ((path, tuple(x.shape), str(held_dtype(x))) for path, x in arrays_of(layer))
        return cls(type(layer).__name__, tuple(arrays), stack_ndim)

    def __str__(self) -> str:
        arrays = ", ".join(f"{path} {array}" for path, array in self._shown().items())
        return f"{self.layer}({arrays})"

    @property
    def kinds(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """By path, the dtype (without its precision) and shape of each array."""
        return {path: (_PRECISION.sub(r"\1\2", x), shape) for path, shape, x in self.arrays}

    def problems(self, layer: PyTree) -> list[str]:
        """Why `layer` does not fit. A layer of another class fits if its arrays match."""
        form, missing = LayerForm.of(layer, 0), "no such array"
        expected, actual = self._shown(), form._shown()
        expected_kinds, actual_kinds = self.kinds, form.kinds
        return [
            f"{path}: the adapter was made for {expected.get(path, missing)}, the "
            f"{type(layer).__name__} has {actual.get(path, missing)}"
            for path in expected | actual
            if expected_kinds.get(path) != actual_kinds.get(path)
        ]

    def _shown(self) -> dict[str, str]:
        return {path: f"{dtype}{list(shape)}" for path, shape, dtype in self.arrays}


def arrays_of(layer: PyTree) -> list[tuple[str, Any]]:
    """The arrays of `layer` with their paths. An array in another form counts as the array."""
    # A list, because two arrays of a layer may have the same path.
    return [
        (path_str(keys), leaf)
        for keys, leaf in jtu.tree_leaves_with_path(layer, is_leaf=is_coded)
        if eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct) or is_coded(leaf)
    ]


class LooseAdapter(eqx.Module):
    """One adapter without its layer.

    - `state`: its arrays, as `LoRAWrapper.state()` returns them, with the axes of a stack in front.
    - `wrapper`, `rank`, `alpha`: its class, effective rank and alpha (`None` if it lacks them).
    - `layer`: the form of the layer that it was made for.
    """

    state: dict[str, Any]
    wrapper: type[LoRAWrapper] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True)
    alpha: float | None = eqx.field(static=True)
    layer: LayerForm = eqx.field(static=True)

    @property
    def scale(self) -> Any:
        """The scale `s` of an update `s B A` of `lora_A` and `lora_B`; `None` for other updates."""
        if self.rank is None or self.alpha is None:
            return None
        return MatrixAdapter.of(self.wrapper).low_rank_scale(self.rank, self.alpha)

    @property
    def is_product(self) -> bool:
        """Whether the adapter only adds `s B A`."""
        # `multiplier` is a frozen factor of the scale.
        return self.scale is not None and self.state.keys() <= {"lora_A", "lora_B", "multiplier"}


class AdapterSet(NotAModel, eqx.Module):
    """The adapters of a model, by the paths of their layers, without the model. A pytree.

    Iterates over the paths. `extract_adapters` makes one, `swap_adapters` puts it around layers.

    - `shared`: the arrays that several of the adapters use, by name.
    """

    adapters: dict[str, LooseAdapter]
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.adapters)

    def __iter__(self) -> Iterator[str]:
        return iter(self.adapters)

    def __getitem__(self, path: str) -> LooseAdapter:
        return self.adapters[path]


def extract_adapters(model: PyTree) -> AdapterSet:
    """The adapters of `model`, without their layers.

    **Arguments:** `model`: an adapted model, or a template of a model (`eqx.filter_eval_shape`).

    **Returns:** a set, empty for a model without adapters. A template gives a set of shapes, for
    `eqx.tree_deserialise_leaves`.

    **Raises:** `SelectionError` if two adapted layers have the same slash-joined path (a dict key
    contains a slash), or if `model` is a `Net` or a set. `WrapperError`, naming the path, if an
    adapter's `state` fails, or leaves out an option that its class keeps in a static field.
    """
    expect_model(model, "extract_adapters")
    shared = shared_arrays(model)
    if missing := names_shared_in(model) - shared.keys():
        raise SelectionError(
            f"The adapters share the arrays {', '.join(sorted(map(repr, missing)))}, which are not "
            "in this model: it is a part of a model. Give the whole model."
        )
    adapters: dict[str, LooseAdapter] = {}
    cache: dict[object, str] = {}
    for path, adapter in adapted_layers(model):
        refuse_second(path, adapters, "adapted layers")
        node = without_shared(adapter)
        cls = type(node)
        with errors_as(f"take {show_place(cls, path)} out", WrapperError):
            ndim = call_or_trace(cls.stack_ndim, node.base)
            state = call_or_trace(over_stack(lambda w: dict(w.state()), ndim), node)
            form = LayerForm.of(node.base, ndim)
            if lost := _lost_options(node, form, cache):
                raise WrapperError(
                    f"an option in a static field is not in `state()`: {lost}. Keep it in an "
                    "array, or restore it by `options_of` or `from_state`."
                )
        adapters[path] = LooseAdapter(state, cls, node.rank, node.alpha, form)
    return AdapterSet(adapters, shared)


def _lost_options(adapter: LoRAWrapper, form: LayerForm, cache: dict[object, str]) -> str:
    """The static fields that would change if `adapter` were built again from its state."""
    static = (f.name for f in dataclasses.fields(adapter) if f.metadata.get("static", False))
    options = {x: getattr(adapter, x, None) for x in static if x not in ("rank", "alpha")}
    key = type(adapter), form, adapter.rank, repr(options)
    if not options or key in cache:
        return cache.get(key, "")

    def rebuild(w: LoRAWrapper) -> LoRAWrapper:
        # The default `from_state` calls the constructor with the options of `options_of` alone.
        return type(w).from_state(w.unwrap(), w.state(), w.rank, w.alpha)

    try:
        rebuilt = eqx.filter_eval_shape(over_stack(rebuild, form.stack_ndim), adapter)
    except Exception:  # a `from_state` that looks at values fails on shapes
        rebuilt = adapter
    pairs = [(name, before, getattr(rebuilt, name, None)) for name, before in options.items()]
    lines = [f"`{name}`, which is {x!r}, would be {y!r}" for name, x, y in pairs if _differ(x, y)]
    cache[key] = "; ".join(lines)
    return cache[key]


def _differ(before: object, after: object) -> bool:
    """Whether two static values differ. Values without equality, such as functions, do not."""
    if isinstance(before, type | enum.Enum):
        return before is not after
    if all(callable(x) or type(x).__eq__ is object.__eq__ for x in (before, after)):
        return False
    try:
        return bool(before != after) and bool(before == before)  # NaN does not differ
    except Exception:  # a comparison of arrays gives an array
        return False


def swap_adapters(model: M, adapters: AdapterSet) -> M:
    """`model` with exactly the adapters of a set. Drops the model's current adapters.

    Initialisers do not run. If model and set have adapters of the same structure at the same paths,
    the result has the structure of `model`, so a compiled function does not compile again. May run
    inside `jit`.

    **Arguments:**

    - `model`: a plain model, or an adapted one, in any precision.
    - `adapters`: a set, as `extract_adapters`, `read_adapters` and the functions of sets return it.
        Its arrays keep their dtypes.

    **Raises:** `SelectionError` that lists every path that is missing or in a norm, and every layer
    whose arrays differ, or to which the adapter's class does not apply; or that names the adapter
    that cannot be built.
    """
    expect_model(model, "swap_adapters")
    # An adapter around a block hides its layers, and an adapter inside changes the block. So all
    # adapters are dropped before the set is compared with the model.
    plain = unwrap_lora(model)
    check_fit(plain, adapters, "These adapters")
    former = {(path, type(a)): settings_of(a) for path, a in adapted_layers(model)}

    def restored(path: str, new: LoRAWrapper) -> LoRAWrapper:
        return with_settings(new, former.get((path, type(new)), {}))

    return map_adapters(restored, put_around(plain, adapters))


def check_fit(model: PyTree, adapters: AdapterSet, what: str) -> None:
    """**Raises:** `SelectionError` that lists the `misfits`, or if `adapters` is not a set."""
    if not isinstance(adapters, AdapterSet):
        raise SelectionError(
            f"{what} must be an AdapterSet, but are of type {type(adapters).__name__}. "
            "extract_adapters(model) takes it from a model, read_adapters(path) from a file."
        )
    lines = [line for of_path in misfits(model, adapters).values() for line in of_path]
    if lines:
        raise SelectionError(f"{what} do not fit the model:\n{bullets(lines)}")


def misfits(model: PyTree, adapters: AdapterSet) -> dict[str, list[str]]:
    """Why `adapters` do not fit `model`, as lines by path."""
    layers, norms = layers_at(model, adapters), norms_around(model, adapters)
    missing = [path for path in adapters if path not in layers]
    paths = list(modules_by_path(model)) if missing else []
    # The search for the nearest of many paths is slow, and a few hints are enough.
    near = {path: nearest(path, paths, n=1) for path in missing[:FEW]}
    by_path: dict[str, list[str]] = {}
    for path, adapter in adapters.adapters.items():
        layer = layers.get(path)
        layer = layer.base if is_adapter(layer) else layer
        if layer is None:
            hint = f" (the nearest is {show_path(near[path][0])!r})" if near.get(path) else ""
            lines = [f": the model has no layer there{hint}"]
        elif path in norms:
            lines = [
                f": inside the norm at {show_path(norms[path])!r}, which rewrites the weight that "
                "the adapter would add to"
            ]
        elif problems := adapter.layer.problems(layer):
            lines = [f"/{problem}" for problem in problems]
        elif not call_or_trace(partial(safely_applies, adapter.wrapper), layer):
            cls, kind = adapter.wrapper.__name__, type(layer).__name__
            lines = [f": a {cls} is not for this {kind} (its `applies_to` says no)"]
        else:
            continue
        by_path[path] = [f"{show_path(path)}{line}" for line in lines]
    return by_path


def put_around(model: M, adapters: AdapterSet) -> M:
    """`model` with `adapters`, which fit it, around its layers. Adapters at other paths stay.

    **Raises:** `SelectionError` that names the path, if an adapter cannot be built from its state;
    or if adapters at other paths share an array whose name `adapters` use as well.
    """
    check_shared(model, adapters)
    layers = layers_at(model, adapters)
    built: dict[str, LoRAWrapper] = {}
    for path, adapter in adapters.adapters.items():
        with errors_as(f"build {show_place(adapter.wrapper, path)}", SelectionError):
            built[path] = built_around(layers[path], adapter)
    model = replace_layers(model, built)
    return put_shared(model, adapters.shared) if names_shared_in(built) else model


def check_shared(model: PyTree, adapters: AdapterSet) -> None:
    """**Raises:** `SelectionError` if adapters at other paths share an array of the same name."""
    elsewhere = [node for path, node in adapted_layers(model) if path not in adapters.adapters]
    if clashes := sorted(names_shared_in(elsewhere) & adapters.shared.keys()):
        raise SelectionError(
            f"The model's other adapters share an array {clashes[0]!r} already, and these adapters "
            "come with an array of that name. Unwrap the model's adapters first."
        )


def built_around(layer: PyTree, adapter: LooseAdapter) -> LoRAWrapper:
    """`adapter` around `layer`. It replaces the adapter that the layer carries, if any."""
    plain = plain_layer(layer) if is_adapter(layer) else layer
    settings = (adapter.rank, adapter.alpha)
    restored = run(_restored, adapter.wrapper, settings, plain, dict(adapter.state), beside=plain)
    return place_like_base(restored, plain)


def _restored(cls: type[LoRAWrapper], settings: Any, base: PyTree, state: Any) -> LoRAWrapper:
    ndim = cls.stack_ndim(base)
    return over_stack(lambda *slices: cls.from_state(*slices, *settings), ndim)(base, state)


def settings_of(adapter: LoRAWrapper) -> dict[str, Any]:
    """By field, the settings of `adapter` that its state lacks, such as dropout."""
    return {
        name: value
        for name, value in vars(adapter).items()
        if name != "base" and isinstance(value, eqx.Module)
        if not any(map(eqx.is_array, jax.tree.leaves(value)))
    }


def with_settings(adapter: LoRAWrapper, settings: Mapping[str, Any]) -> LoRAWrapper:
    """`adapter` with the settings that it lacks."""
    names = [name for name in settings if getattr(adapter, name) is None]
    if not names:
        return adapter
    where = lambda a: [getattr(a, name) for name in names]  # noqa: E731
    return eqx.tree_at(where, adapter, [settings[n] for n in names], is_leaf=lambda x: x is None)
