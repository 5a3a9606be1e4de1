"""The checks of one case: a model and a variant. Each says what is wrong, or nothing."""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jno.lora import LoRAWrapper, Net, apply_lora, merge_lora, unwrap_lora
from jno.lora._paths import path_str
from jno_lora_testing._case import perturbed

from ._trial import Trial, apart

RANK, ALPHA = 2, 4.0
STEPS = 10


class Adapted(NamedTuple):
    """A model with adapters at random values, and what came of it."""

    wrappers: str | None
    net: Net  # as initialised
    trainable: PyTree
    frozen: PyTree
    outputs: list[Array]
    gradient: PyTree
    merged: Any
    merged_outputs: list[Array]
    merged_gradient: PyTree
    tolerance: list[float]  # of the outputs


def adapt(trial: Trial, wrappers: str | None) -> Adapted:
    """The trial's model with adapters, as a user who trains the adapters only would have it."""
    net = Net(trial.model)
    net.freeze().lora(RANK, ALPHA, wrapper=wrappers)
    # Small enough that ten layers of it do not blow up, large enough to be seen.
    module = perturbed(net.module, 0.1)
    trainable, frozen = eqx.partition(module, net.trainable)
    _, outputs, gradient, merged = trial.adapted(trainable, frozen)
    _, merged_outputs, merged_gradient = trial.plain(merged)
    return Adapted(
        wrappers,
        net,
        trainable,
        frozen,
        outputs,
        gradient,
        merged,
        merged_outputs,
        merged_gradient,
        trial.rounding(merged, merged_outputs),
    )


def problems(checks: dict[str, Any], trial: Trial, case: Adapted) -> Iterator[str]:
    """What the checks, by name, find wrong, or how they fail."""
    for name, check in checks.items():
        try:
            yield from (f"{name}: {problem}" for problem in check(trial, case))
        except Exception as err:
            yield f"{name}: {type(err).__name__}: {err}"


def _identity(trial: Trial, case: Adapted) -> Iterator[str]:
    outputs = trial.adapted(*case.net.partition())[1]
    off = apart(outputs, trial.outputs, trial.tolerance)
    if off:
        yield off


def _merge(trial: Trial, case: Adapted) -> Iterator[str]:
    off = apart(case.outputs, case.merged_outputs, case.tolerance)
    if off:
        yield off
    if not apart(case.outputs, trial.outputs, [10 * allowed for allowed in case.tolerance]):
        yield "the output is that of the plain model, whatever the adapters hold"
    for path, wrapper, base, merged in _layers(case.net.module, trial.model, case.merged):
        if not _changed(base, merged) and not _inert(wrapper):
            yield f"{path}: the merged layer is the plain one, whatever the adapter holds"


def _form(trial: Trial, case: Adapted) -> Iterator[str]:
    yield from _apart(trial.model, case.merged)


def _apart(plain: PyTree, restored: PyTree) -> Iterator[str]:
    before, after = jtu.tree_flatten_with_path(plain), jtu.tree_flatten_with_path(restored)
    if before[1] != after[1]:
        yield "another structure"
        return
    for (path, old), (_, new) in zip(before[0], after[0], strict=True):
        if eqx.is_array(old):
            if (old.shape, old.dtype) != (jnp.shape(new), jnp.result_type(new)):
                yield f"{path_str(path)}: {old.dtype}{old.shape} became {new.dtype}{new.shape}"
        elif old is not new and old != new:
            yield f"{path_str(path)}: {old!r} became {new!r}"


def _unwrap(trial: Trial, case: Adapted) -> Iterator[str]:
    plain = unwrap_lora(eqx.combine(case.trainable, case.frozen))
    yield from _apart(trial.model, plain)
    for path, wrapper, base, restored in _layers(case.net.module, trial.model, plain):
        for old, new in zip(jax.tree.leaves(base), jax.tree.leaves(restored), strict=True):
            if not eqx.is_inexact_array(old):
                continue
            # PiSSA and MiLoRA rebuild the weight from its two parts.
            rebuilt = hasattr(wrapper, "initial_A")
            allowed = 1e-5 * np.abs(old).max() if rebuilt else 0.0
            if np.abs(np.asarray(old) - np.asarray(new)).max() > allowed:
                yield f"{path}: the weight is not the original one"


def _gradient(trial: Trial, case: Adapted) -> Iterator[str]:
    """Finite; what the chain rule says; and not zero where the weight's gradient is not.

    By the chain rule the gradient of an adapter is that of the merged weight, pulled back through
    `merge`: if part of the model saw the adapter only in its forward pass, the two would differ.
    """
    weights = case.merged_gradient
    expected = _pull_back(case.trainable, case.frozen, weights)
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(weights))
    for path, wrapper, base, merged, weight, got, want in _layers(
        case.net.module, trial.model, case.merged, weights, case.gradient, expected
    ):
        got, want = (np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (got, want))
        if not np.isfinite(got).all():
            yield f"{path}: not finite"
            continue
        of_weight = max((np.linalg.norm(g) for g in _of_changed(base, merged, weight)), default=0.0)
        # Relative to the adapter's gradient, or to the weight's where the adapter's is small
        # because its terms cancel.
        allowed = 1e-3 * np.abs(want).max() + 1e-4 * of_weight + 1e-6 * largest
        if not np.abs(got - want).max() <= allowed:
            yield f"{path}: off by {np.abs(got - want).max():.1e} (allowed {allowed:.1e})"
        if of_weight > 1e-6 * largest and not got.any() and not _inert(wrapper):
            yield f"{path}: zero, though that of the weight is not"


def _eager(trial: Trial, case: Adapted) -> Iterator[str]:
    outputs = trial.spec.outputs(eqx.combine(case.trainable, case.frozen), trial.inputs)
    off = apart(outputs, case.outputs, case.tolerance)
    if off:
        yield off


def _training(trial: Trial, case: Adapted) -> Iterator[str]:
    optimiser = optax.adam(3e-3)

    @jax.jit
    def step(gradient: PyTree, state: Any, trainable: PyTree) -> Any:
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(trainable, updates), state

    trainable, frozen = case.net.partition()
    before = jax.tree.map(np.array, eqx.filter(frozen, eqx.is_array))
    first, _, gradient, _ = trial.adapted(trainable, frozen)
    state = optimiser.init(trainable)
    loss = first
    for _ in range(STEPS):
        trainable, state = step(gradient, state, trainable)
        loss, _, gradient, _ = trial.adapted(trainable, frozen)
    if not loss < first:
        yield f"{STEPS} steps took the loss from {first:.6g} to {loss:.6g}"
    case.net.update(trainable)
    after = eqx.filter(case.net.partition()[1], eqx.is_array)
    if not eqx.tree_equal(jax.tree.map(jnp.asarray, before), jax.tree.map(jnp.asarray, after)):
        yield "a frozen leaf was touched"


def _saved_and_loaded(trial: Trial, case: Adapted) -> Iterator[str]:
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, eqx.combine(case.trainable, case.frozen))
    file.seek(0)
    other = apply_lora(trial.model, RANK, ALPHA, key=jax.random.key(99), wrapper=case.wrappers)
    loaded = eqx.tree_deserialise_leaves(file, other)
    outputs = trial.adapted(*eqx.partition(loaded, case.net.trainable))[1]
    off = apart(outputs, case.outputs, [0.0] * len(outputs))
    if off:
        yield off


CHECKS = {
    "identity at init": _identity,
    "merge": _merge,
    "form": _form,
    "unwrap": _unwrap,
    "gradient": _gradient,
}
# Of the default and of "auto" only, because they take longer.
FURTHER_CHECKS = {"eager": _eager, "training": _training, "saved and loaded": _saved_and_loaded}


def _inert(wrapper: LoRAWrapper) -> bool:
    """Whether the method can do nothing to this layer: OFT to a single output.

    A rotation in one dimension is the identity, so the weight stays and the gradient is zero.
    """
    return wrapper.variant == "oft" and wrapper.rank == 1


def _is_wrapper(node: Any) -> bool:
    return isinstance(node, LoRAWrapper)


def _layers(adapted: PyTree, *others: PyTree) -> Iterator[tuple[Any, ...]]:
    """Path and adapter of each adapted layer, with what the other trees have in its place."""
    leaves, treedef = jtu.tree_flatten_with_path(adapted, is_leaf=_is_wrapper)
    beside = zip(*(treedef.flatten_up_to(other) for other in others), strict=True)
    for (path, node), rest in zip(leaves, beside, strict=True):
        if _is_wrapper(node):
            yield path_str(path), node, *rest


def _changed(base: PyTree, merged: PyTree) -> bool:
    return bool(_of_changed(base, merged, eqx.filter(merged, eqx.is_inexact_array)))


def _of_changed(base: PyTree, merged: PyTree, weights: PyTree) -> list[Any]:
    """The gradients of those arrays of a layer that its adapter changes."""
    arrays = (eqx.filter(tree, eqx.is_inexact_array) for tree in (base, merged))
    return [
        np.asarray(gradient)
        for old, new, gradient in zip(*map(jax.tree.leaves, (*arrays, weights)), strict=True)
        if not np.array_equal(old, new)
    ]


@eqx.filter_jit
def _pull_back(trainable: PyTree, frozen: PyTree, weights: PyTree) -> PyTree:
    def merge(trainable: PyTree) -> PyTree:
        return eqx.filter(merge_lora(eqx.combine(trainable, frozen)), eqx.is_inexact_array)

    return eqx.filter_vjp(merge, trainable)[1](weights)[0]
