"""Sum sets of adapters in a model, and take the sets out of the sum again."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._contract import (
    adds_up,
    check_adapter_name,
    check_number,
    expect_model,
    over_stack,
)
from .._errors import SelectionError, failing
from .._merge import unwrap_lora
from .._paths import bullets, nearest, show_path
from .._tree import adapted_layers, enclosing
from ._adapter_set import AdapterSet, LooseAdapter, extract_adapters
from ._adapter_sum import AdapterSum, Member, state_of, sum_class
from ._products import widest
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
    numbers = _checked_weights(weights)
    train = list(train)
    _check_names(sets, (*numbers, *train))
    plain = unwrap_lora(model)
    for name, adapters in sets.items():
        check_fit(plain, adapters, f"The adapters {name!r}")
    paths = list(dict.fromkeys(itertools.chain(*sets.values())))
    problems = [line for path in paths for line in _problems(path, sets)]
    problems += [
        f"{show_path(path)}: inside the adapted {show_path(outer)!r}"
        for path, outer in enclosing(paths, paths)
    ]
    if problems:
        raise SelectionError(f"These adapters cannot be added:\n{bullets(problems)}\n{_ADVICE}")
    trains = isinstance(weights, str)
    summed = {path: _sum_at(path, sets, numbers, train, trains) for path in paths}
    model = put_around(plain, AdapterSet(summed))
    _try_out(model)
    return model


_ADVICE = (
    "Merge one of them, and adapt the merged model: then the second acts on the result of the "
    "first. Or convert them to products: extract_adapters(to_lora(model, rank=...)[0])."
)


def _checked_weights(weights: Any) -> dict[str, Any]:
    """The numbers in the argument `weights`, by name."""
    if weights is None or (isinstance(weights, str) and weights == "train"):
        return {}
    if not isinstance(weights, Mapping):
        raise SelectionError(
            f"`weights` must be a dict of numbers by name, or 'train', but is {weights!r}."
        )
    for name, weight in weights.items():
        check_number(f"weights[{name!r}]", weight)
    return dict(weights)


def _check_names(sets: Mapping[str, AdapterSet], names: Iterable[str]) -> None:
    """**Raises:** `SelectionError` if a set has a bad name, or if one of `names` has no set."""
    for name in sets:
        check_adapter_name(name)
        if not name or "/" in name or not name.isprintable():
            raise SelectionError(
                f"The name {name!r} must be a printable text without a slash, and not empty."
            )
    for name in names:
        if name not in sets:
            near = "".join(f" Did you mean {option!r}?" for option in nearest(name, sets, n=1))
            raise SelectionError(f"{name!r} is not among the adapters to add.{near}")


def _problems(path: str, sets: Mapping[str, AdapterSet]) -> list[str]:
    """Why the adapters of these sets cannot be added at a layer."""
    members = {name: s[path].wrapper for name, s in sets.items() if path in s.adapters}
    where = show_path(path)

    def shown(names: Iterable[str]) -> str:
        return " and ".join(f"{name!r} ({members[name].__name__})" for name in names)

    lines: list[str] = []
    rotations = [name for name, cls in members.items() if cls.about.family == "rotation"]
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
        if sets[name].shared:
            lines.append(f"{where}: {shown([name])} shares arrays between layers")
    return lines


def _sum_at(
    path: str,
    sets: Mapping[str, AdapterSet],
    numbers: Mapping[str, Any],
    train: Collection[str],
    trains_weights: bool,
) -> LooseAdapter:
    here = {name: s[path] for name, s in sets.items() if path in s.adapters}
    members = (Member(n, a.wrapper, a.rank, a.alpha, n in train) for n, a in here.items())
    first = next(iter(here.values()))
    dtypes = {x.dtype for a in here.values() for x in a.state.values()}
    floats = [jnp.finfo(dtype).dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    dtype = widest([jnp.dtype(jnp.float32), *floats])
    weights = jnp.stack([jnp.asarray(numbers.get(name, 1.0), dtype) for name in here])
    ndim, arrays = first.layer.stack_ndim, first.layer.arrays
    stack = arrays[0][1][:ndim] if ndim else ()
    state: dict[str, Any] = {"weights": jnp.broadcast_to(weights, (*stack, len(here)))}
    for name, adapter in here.items():
        state |= {f"{name}/{key}": array for key, array in adapter.state.items()}
    return LooseAdapter(state, sum_class(tuple(members), trains_weights), None, None, first.layer)


def _try_out(model: Any) -> None:
    """**Raises:** `SelectionError`, naming the path, if a sum cannot be computed."""
    tried: list[Any] = []  # a static field may have no hash
    for path, adapter in adapted_layers(model):
        arrays, structure = jax.tree.flatten(eqx.filter(adapter, eqx.is_array))
        signature = structure, tuple((array.shape, array.dtype) for array in arrays)
        if signature not in tried:
            tried.append(signature)
            compute = over_stack(
                lambda layer: eqx.filter(layer.joined(), eqx.is_array),
                type(adapter).stack_ndim(adapter.base),
            )
            with failing(f"add the updates at {show_path(path)!r}", SelectionError, _ADVICE):
                eqx.filter_eval_shape(compute, adapter)


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
