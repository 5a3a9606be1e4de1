"""Find the trained fields of an adapter that move, and check that the start is the base."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jno.lora import LoRAWrapper, SelectionError, Shared, resolve
from jno.lora.extending import (
    adapted_layers,
    bullets,
    compute_dtype,
    over_stack,
    show_path,
    trainable_fields,
    with_arrays,
)

# By the path of a layer, the names of its fields that move.
Moving = dict[str, tuple[str, ...]]


def moving_fields(
    adapted: PyTree, plain: PyTree, declared: Mapping[str, Sequence[str]], exact: bool
) -> Moving:
    """The trained fields whose change alone changes the layer, at the start of the adapters.

    The remaining trained fields act through these (LoRA's `A` through `B`).

    **Arguments:**

    - `adapted`, `plain`: the model with adapters, and as it was before.
    - `declared`: fields by the name of a class, for adapters that cannot be merged.
    - `exact`: whether the merged layers must be the plain layers bit for bit.

    **Raises:** `SelectionError`, with the path and the class, for adapters that cannot be used.
    """
    if unknown := declared.keys() - {type(a).__name__ for _, a in adapted_layers(adapted)}:
        raise SelectionError(
            f"`moving` names {', '.join(sorted(unknown))}, but no layer carries such an adapter."
        )
    moving: Moving = {}
    problems: list[str] = []
    for path, adapter, layer in adapted_layers(resolve(adapted), plain):
        name, trained = type(adapter).__name__, trained_fields(adapter)
        problem = None
        if shared := _trained_by_several(adapter):
            problem = (
                f"trains an array that several layers share ({', '.join(shared)}), which cannot "
                "move with the parameter in one of them. Choose another method"
            )
        elif name in declared:
            moving[path] = tuple(declared[name])
            problem = _declaration_problem(adapter, declared[name], trained)
        elif not type(adapter).mergeable:
            problem = (
                "cannot be merged, so its layer does not show which of its trained fields "
                f'({", ".join(trained)}) move. Name them: moving={{"{name}": (...)}}'
            )
        else:
            # A coded weight cannot be changed. Decoded before compiling, both are equal.
            probed = _probe(with_arrays(adapter), with_arrays(layer), trained)
            distance, rounding, changes, growths = probed
            moving[path] = tuple(field for field in trained if float(changes[field]) != 0)
            problem = _problem(float(distance), exact, moving[path], trained, float(rounding))
            problem = problem or _size_problem(moving[path], growths)
        if problem is not None:
            problems.append(f"{show_path(path)}: {name} {problem}")
    if problems:
        raise SelectionError(f"These adapters cannot be conditional:\n{bullets(problems, 10)}")
    return moving


def _declaration_problem(
    adapter: LoRAWrapper, fields: Sequence[str], trained: tuple[str, ...]
) -> str | None:
    if type(adapter).mergeable:
        return "can be merged, so its moving fields are found: remove it from `moving`"
    if not fields or set(fields).difference(trained):
        return f"trains {', '.join(trained)}: name some of these fields, and not {fields!r}"
    return None


def trained_fields(adapter: LoRAWrapper) -> tuple[str, ...]:
    """The names of the trained fields that contain arrays."""
    names = trainable_fields(type(adapter))
    return tuple(name for name in names if jax.tree.leaves(getattr(adapter, name, None)))


def starting_at_zero(adapted: PyTree, moving: Moving) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """By path, the moving fields whose numbers are all zero."""

    def zeros(adapter: LoRAWrapper, names: tuple[str, ...]) -> tuple[str, ...]:
        def is_zero(value: PyTree) -> bool:
            return not any(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(value))

        return tuple(name for name in names if is_zero(getattr(adapter, name)))

    return tuple((path, zeros(a, moving[path])) for path, a in adapted_layers(adapted))


@eqx.filter_jit
def _probe(
    adapter: PyTree, layer: PyTree, trained: tuple[str, ...]
) -> tuple[PyTree, PyTree, dict[str, PyTree], dict[str, PyTree]]:
    """How far the merged start is from `layer`, and how each field alone changes the layer.

    The distance, the largest distance that counts as a rounding, and by field: how much a change of
    it changes the layer, and how much more than a fourth of the change does, as a fraction (3/4 for
    a linear field, 0 if only the direction of the change matters).
    """
    ndim = type(adapter).stack_ndim(adapter.base)
    merge = over_stack(lambda each: each.merge(), ndim)
    merged = merge(adapter)
    changes, growths = {}, {}
    for field in trained:
        changed, less = (merge(_perturbed(adapter, field, size)) for size in (0.1, 0.025))
        changes[field] = whole = _distance(changed, merged)
        growths[field] = _distance(changed, less) / jnp.where(whole > 0, whole, 1)
    return _distance(merged, layer), _rounding_of(layer), changes, growths


def _perturbed(adapter: PyTree, field: str, size: float) -> PyTree:
    def perturb(leaf: Any) -> Any:
        wide = compute_dtype(leaf)
        # No random numbers, whose program takes a second to compile for each form of layer.
        noise = jnp.sin(jnp.arange(1, leaf.size + 1).astype(float)).astype(wide).reshape(leaf.shape)
        return leaf + (size * noise * (1 + jnp.abs(leaf)).astype(wide)).astype(leaf.dtype)

    values = jax.tree.map(perturb, getattr(adapter, field))
    return with_fields(adapter, {field: values})


def with_fields(adapter: PyTree, values: Mapping[str, PyTree]) -> PyTree:
    """`adapter` with other values of these fields."""
    return eqx.tree_at(lambda a: [getattr(a, name) for name in values], adapter, [*values.values()])


def _arrays(*trees: PyTree) -> Iterable[tuple[PyTree, ...]]:
    return zip(*(jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in trees), strict=True)


def _distance(a: PyTree, b: PyTree) -> PyTree:
    """The largest difference of the numbers in two layers."""
    gaps = [
        jnp.max(jnp.abs(x.astype(wide) - y.astype(wide)), initial=0).astype(float)
        for x, y in _arrays(a, b)
        if jnp.issubdtype(x.dtype, jnp.inexact)
        for wide in [compute_dtype(x)]
    ]
    return jnp.max(jnp.stack(gaps))


def _trained_by_several(adapter: LoRAWrapper) -> list[str]:
    """The trained fields that contain a `Shared` array."""

    def is_shared(node: object) -> bool:
        return isinstance(node, Shared)

    values = {name: getattr(adapter, name, None) for name in trainable_fields(type(adapter))}
    return [
        n for n, v in values.items() if any(map(is_shared, jax.tree.leaves(v, is_leaf=is_shared)))
    ]


def _rounding_of(layer: PyTree) -> PyTree:
    """The largest difference that counts as a rounding of this layer's numbers."""
    arrays = [x for x in jax.tree.leaves(layer) if eqx.is_inexact_array(x) and x.size]
    # A decomposition is accurate to some hundred roundings, less than the square root allows.
    sizes = [float(jnp.finfo(x.dtype).eps) ** 0.5 * jnp.max(jnp.abs(x)) for x in arrays]
    return jnp.max(jnp.stack([size.astype(float) for size in sizes])) if sizes else 0.0


def _size_problem(moving: tuple[str, ...], growths: Mapping[str, Any]) -> str | None:
    """The problem of a field that is divided by its norm: the parameter only decides its sign."""
    if not (bounded := [field for field in moving if float(growths[field]) < 1e-3]):
        return None
    return (
        f"has the same update for {', '.join(bounded)} of every size, so that only the sign of the "
        "parameter's distance from the source would matter. Choose another method"
    )


def _problem(
    distance: float, exact: bool, moving: tuple[str, ...], trained: tuple[str, ...], rounding: float
) -> str | None:
    if not moving:
        return f"has no trained field that changes the layer by itself ({', '.join(trained)})"
    if not distance <= rounding:  # NaN included
        return (
            f"does not start as the plain layer: a number differs by {distance:.2g}. Its values "
            "have been trained or loaded: make new adapters, or merge these first (net.merge())"
        )
    if exact and distance != 0:
        return (
            f"starts with a rounding: a number differs by {distance:.2g} from the plain layer, as "
            "this method's start does (PiSSA), or a short training. Accept it by `exact=False`"
        )
    return None
