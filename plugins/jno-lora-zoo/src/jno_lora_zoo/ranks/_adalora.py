"""AdaLoRA's allocator moves rank between layers during training, by masks of fixed shape."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jno.lora import LoRAWrapper, MatrixAdapter
from jno.lora.extending import adapted_layers, at_least_float32, map_adapters, show_path, widest

T = TypeVar("T")


class AdaLoRAState(eqx.Module):
    """The state of an `AdaLoRAController`: a pytree of arrays, with an entry for each adapter.

    - `step`: the number of updates so far.
    - `sensitivity`, `uncertainty`: running averages by field: of each trained array's sensitivity,
        and of its deviation from that average.
    - `kept`: the directions that the last allocation kept.
    - `is_final`: whether the allocation was the final one.
    """

    step: Int[Array, ""]
    sensitivity: tuple[dict[str, Array], ...]
    uncertainty: tuple[dict[str, Array], ...]
    kept: tuple[Bool[Array, "..."], ...]
    is_final: Bool[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaLoRAController:
    """AdaLoRA's allocator removes the least important directions across all layers.

        controller = AdaLoRAController(target_rank=4, warmup=100, final=300, total=1000)
        state = controller.init(trainable)
        ...
        updates, opt_state = optimiser.update(grads, opt_state)
        trainable = eqx.apply_updates(trainable, updates)
        trainable, state = controller.update(trainable, grads, state)

    The importance of a trained number `w` with gradient `g` is the product of two running averages:
    of its sensitivity `|w g|`, and of the sensitivity's deviation from that average. The importance
    of a direction is the importance of its gate plus the mean importances of its row of `A` and its
    column of `B`. The budget, the number of directions in all layers together, falls along a cubic
    curve. Between two allocations all gates train, so directions can come back. From step
    `total - final` on, gates that are zero stay zero.

    It works on every adapter with a `rank_gate`, from any plugin, on stacks, and on layers with
    several matrices, each with its own gate. No shape depends on a value, so `jit` does not
    recompile. At the end, `jno_lora_combine.shrink` makes the model smaller.

    **Arguments:**

    - `target_rank`: the mean final rank per layer. Each layer of a stack counts, and each matrix of
        a layer with several matrices.
    - `warmup`: the steps before the budget begins to fall.
    - `final`: the number of last steps, in which the directions are fixed; at least 1.
    - `total`: the number of all steps.
    - `every`: the steps between two allocations.
    - `beta1`, `beta2`: the smoothing of the sensitivity, and of its uncertainty.

    **Raises:** `ValueError` for numbers out of range.

    Paper: Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
    arXiv:2303.10512.
    """

    target_rank: float
    warmup: int
    final: int
    total: int
    every: int = 10
    beta1: float = 0.85
    beta2: float = 0.85

    def __post_init__(self) -> None:
        if not self.target_rank > 0:
            raise ValueError(f"`target_rank` must be more than 0, but is {self.target_rank}")
        if not (self.warmup >= 0 and self.final >= 1 and self.warmup + self.final < self.total):
            raise ValueError(
                "`warmup` and `final` (at least 1) must leave steps of `total` between them, but "
                f"are {self.warmup} and {self.final} of {self.total}"
            )
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, but is {self.every}")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in (0, 1), but is {getattr(self, name)}")

    def init(self, model: PyTree) -> AdaLoRAState:
        """The state before the first step, for the trainable arrays or the whole model.

        **Raises:** `ValueError` if no adapter has a `rank_gate`, or if all adapters together have
        less rank than `target_rank` asks for.
        """
        members = _members(model, model)
        directions, budget = self._first_and_last_budget(members)
        if not members:
            raise ValueError(
                "No adapter of this model has a `rank_gate` that trains, so that no rank can move. "
                'AdaLoRA adapters have a gate: net.lora(wrapper="adalora")'
            )
        if budget > directions:
            raise ValueError(
                f"`target_rank` {self.target_rank} asks for {budget} directions, but the adapters "
                f"have {directions} in all. Start with a larger `rank`."
            )

        numbers = tuple(member.sensitivity() for member in members)
        # Separate buffers, so that all can be donated.
        zeros, more_zeros = (jax.tree.map(jnp.zeros_like, numbers) for _ in range(2))
        masks = tuple(jnp.ones(member.gate.shape, bool) for member in members)
        return AdaLoRAState(jnp.asarray(0, jnp.int32), zeros, more_zeros, masks, jnp.asarray(False))

    def update(
        self, model: T, grads: PyTree, state: AdaLoRAState, step: Int[Array, ""] | int | None = None
    ) -> tuple[T, AdaLoRAState]:
        """`model` with the gates of unimportant directions set to zero, and the next state.

        **Arguments:**

        - `model`: the tree that `init` saw, after the optimiser's step.
        - `grads`: the gradients of that step, in the structure of `model`, with `None` for arrays
            that do not train.
        - `step`: the number of the step, starting at 0. By default the state counts the steps.

        **Raises:** `ValueError` if the adapters with gradients are not the adapters of `init`.
        """
        step = state.step if step is None else jnp.asarray(step, jnp.int32)
        members = _members(model, grads)
        fields = {show_path(member.path): [*member.fields] for member in members}
        if [*map(set, fields.values())] != [*map(set, state.sensitivity)]:
            raise ValueError(
                f"The state is for {len(state.kept)} adapters, but there are gradients for "
                f"{fields}. Give `update` the tree that `init` saw, and the gradients of all its "
                "trained arrays."
            )
        now = tuple(member.sensitivity() for member in members)
        sensitivity = _smoothed(self.beta1, state.sensitivity, now)
        distance = jax.tree.map(lambda x, mean: jnp.abs(x - mean), now, sensitivity)
        uncertainty = _smoothed(self.beta2, state.uncertainty, distance)
        scores = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
        importance = list(map(_Member.of_directions, members, scores))

        last = self.total - self.final
        is_last = (step >= last) & ~state.is_final
        is_due = is_last | ((self.warmup < step) & (step < last) & (step % self.every == 0))
        is_final = state.is_final | is_last
        budget = self.budget(step, *self._first_and_last_budget(members))
        masks = zip(_largest(importance, budget), state.kept, strict=True)
        masks = tuple(jnp.where(is_due, new, old) for new, old in masks)
        # Between two allocations all directions train, even those that were switched off.
        open_gates = iter([mask | ~(is_due | is_final) for mask in masks])

        def gated(path: str, adapter: Any, adapter_grads: Any, _: Any) -> Any:
            gates = {
                member.matrix: jnp.where(next(open_gates), member.gate, 0)
                for member in _members_of(path, adapter, adapter_grads)
            }
            if not gates:
                return adapter
            name: Any = MatrixAdapter.of(type(adapter)).rank_gate
            old = getattr(adapter, name)
            new = {**old, **gates} if isinstance(old, Mapping) else gates[""]
            return eqx.tree_at(lambda node: getattr(node, name), adapter, new)

        gated_model = map_adapters(gated, model, grads, model)
        return gated_model, AdaLoRAState(step + 1, sensitivity, uncertainty, masks, is_final)

    def budget(self, step: Int[Array, ""] | int, initial: int, target: int) -> Int[Array, ""]:
        """The number of directions after this step: a cubic curve from `initial` to `target`."""
        between = self.total - self.final - self.warmup
        left = 1 - (jnp.asarray(step, jnp.float32) - self.warmup) / between
        return target + jnp.round((initial - target) * jnp.clip(left, 0, 1) ** 3).astype(jnp.int32)

    def _first_and_last_budget(self, members: "list[_Member]") -> tuple[int, int]:
        layers = sum(member.gate.size // member.gate.shape[-1] for member in members)
        return sum(member.gate.size for member in members), round(self.target_rank * layers)


class _Member(NamedTuple):
    """An adapter with a gate: its trained arrays by field, the gate first, and their gradients.

    - `matrix`: the name of the matrix that the arrays are for, in a layer with several; else empty.
    """

    path: str
    matrix: str
    cls: type[MatrixAdapter]
    fields: dict[str, Array]
    grads: dict[str, Array]

    @property
    def gate(self) -> Float[Array, "*stack r"]:
        return next(iter(self.fields.values()))

    def sensitivity(self) -> dict[str, Array]:
        """`|w g|` for every number, in at least float32."""
        wide = at_least_float32((self.fields, self.grads))
        return jax.tree.map(lambda w, g: jnp.abs(w * g), *wide)

    def of_directions(self, scores: dict[str, Array]) -> Float[Array, "*stack r"]:
        """The importance of each direction, from the importance of each number."""
        stack = self.gate.ndim - 1
        total = jnp.zeros_like(scores[next(iter(self.fields))])
        for name in self.fields:
            score = jnp.moveaxis(scores[name], stack + self.cls.rank_axes.get(name, 0), stack)
            total = total + score.mean(axis=range(stack + 1, score.ndim))
        return total


def _members(model: PyTree, grads: PyTree) -> list[_Member]:
    return [member for layer in adapted_layers(model, grads) for member in _members_of(*layer)]


def _members_of(path: str, adapter: LoRAWrapper, grads: Any) -> list[_Member]:
    """The trained arrays of each matrix of the adapter; nothing if the matrix's gate is frozen."""
    cls = MatrixAdapter.of(type(adapter))
    names = [name for name in (cls.rank_gate, *cls.rank_axes) if name is not None]
    values = {name: _by_matrix(getattr(adapter, name, None)) for name in names}
    gradients = {name: _by_matrix(getattr(grads, name, None)) for name in names}
    members: list[_Member] = []
    for matrix in sorted(gradients.get(cls.rank_gate or "", ())):
        trained = [n for n in names if eqx.is_inexact_array(gradients[n].get(matrix))]
        if trained[:1] == [cls.rank_gate]:
            fields, grads_of = ({n: v[n][matrix] for n in trained} for v in (values, gradients))
            at = f"{path}/{matrix}" if matrix else path
            members.append(_Member(at, matrix, cls, fields, grads_of))
    return members


def _by_matrix(value: Any) -> dict[str, Any]:
    """The arrays of a field by the name of their matrix; a single array has no name."""
    return dict(value) if isinstance(value, Mapping) else {"": value}


def _smoothed(beta: float, mean: T, now: T) -> T:
    return jax.tree.map(lambda old, new: beta * old + (1 - beta) * new, mean, now)


def _largest(scores: Sequence[Array], number: Int[Array, ""]) -> list[Bool[Array, "..."]]:
    """Masks of the largest scores across all arrays. Of equal scores, the first are chosen."""
    dtype = widest(score.dtype for score in scores)
    every = jnp.concatenate([score.ravel().astype(dtype) for score in scores])
    place = jnp.argsort(jnp.argsort(-every))
    masks = jnp.split(place < number, np.cumsum([score.size for score in scores])[:-1])
    return [mask.reshape(score.shape) for mask, score in zip(masks, scores, strict=True)]
