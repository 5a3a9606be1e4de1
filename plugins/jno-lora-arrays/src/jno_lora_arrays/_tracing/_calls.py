"""Operations that call a traced function, which the same `Evaluation` evaluates."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend.core import JaxprEqn
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from .._views import DeclinedError, Value, Virtual
from ._jax import counts_of_scan, manual_axes

Evaluation: TypeAlias = Any  # in `_evaluate.py`, which imports this file
_CARRIED = "carried by a loop, which may change it"


def _jit(evaluation: Evaluation, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value]:
    with jax.named_scope(eqn.params["name"]):
        return evaluation.run(eqn.params["jaxpr"], values)


def _remat(evaluation: Evaluation, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value]:
    run = functools.partial(evaluation.run_dense, eqn.params["jaxpr"])
    options = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(run, **options)(values)


def _scan(evaluation: Evaluation, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value]:
    params = eqn.params
    n, m = counts_of_scan(eqn)
    consts, xs = values[:n], values[n + m :]
    carry = [evaluation.merged(x, "scan", _CARRIED) for x in values[n : n + m]]
    scanned = [_scanned(evaluation, x) for x in xs]

    def body(carry: list[Array], arrays: PyTree) -> tuple[list[Array], list[Array]]:
        slices = [slice_of(x) for (_, slice_of), x in zip(scanned, arrays, strict=True)]
        results = evaluation.run_dense(params["jaxpr"], [*consts, *carry, *slices])
        return results[:m], results[m:]

    arrays = [arrays for arrays, _ in scanned]
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = jax.lax.scan(body, carry, arrays, **options)
    return [*carry, *ys]


def _scanned(evaluation: Evaluation, x: Value) -> tuple[PyTree, Callable[[PyTree], Value]]:
    """Arrays to scan over, and a function that computes the value of a step from their slices."""
    try:
        return x.scanned() if isinstance(x, Virtual) else (x, lambda x: x)
    except DeclinedError as declined:
        return evaluation.merged(x, "scan", declined.reason), lambda x: x


def _cond(evaluation: Evaluation, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value]:
    index, *operands = values
    # Functions for other platforms may not compile here.
    if eqn.params.get("branches_platforms") and not _is_watched(operands):
        raise DeclinedError("a function for each platform")
    run = evaluation.run_dense
    branches = [functools.partial(run, traced, operands) for traced in eqn.params["branches"]]
    return jax.lax.switch(evaluation.merged(index, "cond", "an index"), branches)


def _while(evaluation: Evaluation, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value]:
    params = eqn.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = values[:n], values[n : n + m]
    start = [evaluation.merged(x, "while", _CARRIED) for x in values[n + m :]]
    return jax.lax.while_loop(
        lambda state: evaluation.run_dense(params["cond_jaxpr"], [*cond_consts, *state])[0],
        lambda state: evaluation.run_dense(params["body_jaxpr"], [*body_consts, *state]),
        start,
    )


def _shard_map(evaluation: Evaluation, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value]:
    params = eqn.params
    operands: list[Value] = []
    in_specs: list[PartitionSpec | Virtual] = []
    for x, spec in zip(values, params["in_specs"], strict=True):
        if isinstance(x, Virtual):
            weight_specs = x.specs(spec)
            if weight_specs is None:
                reason = f"each device has a part, and the update of a {x.name} has no parts"
                x = evaluation.merged(x, "shard_map", reason)
            else:
                spec = weight_specs
        operands.append(x)
        in_specs.append(spec)

    mapped = jax.shard_map(
        lambda *values: tuple(evaluation.run_dense(params["jaxpr"], values)),
        mesh=params["mesh"],
        in_specs=tuple(in_specs),
        out_specs=tuple(params["out_specs"]),
        axis_names=manual_axes(eqn),
        check_vma=params["check_vma"],
    )
    return mapped(*operands)


def _custom(evaluation: Evaluation, eqn: JaxprEqn, values: list[Value]) -> Sequence[Value]:
    if _is_watched(values):
        return evaluation.run(eqn.params["call_jaxpr"], values)
    # The rule needs the whole weight, and may differ from the true derivative.
    raise DeclinedError("a function with a rule of its own for derivatives")


def _is_watched(values: list[Value]) -> bool:
    weights = [x for x in values if isinstance(x, Virtual)]
    return bool(weights) and all(weight.only_watches for weight in weights)


CALLS: dict[str, Callable[[Evaluation, JaxprEqn, list[Value]], Value]] = {
    **dict.fromkeys(("jit", "pjit"), _jit),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _remat),
    "scan": _scan,
    "cond": _cond,
    "while": _while,
    "shard_map": _shard_map,
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), _custom),
}
