"""Settings for a call of a model: the task, and the axes of the tokens."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from jno.lora import LoRAWrapper, SelectionError
from jno.lora.extending import expect_model, map_adapters
from jno_lora_zoo import with_attributes

from ._routed import Routed
from .routers import Router, Softmax, Tasks

M = TypeVar("M")
R = TypeVar("R", bound=Router)


def with_task(model: M, task: ArrayLike) -> M:
    """`model`, with its Poly adapters set to a task.

    For a batch of mixed tasks: `jax.vmap(lambda t, x: with_task(model, t)(x))(tasks, xs)`.

    **Arguments:** `task`: an integer, which may be traced. If a traced task does not exist, the
    output is NaN.

    **Raises:** `SelectionError` if no adapter has tasks, or for a task that does not exist.
    """
    if jnp.ndim(task) != 0 or not jnp.issubdtype(jnp.result_type(task), jnp.integer):
        raise SelectionError(f"`task` must be an integer, but is {task!r}. For a batch, use vmap.")

    def choose(path: str, router: Tasks) -> Tasks:
        tasks = router.logits.shape[-2]
        if not isinstance(task, Tracer) and not 0 <= int(np.asarray(task)) < tasks:
            raise SelectionError(f"{path} has {tasks} tasks, so there is no task {task}")
        chosen = jnp.broadcast_to(jnp.asarray(task, jnp.int32), jnp.shape(router.task))
        return eqx.tree_at(lambda r: r.task, router, chosen)

    return on_routers(
        "with_task", choose, model, Tasks, "The model has no Poly adapters, which have tasks."
    )


def average_over(model: M, *axes: str) -> M:
    """`model`, with gates that average their weights over named axes of `jax.vmap`.

    The authors of Lily average over all tokens of a batch. The model must then be called inside a
    `jax.vmap(..., axis_name=...)` for each of the names. Without names, each token has its own
    weights. Files and sets do not contain this setting.

    **Raises:** `SelectionError` if no adapter has a gate.
    """

    def name(_: str, router: Softmax) -> Softmax:
        return with_attributes(router, {"axes": axes})

    return on_routers(
        "average_over", name, model, Softmax, "The model has no adapters with a gate to average."
    )


def on_routers(
    caller: str, function: Callable[[str, R], R], model: M, kind: type[R], refusal: str
) -> M:
    """`model` with `function(path, router)` in the place of each router of this kind.

    **Raises:** `SelectionError` with the text `refusal` if no adapter has such a router; for a
    `Net` or a set.
    """
    expect_model(model, caller)
    changed: list[str] = []

    def change(path: str, adapter: LoRAWrapper) -> LoRAWrapper:
        if not isinstance(adapter, Routed):
            return adapter
        router = adapter.routing
        if not isinstance(router, kind):
            return adapter
        changed.append(path)
        return adapter.with_routing(function(path, router))

    model = map_adapters(change, model)
    if not changed:
        raise SelectionError(refusal)
    return model
