"""`Conditional`: an adapted model that is a function of a parameter."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PyTree

from jno.lora import (
    LoRAWrapper,
    MatrixAdapter,
    Net,
    SelectionError,
    lora_trainable_filter,
    merge_lora,
)
from jno.lora.extending import adapted_layers, compute_dtype, map_adapters, members_of, over_stack

from ._bases import Basis
from ._film import Film, film_of, modulate
from ._moving import moving_fields, starting_at_zero, with_fields
from ._summary import ConditionalReport, described, report_on


class Conditional(eqx.Module):
    """An adapted model whose adapters are functions of a parameter `z`. A pytree.

    A field of an adapter *moves* if changing it alone changes the layer:
    `field(z) = start + sum_k phi_k(z) d_k`, with trained directions `d_k` that start as zero. The
    remaining trained fields are the same for all `z`. With LoRA, `B` moves; with AdaLoRA, the gate:
    `W + s B diag(phi(z) d) A`. At the source, where `phi` is zero, the model is the pretrained
    model, whatever has been trained.

    At the source, a merged model is the pretrained model bit for bit. So is a called model, except
    with DoRA, which divides by a norm when it is called (a rounding of 1e-6 of the output). PiSSA,
    MiLoRA, OLoRA, CorDA, LoRA-GA, LoRA-One and LoRA-Null start with a rounding in most layers
    (`exact=False`). VB-LoRA and Tied-LoRA are refused, because they train arrays that layers share.

    ```python
    net = Net(model).freeze().lora(rank=4)
    conditional = Conditional(net, Powers(source=0.1, unit=0.06))
    trainable, frozen = conditional.partition()
    ...                                      # train: at(eqx.combine(trainable, frozen), nu)(x)
    conditional = conditional.update(trainable)
    model = at(conditional, 0.07)            # an adapted model
    ```

    **Arguments:**

    - `net`: a `Net` with adapters that have not been trained, in which only the adapters train.
    - `basis`: `Powers`, `Network`, `Indexed`, `Function`, or your own `Basis`.
    - `moving`: for adapters that cannot be merged (bottlenecks), the fields that move, by the name
        of the class.
    - `exact`: whether the start must be the pretrained model bit for bit, which is checked by
        merging each layer. Some methods (PiSSA) start with a rounding.
    - `film`: whether the outputs of the adapted layers also get a scale and a shift that are
        functions of the parameter (FiLM): `W' = (1 + phi gamma)(W + s B A)` and
        `b' = (1 + phi gamma) b + phi beta`, row by row, with trained `gamma` and `beta` that start
        as zero. A layer without a bias gets only the scale. Layers with several matrices
        (attention, recurrent cells of other packages) and bottlenecks get neither.

    **Raises:** `SelectionError`, with paths, if the net has no adapters, if other arrays train, if
    an adapter cannot be used, if its start is not the pretrained layer, or if no layer can take
    `film`.

    Paper: Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer",
    arXiv:1709.07871, for `film`.
    """

    model: PyTree  # the adapted model at the source
    # By the path of a layer and the name of a field, the field with an axis `K` in front.
    directions: dict[str, dict[str, Any]]
    film: dict[str, Film]  # by the path of a layer
    basis: Basis
    # By path, the moving fields that start as zero. Found once, because that needs their values.
    from_zero: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True)

    def __init__(
        self,
        net: Net,
        basis: Basis,
        *,
        moving: Mapping[str, Sequence[str]] = MappingProxyType({}),
        exact: bool = True,
        film: bool = False,
    ):
        net = copy.copy(net)  # a copy is not affected by `net.disabled()`
        plain = _checked(net)
        moving = moving_fields(net.module, plain, moving, exact)
        size = size_of(basis)

        def directions(value: Any) -> Any:
            return jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), value)

        self.model, self.basis = net.module, basis
        self.directions = {
            path: {name: directions(getattr(adapter, name)) for name in moving[path]}
            for path, adapter in adapted_layers(net.module)
        }
        self.film = film_of(net.module, size) if film else {}
        self.from_zero = starting_at_zero(net.module, moving)

    @property
    def trainable(self) -> PyTree[bool]:
        """Bools in the structure of this pytree: `True` for the arrays that train.

        These are the directions, the scales and shifts of `film`, the fields that all `z` share,
        and floating arrays of the basis.
        """
        model = lora_trainable_filter(self.model)

        def without_moving(path: str, mask: Any) -> Any:
            start = {name: getattr(mask, name) for name in self.directions[path]}
            return with_fields(mask, jax.tree.map(lambda _: False, start))

        mask = jax.tree.map(lambda _: True, self)
        basis = jax.tree.map(eqx.is_inexact_array, self.basis)
        model = map_adapters(without_moving, model)
        return eqx.tree_at(lambda c: (c.model, c.basis), mask, (model, basis))

    def partition(self) -> tuple["Conditional", "Conditional"]:
        """Split into `(trainable, frozen)`, which `eqx.combine` joins again."""
        return eqx.partition(self, self.trainable)

    def update(self, trainable: "Conditional") -> "Conditional":
        """This conditional with trained arrays.

        **Arguments:** `trainable`: the first tree that `partition` returned, with new values.

        **Raises:** `SelectionError` for any other tree.
        """
        expected, frozen = self.partition()
        if _forms(expected) != _forms(trainable):
            raise SelectionError(
                "The update does not fit this conditional. Give the first of the two trees that "
                "`conditional.partition()` returned, with new values."
            )
        return eqx.combine(trainable, frozen)

    def summary(self) -> ConditionalReport:
        """The adapted layers: moving fields, shared fields and the number of trained parameters.

        Prints as a table. The percentage is of the whole model with its adapters, as in
        `Net.summary`.
        """
        return report_on(self, self.trainable)

    def __repr__(self) -> str:
        return f"Conditional({type(self.model).__name__}, {described(self.directions, self.basis)})"

    def __call__(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        """The output of the model at `z`: `Net(at(self, z))(*args, **kwargs)`."""
        return Net(at(self, z))(*args, **kwargs)


def at(conditional: Conditional, z: Any) -> Any:
    """The adapted model at the parameter `z`.

    It may be compiled, mapped over `z`, and differentiated in `z`. For a value per example, use
    `jax.vmap(lambda z, x: at(conditional, z)(x))(zs, xs)`. If `z` is traced, adapters with
    `with_directions` do not copy fields for each example, but each call costs a product for each
    direction, so a loop over a few contexts is cheaper in Python than as a `lax.scan`. The
    structure differs from the model at a `z` with a value, so do not put both in one container.

    **Raises:** `SelectionError` if the shape of `z` does not fit the basis.
    """
    from_zero = dict(conditional.from_zero)
    is_known = not any(isinstance(x, Tracer) for x in jax.tree.leaves((conditional.basis, z)))
    # A known `z` gives values even in a compiled step, so that the directions are summed.
    with jax.ensure_compile_time_eval() if is_known else contextlib.nullcontext():
        phi = conditional.basis(z)

    def moved(path: str, adapter: LoRAWrapper) -> LoRAWrapper:
        directions = conditional.directions[path]
        adapter = _moved(*_apart(adapter, directions, from_zero[path], phi), phi)
        film = conditional.film.get(path)
        return adapter if film is None else modulate(adapter, film, phi)

    return map_adapters(moved, conditional.model)


def merge(conditional: Conditional, z: Any) -> Any:
    """The plain model at the parameter `z`, with every adapter folded into its layer.

    **Raises:** as `at` and `jno.lora.merge_lora`.
    """
    return merge_lora(at(conditional, z))


def _apart(
    adapter: Any, directions: Mapping[str, Any], from_zero: tuple[str, ...], phi: Float[Array, " K"]
) -> tuple[Any, Mapping[str, Any]]:
    """The adapter, with directions and weights apart if possible, and the remaining directions.

    Apart, each example can have its own parameter.

    - `directions`: by field, with the axis `K` in front of the axes of a stack.
    - `from_zero`: the fields that start as zero.
    """
    # Weights with values are not mapped over. The sums are cheapest then, and train as usual.
    if not from_zero or not isinstance(phi, Tracer):
        return adapter, directions
    cls = MatrixAdapter.of(type(adapter))
    ndim = cls.stack_ndim(adapter.base)

    def of_layer(layer: Any, given: Any) -> Any:
        return cls.with_directions(layer, given, phi)

    fields = {name: directions[name] for name in from_zero}
    behind_the_stack = jax.tree.map(lambda d: jnp.moveaxis(d, 0, ndim), fields)
    weighted = over_stack(of_layer, ndim)(adapter, behind_the_stack)
    if weighted is None:
        return adapter, directions
    return weighted, {name: d for name, d in directions.items() if name not in from_zero}


def _moved(adapter: Any, directions: Mapping[str, Any], phi: Float[Array, " K"]) -> Any:
    def field(start: Array, d: Array) -> Array:
        wide = compute_dtype(start)
        step = jnp.tensordot(phi.astype(wide), d.astype(wide), axes=1)
        return (start.astype(wide) + step).astype(start.dtype)

    starts = {name: getattr(adapter, name) for name in directions}
    return with_fields(adapter, jax.tree.map(field, starts, dict(directions)))


def size_of(basis: Basis) -> int:
    """`K`. **Raises:** `SelectionError` unless the basis gives a floating array `(K,)`."""
    phi = jax.eval_shape(basis, jnp.zeros(np.shape(basis.source)))
    if phi.ndim != 1 or not phi.size or not jnp.issubdtype(phi.dtype, jnp.floating):
        raise SelectionError(
            f"The basis {type(basis).__name__} must give a floating array (K,), but gives "
            f"{phi.dtype}{list(phi.shape)}"
        )
    return phi.shape[0]


def _checked(net: Net) -> PyTree:
    """The model of the net without adapters.

    **Raises:** `SelectionError` if the net cannot become a conditional.
    """
    if not isinstance(net, Net):
        raise SelectionError(
            f"`Conditional` takes a `Net`, but got a {type(net).__name__}: Conditional(Net(model)"
            ".freeze().lora(rank=4), basis)."
        )
    try:
        plain = copy.copy(net).unwrap().module
    except SelectionError as err:  # a mask is pending
        raise SelectionError(f"This net cannot become a conditional yet: {err}") from err
    if not any(True for _ in adapted_layers(net.module)):
        raise SelectionError("The net has no adapters. Call net.freeze().lora(...) first.")
    if any(members_of(type(adapter)) for _, adapter in adapted_layers(net.module)):
        raise SelectionError(
            "A sum of several adapters cannot become a conditional, because its frozen adapters "
            "would change the model at the source. Call net.merge(), and adapt the merged model."
        )
    if jax.tree.leaves(net.trainable) != jax.tree.leaves(lora_trainable_filter(net.module)):
        raise SelectionError(
            "A conditional trains the adapters, and nothing else: other arrays would change the "
            "model at the source. Call net.train_adapters()."
        )
    return plain


def _forms(tree: PyTree) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [
        (leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else type(leaf) for leaf in leaves
    ]
