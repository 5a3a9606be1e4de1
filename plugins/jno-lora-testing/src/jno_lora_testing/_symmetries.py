"""Symmetries of a layer: how its output transforms with its inputs; common symmetries."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, PyTree

from jno.lora.extending import imported_for

# The positional inputs of one call of a layer, and a function that calls a layer with them.
Inputs: TypeAlias = tuple[PyTree, ...]
Call: TypeAlias = Callable[..., PyTree]


@dataclasses.dataclass(frozen=True, eq=False)
class Symmetry:
    """A group that acts on the inputs of a layer and on its output.

    A layer has the symmetry if `layer(*on_inputs(g, *inputs))` is `on_output(g, layer(*inputs))`
    for each element `g` of the group.

    **Arguments:**

    - `draw`: draws an element from a key: a number, a matrix, or any other value. Messages show
        `str(element)`.
    - `on_inputs`: called with an element and the positional inputs of one call. Returns the tuple
        of moved inputs, with their shapes and dtypes.
    - `on_output`: called with an element and the output. Returns the moved output.
    - `name`: the name in messages and in `WrapperCase.breaks`.
    """

    draw: Callable[[PRNGKeyArray], Any]
    on_inputs: Callable[..., Inputs]
    on_output: Callable[[Any, Any], Any]
    name: str

    def __str__(self) -> str:
        return self.name


def invariant(action: Symmetry, *, name: str = "") -> Symmetry:
    """The symmetry of a layer whose output stays the same when `action` moves its inputs.

    For example, a mean over the tokens has the symmetry `invariant(permutation(5))`.

    **Arguments:**

    - `action`: its `on_output` is not used.
    - `name`: by default "invariance under" and the name of the action.
    """
    return dataclasses.replace(
        action,
        on_output=lambda element, output: output,
        name=name or f"invariance under {action}",
    )


def cyclic_shift(
    axes: int | Sequence[int],
    output_axes: int | Sequence[int] | None = None,
    *,
    steps: tuple[int, int] = (1, 1),
    inputs: Collection[int] | None = None,
    name: str = "cyclic shift",
) -> Symmetry:
    """Cyclic shifts along `axes`: the symmetry of a convolution on a periodic grid.

    **Arguments:**

    - `axes`: the axes of the inputs. A convolution, with channels first, has its points on the axis
        -1, or on (-2, -1).
    - `output_axes`: the axes of the output, by default `axes`.
    - `steps`: when the inputs are shifted by the first number of points, the output is shifted by
        the second: (2, 1) for a stride of 2, (1, 2) for a transposed convolution of stride 2.
    - `inputs`: the positions of the inputs that are shifted, by default all.
    - `name`: the name in messages.
    """
    output_axes = axes if output_axes is None else output_axes

    def draw(key: PRNGKeyArray) -> tuple[int, ...]:
        return tuple(_random(key).integers(1, 8, np.size(axes)).tolist())

    def shifted(
        shift: tuple[int, ...], tree: PyTree, step: int, axes: int | Sequence[int]
    ) -> PyTree:
        return _on_leaves(lambda x: np.roll(x, [step * n for n in shift], axes), tree)

    on_inputs = functools.partial(shifted, step=steps[0], axes=axes)
    on_output = functools.partial(shifted, step=steps[1], axes=output_axes)
    return Symmetry(draw, _on_chosen(on_inputs, inputs), on_output, name)


def permutation(
    n: int,
    axis: int = 0,
    output_axis: int | None = None,
    *,
    inputs: Collection[int] | None = None,
    name: str = "permutation",
) -> Symmetry:
    """Permutations of the `n` entries along an axis: the symmetry of a layer on sets of points.

    **Arguments:**

    - `n`: the number of entries (points, particles, tokens).
    - `axis`: their axis in the inputs.
    - `output_axis`: their axis in the output, by default `axis`. If the output has no such axis,
        use `invariant(permutation(n))`.
    - `inputs`: the positions of the inputs that are permuted, by default all.
    - `name`: the name in messages.
    """
    output_axis = axis if output_axis is None else output_axis

    def draw(key: PRNGKeyArray) -> tuple[int, ...]:
        return tuple(_random(key).permutation(n).tolist())

    def permuted(order: tuple[int, ...], tree: PyTree, axis: int) -> PyTree:
        return _on_leaves(lambda x: np.take(x, order, axis), tree)

    on_inputs = functools.partial(permuted, axis=axis)
    on_output = functools.partial(permuted, axis=output_axis)
    return Symmetry(draw, _on_chosen(on_inputs, inputs), on_output, name)


@dataclasses.dataclass(frozen=True)
class _Rotation:
    """A rotation about a unit vector by an angle, then perhaps the inversion of space."""

    about: np.ndarray
    angle: float
    inverts: bool


def rotation(
    irreps_in: Any,
    irreps_out: Any,
    *,
    inversion: bool = True,
    inputs: Collection[int] | None = None,
    name: str = "rotation",
) -> Symmetry:
    """Rotations of space, with inversions: the symmetry of an O(3)-equivariant layer.

    Needs the package `e3nn-jax`. Inputs and outputs are `e3nn_jax.IrrepsArray`s or plain arrays,
    whose last axis has the irreps.

    **Arguments:**

    - `irreps_in`: the irreps of the inputs, such as `"4x0e + 2x1o"`; a tuple or list gives the
        irreps of each array of the rotated inputs. Positions are `"1o"`, numbers that do not
        rotate `"0e"` (times their number).
    - `irreps_out`: the irreps of the output; a tuple or list for each array of the output, such as
        `("0e", "1o")` for an energy of shape `(1,)` and forces.
    - `inversion`: whether half of the drawn elements also invert space. `False` for a layer that
        is equivariant to rotations only.
    - `inputs`: the positions of the inputs that are rotated, by default all. Leave out inputs such
        as atomic numbers.
    - `name`: the name in messages.

    **Raises:** `MissingLibraryError` without `e3nn-jax`.
    """
    with imported_for("rotation", "e3nn", "e3nn_jax"):
        import e3nn_jax  # noqa: F401  # takes seconds, and only cases with rotations need it

    def draw(key: PRNGKeyArray) -> _Rotation:
        random = _random(key)
        vector = random.normal(size=3)
        angle = float(random.uniform(0.5, np.pi))
        inverts = inversion and bool(random.integers(2))
        return _Rotation(vector / np.linalg.norm(vector), angle, inverts)

    on_inputs = functools.partial(_rotated, irreps=irreps_in)
    on_output = functools.partial(_rotated, irreps=irreps_out)
    return Symmetry(draw, _on_chosen(on_inputs, inputs), on_output, name)


def _rotated(element: _Rotation, tree: PyTree, irreps: Any) -> PyTree:
    """`tree` with each array rotated by its irreps."""
    import e3nn_jax

    # `Irreps` of e3nn are a subclass of tuple.
    is_several = type(irreps) in (tuple, list)
    every = [e3nn_jax.Irreps(x) for x in (irreps if is_several else [irreps])]
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) != len(every):
        raise ValueError(f"The rotation has irreps of {len(every)} arrays for {len(leaves)}.")
    moved = [
        _on_leaves(functools.partial(_by_irreps, x_irreps, element), leaf)
        for leaf, x_irreps in zip(leaves, every, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _by_irreps(irreps: Any, element: _Rotation, x: np.ndarray) -> np.ndarray:
    """`x` with the blocks of its last axis multiplied by the matrices of its irreps."""
    import e3nn_jax

    if x.ndim == 0 or x.shape[-1] != irreps.dim:
        raise ValueError(
            f"The irreps {irreps} have {irreps.dim} numbers, but the array has the shape {x.shape}."
        )
    blocks: list[np.ndarray] = []
    start = 0
    for multiplicity, irrep in irreps:
        block = x[..., start : start + multiplicity * irrep.dim]
        start += multiplicity * irrep.dim
        D = _rotation_matrix(
            element.angle * element.about, np.asarray(e3nn_jax.generators(irrep.l))
        )
        if element.inverts:
            D = irrep.p * D
        copies = block.reshape(*x.shape[:-1], multiplicity, irrep.dim)
        blocks.append((copies @ D.T).reshape(block.shape))
    return np.concatenate(blocks, axis=-1)


def _rotation_matrix(vector: np.ndarray, generators: np.ndarray) -> np.ndarray:
    """The exponential of `vector` times the generators, in float64 and without compilation."""
    frequencies, modes = np.linalg.eigh(1j * np.tensordot(vector, generators, 1))
    return np.real((modes * np.exp(-1j * frequencies)) @ modes.conj().T)


def _random(key: PRNGKeyArray) -> np.random.Generator:
    """A NumPy generator seeded by a key, because JAX would compile each draw."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _on_chosen(
    move: Callable[[Any, list[Any]], list[Any]], inputs: Collection[int] | None
) -> Callable[..., Inputs]:
    """A function of an element and all inputs that moves the inputs at these positions."""

    def on_inputs(element: Any, *arguments: Any) -> Inputs:
        chosen = sorted(range(len(arguments)) if inputs is None else {*inputs})
        moved = dict(zip(chosen, move(element, [arguments[i] for i in chosen]), strict=True))
        return tuple(moved.get(i, argument) for i, argument in enumerate(arguments))

    return on_inputs


def _on_leaves(action: Callable[[np.ndarray], np.ndarray], tree: PyTree) -> PyTree:
    """Apply `action` to the arrays of `tree` in NumPy, because JAX would compile each action."""
    return jax.tree.map(lambda x: jnp.asarray(action(np.asarray(x)), x.dtype), tree)
