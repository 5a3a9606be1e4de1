"""Put the sum of several sets of adapters around the layers of a model."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._contract import (
    LoRAWrapper,
    adds_up,
    check_adapter_name,
    check_number,
    expect_model,
    is_traced,
    over_stack,
)
from .._errors import SelectionError, failing
from .._merge import unwrap_lora
from .._paths import bullets, nearest, show_path
from .._tree import adapted_layers, enclosing
from ._adapter_set import AdapterSet, LooseAdapter, check_set, extract_adapters, paths_of, stack_of
from ._products import widest
from ._sum import AdapterSum, Member, state_of, sum_class
from ._swapping import check_fit, put_around

M = TypeVar("M")
Weights = Mapping[str, Any] | Literal["train"] | None


def sum_adapters(
    model: M,
    sets: Mapping[str, AdapterSet],
    *,
    weights: Weights = None,
    train: Collection[str] = (),
) -> M:
    """`model` with the sum of several named sets of adapters: `W' = W + sum_i w_i U_i`.

    The update `U_i` of a set is what it does to the layer before adapting: `U_i = W_i - W`, where
    `W_i` is the layer that it merges to. Low-rank updates become one product in a call. A set
    without an adapter at a layer adds nothing there. May run inside `jit`, with traced weights.

    **Arguments:**

    - `model`: a plain model, or an adapted model, whose adapters are dropped.
    - `sets`: by name. Names hold no slash.
    - `weights`: by name, a number, which may be traced; 1 for other names. With `"train"`, one
        number for each set and layer trains, from 1.
    - `train`: the names of the sets whose adapters train. All others are frozen.

    **Returns:** an adapted model. `split_adapters` takes the sets out again.

    **Raises:** `SelectionError` if an argument makes no sense, if a set does not fit the model, or
    that lists the layers at which the updates cannot be added: two rotations of one weight, two
    adapters that cannot be merged, adapters that share arrays, and adapters that replace the weight
    by another without a known product.
    """
    expect_model(model, "sum_adapters")
    named = _checked_sets(sets)
    factors = _checked_weights(weights, named)
    train = _checked_names("train", train, named)
    plain = unwrap_lora(model)
    for name, adapters in named.items():
        check_fit(plain, adapters, f"The adapters {name!r}")
    paths = paths_of(named.values())
    problems = [line for path in paths for line in _problems(path, named)]
    problems += [
        f"{show_path(path)}: inside the adapted {show_path(outer)!r}"
        for path, outer in enclosing(paths, paths)
    ]
    if problems:
        raise SelectionError(f"These adapters cannot be added:\n{bullets(problems)}\n{_ADVICE}")
    trains = isinstance(weights, str)
    summed = {path: _sum_at(path, named, factors, train, trains) for path in paths}
    model = put_around(plain, AdapterSet(summed))
    _try_out(model)
    return model


def split_adapters(model: PyTree) -> dict[str, AdapterSet]:
    """The sets that `sum_adapters` added in `model`, by name, with their values now.

    **Arguments:** `model`: a model whose adapters are sums; or an `AdapterSet` of sums, such as
    `read_adapters` returns.

    **Raises:** `SelectionError` if an adapter is not a sum; and as `extract_adapters`.
    """
    adapters = model
    if not isinstance(model, AdapterSet):
        expect_model(model, "split_adapters")
        adapters = extract_adapters(model)
    for path, adapter in adapters.adapters.items():
        if not issubclass(adapter.wrapper, AdapterSum):
            raise SelectionError(
                f"split_adapters takes sums of adapters, but {show_path(path)!r} has a "
                f"{adapter.wrapper.__name__}. Use extract_adapters(model)."
            )
    return sets_in(adapters)


def sets_in(adapters: AdapterSet) -> dict[str, AdapterSet]:
    """By name, the sets whose sums are among `adapters`. Plain adapters are left out."""
    sets: dict[str, dict[str, LooseAdapter]] = {}
    for path, adapter in adapters.adapters.items():
        for m in adapter.wrapper.members if issubclass(adapter.wrapper, AdapterSum) else ():
            state = state_of(m.name, adapter.state)
            loose = LooseAdapter(state, m.wrapper, m.rank, m.alpha, adapter.layer)
            sets.setdefault(m.name, {})[path] = loose
    return {name: AdapterSet(of_name) for name, of_name in sets.items()}


_ADVICE = (
    "Merge one of them, and adapt the merged model: then the second acts on the result of the "
    "first. Or convert them to products: extract_adapters(to_lora(model, rank=...)[0])."
)


def _checked_sets(sets: Any) -> dict[str, AdapterSet]:
    if not isinstance(sets, Mapping) or not sets:
        raise SelectionError(
            "`sets` must be a dict of AdapterSets by name, such as {'old': old, 'new': new}, but "
            f"is {'empty' if sets == {} else f'of type {type(sets).__name__}'}."
        )
    for name, adapters in sets.items():
        check_adapter_name(name)
        if not name or "/" in name or not name.isprintable():
            raise SelectionError(
                f"The name {name!r} must be a printable text without a slash, and not empty."
            )
        check_set(adapters, f"sets[{name!r}]")
        if not adapters.adapters:
            raise SelectionError(f"The set {name!r} has no adapters to add. Leave it out.")
    return dict(sets)


def _checked_names(what: str, given: Any, names: Collection[str]) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise SelectionError(f"`{what}` must be a list of names, but is {given!r}.")
    for name in (given := list(given)):
        if name not in names:
            raise SelectionError(
                f"`{what}` names {name!r}, which is not among the adapters to add; did you mean "
                f"{nearest(str(name), names, n=1)[0]!r}?"
            )
    return given


def _checked_weights(weights: Any, names: Collection[str]) -> dict[str, Any]:
    if weights is None or (isinstance(weights, str) and weights == "train"):
        return dict.fromkeys(names, 1.0)
    if not isinstance(weights, Mapping):
        raise SelectionError(
            f"`weights` must be a dict of numbers by name, or 'train', but is {weights!r}."
        )
    _checked_names("weights", weights, names)
    for name, weight in weights.items():
        check_number(f"weights[{name!r}]", weight)
        if not is_traced(weight) and not np.isfinite(weight):
            raise SelectionError(f"`weights[{name!r}]` must be finite, but is {weight!r}.")
    return dict.fromkeys(names, 1.0) | dict(weights)


def _problems(path: str, sets: Mapping[str, AdapterSet]) -> list[str]:
    here = {name: s[path].wrapper for name, s in sets.items() if path in s.adapters}
    lines = problems_of_members(path, here)
    if any(s.shared for s in sets.values()):
        sharing = [(name, cls) for name, cls in here.items() if sets[name].shared]
        where = show_path(path)
        lines += [f"{where}: {_shown(*item)} shares arrays between layers" for item in sharing]
    return lines


def _shown(name: str, wrapper: type[LoRAWrapper]) -> str:
    return f"{name!r} ({wrapper.__name__})"


def problems_of_members(path: str, members: Mapping[str, type[LoRAWrapper]]) -> list[str]:
    """Why adapters of these classes cannot be added at a layer."""
    where = show_path(path)

    def shown(names: Iterable[str]) -> str:
        return " and ".join(_shown(name, members[name]) for name in names)

    lines: list[str] = []
    rotations = [name for name, cls in members.items() if cls.family == "rotation"]
    if len(rotations) > 1:
        lines.append(
            f"{where}: {shown(rotations)} rotate one weight. A sum of rotations is not a rotation, "
            "and a product depends on the order"
        )
    unmergeable = {cls: name for name, cls in members.items() if not cls.mergeable}
    if len(unmergeable) > 1:
        lines.append(f"{where}: {shown(unmergeable.values())} are no changes of the weight")
    for name, cls in members.items():
        if issubclass(cls, AdapterSum):
            lines.append(f"{where}: {name!r} is a sum itself. Give its sets: split_adapters(...)")
        elif not cls.mergeable and not adds_up(cls):
            lines.append(f"{where}: {shown([name])} is no change of the weight, and has no weight")
    return lines


def _sum_at(
    path: str,
    sets: Mapping[str, AdapterSet],
    factors: Mapping[str, Any],
    train: Collection[str],
    trains_weights: bool,
) -> LooseAdapter:
    here = {name: s[path] for name, s in sets.items() if path in s.adapters}
    members = (Member(n, a.wrapper, a.rank, a.alpha, n in train) for n, a in here.items())
    first = next(iter(here.values()))
    dtypes = {x.dtype for a in here.values() for x in a.state.values()}
    floats = [jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    dtype = widest([jnp.dtype(jnp.float32), *floats])
    weights = jnp.stack([jnp.asarray(factors[name], dtype) for name in here])
    shape = (*stack_of(first.layer), len(here))
    state: dict[str, Any] = {"weights": jnp.broadcast_to(weights, shape)}
    for name, adapter in here.items():
        state |= {f"{name}/{key}": array for key, array in adapter.state.items()}
    return LooseAdapter(state, sum_class(tuple(members), trains_weights), None, None, first.layer)


def _try_out(model: Any) -> None:
    """**Raises:** `SelectionError`, naming the path, if a sum cannot be computed."""
    tried: list[Any] = []  # a static field may have no hash
    for path, adapter in adapted_layers(model):
        arrays, structure = jax.tree.flatten(eqx.filter(adapter, eqx.is_array))
        signature = structure, tuple((array.shape, array.dtype) for array in arrays)
        if signature in tried:
            continue
        tried.append(signature)
        ndim = type(adapter).stack_ndim(adapter.base)
        with failing(f"add the updates at {show_path(path)!r}", SelectionError, _ADVICE):
            eqx.filter_eval_shape(over_stack(_arrays_of_sum, ndim), adapter)


def _arrays_of_sum(adapter: AdapterSum) -> Any:
    return eqx.filter(adapter.joined(), eqx.is_array)
