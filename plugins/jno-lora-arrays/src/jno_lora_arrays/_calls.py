"""Operations that call a traced function: the same `Evaluation` evaluates it."""

from collections.abc import Callable
from typing import Any

import jax

from ._jax import counts_of_scan, custom_function, manual_axes
from ._views import Declined
from ._virtual import Virtual

_CARRIED = "carried by a loop, which may change it"


def _jit(evaluation: Any, eqn: Any, values: list[Any]) -> Any:
    with jax.named_scope(eqn.params["name"]):
        return evaluation.run(eqn.params["jaxpr"], values)


def _remat(evaluation: Any, eqn: Any, values: list[Any]) -> Any:
    params = eqn.params

    def run(*values: Any) -> list[Any]:
        return evaluation.run_dense(params["jaxpr"], values)

    return jax.checkpoint(run, policy=params["policy"], prevent_cse=params["prevent_cse"])(*values)


def _scan(evaluation: Any, eqn: Any, values: list[Any]) -> Any:
    params = eqn.params
    n, m = counts_of_scan(eqn)
    consts, xs = values[:n], values[n + m :]
    carry = [evaluation.merged(x, "scan", _CARRIED) for x in values[n : n + m]]
    # A virtual weight is scanned with its adapter.
    scanned = [x.scanned() if isinstance(x, Virtual) else None for x in xs]
    reason = "a scan over inputs or outputs"
    arrays = [
        evaluation.merged(x, "scan", reason) if pair is None else pair[0]
        for x, pair in zip(xs, scanned, strict=True)
    ]

    def body(carry: Any, arrays: Any) -> Any:
        slices = [
            x if pair is None else pair[1](x) for x, pair in zip(arrays, scanned, strict=True)
        ]
        results = evaluation.run_dense(params["jaxpr"], [*consts, *carry, *slices])
        return results[:m], results[m:]

    carry, ys = jax.lax.scan(
        body, carry, arrays, params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *ys]


def _cond(evaluation: Any, eqn: Any, values: list[Any]) -> Any:
    index, *operands = values
    # Functions for other platforms may not compile here.
    if eqn.params.get("branches_platforms") and not _is_watched(operands):
        return Declined("a function for each platform")

    def branch(traced: Any) -> Callable[[], list[Any]]:
        return lambda: evaluation.run_dense(traced, operands)

    index = evaluation.merged(index, "cond", "an index")
    return jax.lax.switch(index, list(map(branch, eqn.params["branches"])))


def _while(evaluation: Any, eqn: Any, values: list[Any]) -> Any:
    params = eqn.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    of_cond, of_body = values[:n], values[n : n + m]
    start = [evaluation.merged(x, "while", _CARRIED) for x in values[n + m :]]

    return jax.lax.while_loop(
        lambda state: evaluation.run_dense(params["cond_jaxpr"], [*of_cond, *state])[0],
        lambda state: evaluation.run_dense(params["body_jaxpr"], [*of_body, *state]),
        start,
    )


def _shard_map(evaluation: Any, eqn: Any, values: list[Any]) -> Any:
    params = eqn.params
    specs: list[Any] = []
    for place, (x, spec) in enumerate(zip(values, params["in_specs"], strict=True)):
        of_x = x.specs(spec) if isinstance(x, Virtual) else spec
        if of_x is None:
            reason = f"each device has a part, and the update of a {x.name} has no parts"
            values[place], of_x = evaluation.merged(x, "shard_map", reason), spec
        specs.append(of_x)

    mapped = jax.shard_map(
        lambda *values: tuple(evaluation.run_dense(params["jaxpr"], values)),
        mesh=params["mesh"],
        in_specs=tuple(specs),
        out_specs=tuple(params["out_specs"]),
        axis_names=manual_axes(eqn),
        check_vma=params["check_vma"],
    )
    return mapped(*values)


def _custom(evaluation: Any, eqn: Any, values: list[Any]) -> Any:
    """A function with a rule for its derivative, which may be another than the derivative.

    Its rule asks for the derivative by the whole weight, which is merged for it.
    """
    if _is_watched(values):
        return evaluation.run(custom_function(eqn), values)
    return Declined("a function with a rule of its own for derivatives")


def _is_watched(values: list[Any]) -> bool:
    """Whether the virtual weights only watch."""
    weights = [x for x in values if isinstance(x, Virtual)]
    return bool(weights) and all(weight.only_watches for weight in weights)


CALLS: dict[str, Callable[[Any, Any, list[Any]], Any]] = {
    **dict.fromkeys(("jit", "pjit"), _jit),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _remat),
    "scan": _scan,
    "cond": _cond,
    "while": _while,
    "shard_map": _shard_map,
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _custom),
}
