"""Convert updates to plain LoRA: of adapters, of a fine-tuned model, and of open directions."""

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Array, PyTree

from jno.lora import (
    AdapterSet,
    JnoLoraError,
    LayerForm,
    LooseAdapter,
    LoRAWrapper,
    MatrixAdapter,
    Registry,
    SelectionError,
    WrapperError,
    unwrap_lora,
)
from jno.lora.extending import (
    adapted_layers,
    at_least_float32,
    bullets,
    check_rank,
    claims,
    default_registry,
    enclosing,
    expect_model,
    failing,
    filler,
    held_dtype,
    is_traced,
    layers_at,
    map_adapters,
    modules_by_path,
    norms_around,
    over_stack,
    path_str,
    put_around,
    refusal_of_template,
    replace_layers,
    run,
    show_path,
    tracked,
    warn,
    widest,
)
from jno_lora_zoo import Factors, Triplets, known_factors

from ._products import (
    PRODUCT_STATE,
    UpdateReport,
    UpdateRow,
    check_fraction,
    cut,
    lost_by_cutting,
    rank_for,
    triplets_of,
    triplets_of_product,
)

M = TypeVar("M")
Leftovers = Literal["raise", "keep", "drop"]
_SAY_HOW_MUCH = (
    "its update is not known as a low-rank product; say how much of it to keep, by `rank=` or by "
    "`energy=0.99`"
)
_TRACED = "its rank depends on values, which are traced: give `rank`, or leave out `jit`"


def to_lora(
    model: M,
    *,
    rank: int | None = None,
    energy: float | None = None,
    registry: Registry | None = None,
) -> tuple[M, UpdateReport]:
    """Convert every adapter of `model` to plain LoRA around the layer as it was before adapting.

    An adapter of several matrices, such as spectral weights, becomes the LoRA for such layers.

    If an adapter only adds a product (`low_rank_form`), its factors are used, without loss if their
    rank is allowed. Otherwise a singular value decomposition cuts the update `merge(W) - W`. (Both
    in float32 at least.) A stack of layers gets one rank. Plain LoRA of an allowed rank is
    unchanged.

    **Arguments:**

    - `model`: an adapted model, not traced.
    - `rank`: the largest rank to keep.
    - `energy`: in `(0, 1]`: take the smallest rank that keeps this fraction of the update's squared
        Frobenius norm. The error is then at most `sqrt(1 - energy)`. Without `rank` and `energy`,
        every update must be a product, whose rank is kept (PiSSA, MiLoRA, OLoRA: twice the rank of
        the adapter).
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Returns:** the model, and an `UpdateReport` with the rank and the error of each layer.

    **Raises:** `SelectionError` if an argument makes no sense; `WrapperError` that lists every
    adapter that needs a rank, cannot be merged, has an update with NaN or infinity to cut, is on a
    layer that plain LoRA does not fit, or changes more of its layer than the matrix that LoRA adds
    to; `PluginError` without plain LoRA (the zoo).
    """
    expect_model(model, "to_lora")
    _check_size(rank, energy)
    if not any(adapted_layers(model)):
        return model, UpdateReport(())
    classes = _plain_lora(default_registry(registry))
    rows: list[UpdateRow] = []
    problems: list[str] = []
    fill = filler(model)

    def convert(path: str, adapter: LoRAWrapper) -> Any:
        try:
            lora, error = _converted(fill(adapter), classes, rank, energy)
        except Exception as err:  # a constructor or a merge may raise anything
            kind = "" if isinstance(err, JnoLoraError) else f"{type(err).__name__}: "
            problems.append(f"{show_path(path)} ({type(adapter).__name__}): {kind}{err}")
            return adapter
        rows.append(UpdateRow(path, type(adapter), type(lora), lora.rank, error))
        return lora

    converted = map_adapters(convert, model)
    if problems:
        raise WrapperError(
            f"Not every adapter can be converted to plain LoRA like this:\n{bullets(problems)}"
        )
    return converted, UpdateReport(tuple(rows))


def _check_size(rank: int | None, energy: float | None) -> None:
    """**Raises:** `SelectionError` if both are given, or one of them makes no sense."""
    if rank is not None and energy is not None:
        raise SelectionError("`rank` and `energy` were both given. Give only one.")
    if rank is not None:
        check_rank(rank)
    if energy is not None:
        check_fraction("energy", energy)


def _plain_lora(registry: Registry) -> list[type[LoRAWrapper]]:
    """The classes of plain LoRA, first for one matrix and then for several.

    Their variant is "lora", or "lora" and the kind of layer, such as "lora-embedding".
    """
    registered = (wrapper for record in registry.records() for wrapper in record.wrappers)
    named = [w.cls for w in registered if f"{w.adapter.variant}-".startswith("lora-")]
    trained = [cls for cls in named if {"lora_A", "lora_B"} <= {*cls.adapter_fields}]
    classes = dict.fromkeys((*registry.resolve("lora"), *trained))
    has_scale = {cls: MatrixAdapter.of(cls).low_rank_scale(1, 1.0) is not None for cls in classes}
    return [*filter(has_scale.get, classes), *filter(has_products, classes)]


def has_products(cls: type[LoRAWrapper]) -> bool:
    """Whether a class defines `with_products`, as plain LoRA of several matrices does."""
    return hasattr(cls, "with_products")


def _converted(
    adapter: LoRAWrapper,
    classes: list[type[LoRAWrapper]],
    rank: int | None,
    energy: float | None,
) -> tuple[LoRAWrapper, Array]:
    """Plain LoRA with the update of `adapter`, and the error due to its rank."""
    if has_products(type(adapter)):
        classes = [type(adapter), *classes]
    elif type(adapter) in classes and (extra := adapter.state().keys() - PRODUCT_STATE):
        raise WrapperError(f"it also trains {', '.join(sorted(extra))}; merge it instead")
    is_lora = type(adapter) in classes
    if is_lora and energy is None and (rank is None or adapter.rank <= rank):
        return adapter, jnp.zeros(())
    if refusal := refusal_of_template(adapter, "Give the model itself"):
        raise WrapperError(refusal)
    layer = unwrap_lora(adapter)
    cls: Any = next((c for c in classes if _fits(c, adapter, layer)), None)
    if cls is None:
        raise WrapperError(
            f"no plain LoRA of the registry is for a {type(layer).__name__}: register a subclass "
            "of a LoRA (for spectral weights, of LoRASpectral with the same `mode_weights`). "
            "Adapters of one class with a `sum_of` need no conversion to be combined"
        )
    if has_products(cls):
        updates = run(_family_updates, cls, adapter)
        return _nearest_family(cls, layer, updates, rank, energy, adapter.rank)
    factors = known_factors(adapter)
    if factors is None and not type(adapter).mergeable:
        raise WrapperError("it cannot be merged, so its update is not a low-rank product")
    if factors is None:
        if rank is None and energy is None:
            raise WrapperError(_SAY_HOW_MUCH)
        triplets = _decomposed(cls, adapter)
    else:
        if energy is None:
            rank = min(factors.largest_rank, factors.rank if rank is None else rank)
            if factors.rank <= rank:
                return lora_around(layer, cls, factors), jnp.zeros(())
        triplets = run(triplets_of_product, factors)
    return _nearest(cls, layer, triplets, rank, energy)


def _nearest(
    cls: type[LoRAWrapper], layer: Any, update: Triplets, rank: int | None, energy: float | None
) -> tuple[Any, Array]:
    """The adapter of `cls` that is nearest to an update, and the error due to its rank."""
    _check_values(update.S, rank)
    if energy is not None:
        rank = rank_for(update, energy)
    assert rank is not None
    factors = cut(update, min(rank, update.S.shape[-1]))
    return lora_around(layer, cls, factors), lost_by_cutting(update, rank)


def _check_values(singular_values: Array, rank: int | None) -> None:
    """**Raises:** `WrapperError` if an update with these singular values cannot be cut."""
    if is_traced(singular_values):
        if rank is None:
            raise WrapperError(_TRACED)
    elif not np.isfinite(singular_values).all():
        raise WrapperError("its update holds NaN or infinity, and cannot be cut to a rank")


def lora_around(layer: Any, cls: type[LoRAWrapper], update: Factors) -> Any:
    """The adapter of `cls`, a class with a `low_rank_scale`, that adds `update` to `layer`."""
    state, rank, alpha = update.as_adapter(cls)
    form = LayerForm.of(layer, cls.stack_ndim(layer))
    return put_around(layer, AdapterSet({"": LooseAdapter(state, cls, rank, alpha, form)}))


def _fits(cls: type[LoRAWrapper], adapter: LoRAWrapper, layer: Any) -> bool:
    """Whether `cls` adapts the same matrices of `layer` as `adapter`, and not their mean."""
    applies = claims(cls, layer)
    if not applies or not has_products(cls):
        return applies

    def shapes(cls: type[LoRAWrapper]) -> dict[str, Any]:
        of_layer = MatrixAdapter.of(cls).matrices
        matrices = eqx.filter_eval_shape(over_stack(of_layer, cls.stack_ndim(layer)), layer)
        return {name: W.shape for name, W in matrices.items()}

    return shapes(type(adapter)) in ({}, shapes(cls))


def _nearest_family(
    cls: Any,
    layer: Any,
    updates: Mapping[str, tuple[Array, Array]],
    rank: int | None,
    energy: float | None,
    known_rank: int | None = None,
) -> tuple[LoRAWrapper, Array]:
    """As `_nearest`, for the LoRA `cls` of a layer with several matrices.

    - `updates`: what `_matrix_updates` returns.
    - `known_rank`: the rank that the update must have if `rank` and `energy` are missing.
    """
    triplets = {name: _without_noise(triplets_of(U), scale) for name, (U, scale) in updates.items()}
    dtype = widest(t.S.dtype for t in triplets.values())
    values = [t.S.astype(dtype) for t in triplets.values()]
    all_values = jnp.concatenate([S.ravel() for S in values])
    _check_values(all_values, rank)
    if energy is not None:
        rank = max(rank_for(t, energy) for t in triplets.values())
    if rank is None:
        rank = max(1, *(int((S > 0).sum(axis=-1).max()) for S in values))
        if known_rank is None or rank > known_rank:
            raise WrapperError(_SAY_HOW_MUCH)
    rank = min(rank, max(S.shape[-1] for S in values))
    factors = {name: tuple(cut(t, rank)) for name, t in triplets.items()}
    lost = jnp.concatenate([S[..., rank:].ravel() for S in values])
    error = jnp.linalg.norm(lost) / jnp.where(all_values.any(), jnp.linalg.norm(all_values), 1)
    lora = over_stack(cls.with_products, cls.stack_ndim(layer))(layer, factors)
    return lora, error.astype(jnp.float32)


def _family_updates(cls: Any, adapter: LoRAWrapper) -> dict[str, tuple[Array, Array]]:
    def of_layer(adapter: LoRAWrapper) -> dict[str, tuple[Array, Array]]:
        wide: Any = at_least_float32(adapter)
        return _matrix_updates(cls, wide.unwrap(), wide.merge())

    return over_stack(of_layer, type(adapter).stack_ndim(adapter.base))(adapter)


def _matrix_updates(cls: Any, layer: Any, changed: Any) -> dict[str, tuple[Array, Array]]:
    """The update of each of several matrices and the size of its rounding, by name."""

    def rounding(W: Array, V: Array) -> Array:
        norms = (jnp.linalg.norm(x, axis=(-2, -1)) for x in (W, V))
        return max(W.shape[-2:]) * float(jnp.finfo(W.dtype).eps) * jnp.add(*norms)

    before, after = map(MatrixAdapter.of(cls).matrices, (layer, changed))
    return {name: (after[name] - W, rounding(W, after[name])) for name, W in before.items()}


def _without_noise(triplets: Triplets, noise: Array) -> Triplets:
    """The triplets, where singular values that may come from rounding are set to zero."""
    return triplets._replace(S=jnp.where(noise[..., None] >= triplets.S, 0, triplets.S))


def _decomposed(cls: type[LoRAWrapper], adapter: LoRAWrapper) -> Triplets:
    """The update of the matrix. **Raises:** `WrapperError` if the adapter changes more than it."""
    triplets, missed = run(_triplets, cls, adapter)
    names = [path_str(keys) for keys, flag in jtu.tree_leaves_with_path(missed) if np.any(flag)]
    if names:
        raise WrapperError(
            f"it also changes {', '.join(names)}, which LoRA leaves as it is; merge it instead"
        )
    return triplets


def _triplets(cls: type[LoRAWrapper], adapter: LoRAWrapper) -> tuple[Triplets, Any]:
    """The update of the matrix, and for each floating array of the layer, whether LoRA misses it.

    LoRA misses an array if the adapter changes it, but LoRA with the whole update does not.
    """

    def of_layer(adapter: LoRAWrapper) -> tuple[Triplets, Any]:
        wide: Any = at_least_float32(adapter)
        layer, merged = wide.unwrap(), wide.merge()
        update = _update(cls, layer, merged)
        outputs, inputs = update.shape
        identity = jnp.eye(min(outputs, inputs), dtype=update.dtype)
        whole = Factors(update, identity) if outputs < inputs else Factors(identity, update)
        by_lora = cls.from_state(layer, *whole.as_adapter(cls)).merge()
        trees = [eqx.filter(tree, eqx.is_inexact_array) for tree in (layer, merged, by_lora)]
        missed = jax.tree.map(lambda w, m, b: jnp.any(m != w) & ~jnp.any(b != w), *trees)
        return _matrix_triplets(cls, layer, merged), missed

    return over_stack(of_layer, type(adapter).stack_ndim(adapter.base))(adapter)


def _matrix_triplets(cls: Any, layer: Any, changed: Any) -> Triplets:
    """The update of the matrix of a plain layer, without what may come from rounding."""
    U, sizes, Vt = triplets_of(_update(cls, layer, changed))
    noise = jnp.finfo(sizes.dtype).eps * jnp.linalg.norm(MatrixAdapter.of(cls).matrix(layer))
    return Triplets(U, jnp.where(sizes <= noise, 0, sizes), Vt)  # NaN stays NaN


def _update(cls: Any, layer: Any, changed: Any) -> Array:
    before, after = map(MatrixAdapter.of(cls).matrix, (layer, changed))
    assert before is not None and after is not None
    return after - before


def extract_lora(
    base: M,
    tuned: M,
    *,
    rank: int | None = None,
    energy: float | None = None,
    leftovers: Leftovers = "raise",
    registry: Registry | None = None,
) -> tuple[M, UpdateReport]:
    """`base` with the plain LoRA that is nearest to its fine-tuned copy `tuned`.

    A singular value decomposition cuts the difference of each matrix, in float32 at least, one
    layer after another. No other update of the same rank is nearer in the Frobenius norm (Eckart
    and Young). A stack of layers gets one rank. Layers whose matrices are equal get no adapter.

    **Arguments:**

    - `base`, `tuned`: plain models with the same structure, shapes and constants (numbers that are
        not arrays), not traced. Merge adapters first. `tuned` may have other precisions.
    - `rank`: the rank to keep.
    - `energy`: in `(0, 1]`: take the smallest rank of each layer that keeps this fraction of the
        squared Frobenius norm of the difference. Give either `rank` or `energy`.
    - `leftovers`: what happens to changed arrays that LoRA does not adapt, such as biases and
        norms: `"raise"` lists them in an error, `"keep"` puts their new values into the base, and
        `"drop"` leaves the base as it is. The report lists them, too. Files of adapters do not hold
        arrays of the base, so save the base of `"keep"` as well.
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Returns:** the adapted model, and an `UpdateReport` with each layer's rank, error and energy.
    It says how much of the change is kept (`kept`). Below 90 %, it warns, because the outputs may
    differ a lot from `tuned`.

    **Raises:** `SelectionError` if the models differ in structure or constants, or carry adapters,
    if arrays are left over, or if an argument makes no sense; `WrapperError` that names a layer
    whose difference has NaN or infinity; `PluginError` without plain LoRA (the zoo).
    """
    _check_same_structure(base=base, tuned=tuned)
    _check_size(rank, energy)
    if rank is None and energy is None:
        raise SelectionError("Give `rank` or `energy`, which say how much of the update to keep.")
    if leftovers not in (options := get_args(Leftovers)):
        raise SelectionError(f"`leftovers` must be one of {options}, but is {leftovers!r}.")
    classes = _classes_by_path(base, _plain_lora(default_registry(registry)))
    adapts = {path: _adapts(classes[path], x) for path, x in layers_at(base, classes).items()}
    changed: list[str] = []
    left: list[str] = []

    def take(keys: Any, old: Any, new: Any, is_adapted: bool) -> Any:
        if not _differ(old, new):
            return old
        (changed if is_adapted else left).append(path_str(keys))
        return old if is_adapted or leftovers == "drop" else jnp.asarray(new, held_dtype(old))

    flags = replace_layers(jax.tree.map(lambda _: False, base), adapts)
    model = jtu.tree_map_with_path(take, base, tuned, flags)
    if left and leftovers == "raise":
        raise SelectionError(
            f"LoRA does not adapt these arrays, which differ:\n{bullets(map(show_path, left))}\n"
            'leftovers="keep" puts their values into the base of the result, and leftovers="drop" '
            "leaves them out."
        )
    paths = dict.fromkeys(layer for _, layer in enclosing(changed, classes))
    before, after = layers_at(model, paths), layers_at(tuned, paths)
    adapters: dict[str, LoRAWrapper] = {}
    rows: list[UpdateRow] = []
    with contextlib.closing(tracked(before.items(), "Decomposing")) as shown:
        for path, layer in shown:
            with failing(f"extract LoRA at {show_path(path)!r}"):
                lora, *norms = _extracted(classes[path], layer, after[path], rank, energy)
            adapters[path] = lora
            rows.append(UpdateRow(path, type(layer), type(lora), lora.rank, *norms))
    return replace_layers(model, adapters), UpdateReport(tuple(rows), tuple(left)).warn_of_loss()


def _check_same_structure(**models: PyTree) -> None:
    """**Raises:** `SelectionError` unless the models are plain, and have one structure."""
    for name, model in models.items():
        expect_model(model, "extract_lora")
        if refusal := refusal_of_template(model, "Give the model itself."):
            raise SelectionError(f"`{name}`: {refusal}")
        for path, _ in adapted_layers(model):
            raise SelectionError(
                f"`{name}` has an adapter at {show_path(path)!r}. Call merge_lora first."
            )
    forms = {name: _forms(model) for name, model in models.items()}
    base, tuned = forms.values()
    if unlike := [path for path in base | tuned if base.get(path) != tuned.get(path)]:
        path = max(unlike, key=len)  # not the layers around the difference
        sides = (f"{x.get(path, ('nothing',))[0]} in `{name}`" for name, x in forms.items())
        raise SelectionError(
            f"The models differ in layers or constants: at {show_path(path)!r}, {', '.join(sides)}."
        )


def _forms(model: PyTree) -> dict[str, tuple[Any, ...]]:
    """By path, the name and structure of each module, and the shape, value or class of a leaf."""
    layers = modules_by_path(model).items()
    forms: dict[str, Any] = {p: (type(x).__name__, jax.tree.structure(x)) for p, x in layers}
    for keys, leaf in jtu.tree_leaves_with_path(model):
        form = str(leaf.shape) if _is_array(leaf) else type(leaf).__name__
        forms[path_str(keys)] = (repr(leaf) if np.isscalar(leaf) else form,)
    return forms


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def _differ(old: Any, new: Any) -> bool:
    return _is_array(old) and bool(jnp.any(jnp.not_equal(*_in_wide_dtypes(old, new))))


def _in_wide_dtypes(old: Any, new: Any) -> tuple[Any, Any]:
    """Both layers in the dtypes of the first, in float32 at least."""
    wide = at_least_float32(old)
    cast = lambda x, y: jnp.asarray(y, held_dtype(x)) if _is_array(x) else y  # noqa: E731
    return wide, jax.tree.map(cast, wide, new)


def _classes_by_path(model: PyTree, classes: list[type[LoRAWrapper]]) -> dict[str, Any]:
    """The class of plain LoRA for each of the outermost layers that have one."""
    layers = modules_by_path(model).items()
    options = {path: next((c for c in classes if claims(c, x)), None) for path, x in layers}
    chosen = {path: cls for path, cls in options.items() if cls is not None}
    inside = {path for path, _ in enclosing(chosen, chosen)} | norms_around(model, chosen).keys()
    return {path: cls for path, cls in chosen.items() if path not in inside}


def _adapts(cls: Any, layer: Any) -> Any:
    """For each leaf of `layer`, whether a random update by `cls` changes it."""
    index = (0,) * cls.stack_ndim(layer)  # all layers of a stack are alike
    wide = at_least_float32(layer)
    first = jax.tree.map(lambda x: jnp.asarray(x)[index] if _is_array(x) else x, wide)

    def random(W: Array) -> Factors:
        shapes = (*W.shape[:-2], 1, W.shape[-1]), (*W.shape[:-1], 1)
        return Factors(*(jax.random.normal(jax.random.key(0), s, W.dtype) for s in shapes))

    if has_products(cls):
        matrices = MatrixAdapter.of(cls).matrices(first)
        lora = cls.with_products(first, {name: tuple(random(W)) for name, W in matrices.items()})
    else:
        lora = cls.from_state(first, *random(cls.matrix(first)).as_adapter(cls))
    return jax.tree.map(_differ, first, lora.merge())


def _extracted(
    cls: Any, layer: Any, changed: Any, rank: int | None, energy: float | None
) -> tuple[LoRAWrapper, Array, Array]:
    """Plain LoRA with the change of a layer, the error due to its rank, and the change's norm."""
    function, nearest = _matrix_triplets, _nearest
    if has_products(cls):
        function, nearest = _matrix_updates, _nearest_family
    update = run(_of_stack, cls, function, *_in_wide_dtypes(layer, changed), beside=layer)
    parts = [U for U, _ in update.values()] if isinstance(update, dict) else [update.S]
    size = jnp.linalg.norm(jnp.stack([jnp.linalg.norm(x.ravel()) for x in parts]))
    return *nearest(cls, layer, update, rank, energy), size


def _of_stack(cls: Any, function: Any, layer: Any, changed: Any) -> Any:
    return over_stack(functools.partial(function, cls), cls.stack_ndim(layer))(layer, changed)


def shrink(model: M, *, registry: Registry | None = None) -> M:
    """Turn each adapter of `model` with a `rank_gate` into plain LoRA without closed directions.

    Outputs change only by rounding. A layer whose gates are all zero becomes the plain layer. A
    stack of layers gets the largest rank among its layers. Other adapters do not change. For a
    `Net`: `Net(shrink(net.module))`.

    **Arguments:**

    - `model`: an adapted model, not traced because the ranks determine shapes.
    - `registry`: where the LoRA classes are looked up, instead of among the installed plugins.

    **Raises:** `WrapperError` that lists every adapter with a `rank_gate` whose update is not known
    as a product (`low_rank_form`); `SelectionError` if `model` is a `Net` or a set.
    """
    expect_model(model, "shrink")
    gated = map_adapters(lambda _, a: a if _gate_of(a) else None, model)
    gates = {path: getattr(a, _gate_of(a) or "") for path, a in adapted_layers(gated)}
    converted, _ = to_lora(gated, registry=registry)
    is_open = {path: any(map(np.any, jax.tree.leaves(gate))) for path, gate in gates.items()}
    if is_open and not any(is_open.values()):
        warn(
            "Every gate is zero, so no adapter is left. AdaLoRA's gates start at zero: call shrink "
            "when training is done."
        )

    def shrunk(path: str, adapter: LoRAWrapper, lora: Any) -> Any:
        if lora is None:
            return adapter
        return _without_zeros(lora) if is_open[path] else unwrap_lora(lora)

    return map_adapters(shrunk, model, converted)


def _gate_of(adapter: LoRAWrapper) -> str | None:
    return MatrixAdapter.of(type(adapter)).rank_gate


def _without_zeros(adapter: LoRAWrapper) -> Any:
    """Plain LoRA without the directions that are zero; the plain layer if all of them are."""
    if has_products(type(adapter)):  # already cut to the rank needed
        return adapter
    factors = known_factors(adapter)
    assert factors is not None
    layer = unwrap_lora(adapter)
    is_nonzero = np.any(factors.A != 0, axis=-1) & np.any(factors.B != 0, axis=-2)
    rank = int(is_nonzero.sum(axis=-1).max())
    if rank == 0:
        return layer
    # A stable sort puts the nonzero directions first, in their order.
    nonzero = np.argsort(~is_nonzero, axis=-1, kind="stable")[..., :rank]
    update = Factors(
        jnp.take_along_axis(factors.A, nonzero[..., :, None], axis=-2),
        jnp.take_along_axis(factors.B, nonzero[..., None, :], axis=-1),
    )
    return lora_around(layer, type(adapter), update)
