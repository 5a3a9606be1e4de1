"""Evaluating a traced function, in which some values are virtual weights."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from jno.lora import JnoLoraError

from ._equations import (
    counts_of_scan,
    evaluate_plainly,
    is_changed,
    jaxprs_in,
    mark_in,
    marks_in,
    opened,
)
from ._report import Use
from ._rules import RULES, Declined
from ._virtual import Virtual, virtual


class Evaluation:
    """One evaluation of a traced function, and the uses of virtual weights that it met."""

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.uses: list[Use] = []

    def run(self, traced: Any, args: Sequence[Any]) -> list[Any]:
        """The results of a traced function. Arguments may be virtual, and results too."""
        jaxpr, consts = opened(traced)
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

        def read(var: Any) -> Any:
            return var.val if isinstance(var, Literal) else env[var]

        for eqn in jaxpr.eqns:
            results = self._results(jaxpr, eqn, [read(var) for var in eqn.invars])
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _results(self, jaxpr: Any, eqn: Any, values: list[Any]) -> Sequence[Any]:
        """The results of one equation."""
        mark = mark_in(eqn)
        if mark is not None:
            reason = "differentiated or mapped by vmap inside of the function"
            if not is_changed(eqn, mark):
                weight = virtual(mark.adapter(list(map(dense, values))))
                if weight is not None:
                    return [weight]
                reason = "this adapter has no rules"
            self._note(Use(mark.adapter_name, eqn.outvars[0].aval.shape, "read", reason))
            return evaluate_plainly(jaxpr, eqn, list(map(dense, values)))
        is_virtual = any(isinstance(x, Virtual) for x in values)
        call = _CALLS.get(eqn.primitive.name)
        inner = [mark for one in jaxprs_in(eqn) for mark in marks_in(one)]
        if call is not None and (is_virtual or inner):
            return call(self, eqn, values)
        for one in inner:
            reason = "a function with a rule of its own reads it"
            self._note(Use(one.adapter_name, (), eqn.primitive.name, reason))
        if is_virtual:
            rule = RULES.get(eqn.primitive.name)
            result = Declined("no rule") if rule is None else rule(eqn, values)
            reason = result.reason if isinstance(result, Declined) else None
            if not isinstance(result, Virtual):
                weight = next(x for x in values if isinstance(x, Virtual))
                self._note(Use(weight.name, weight.shape, eqn.primitive.name, reason))
            if reason is None:
                return [result]
        return evaluate_plainly(jaxpr, eqn, list(map(dense, values)))

    def _note(self, use: Use) -> None:
        self.uses.append(use)
        if self.strict and use.reason is not None:
            raise JnoLoraError(
                f"{use.operation} of the weight {use.shape} of a {use.adapter} needs the merged "
                f"weight: {use.reason}. Without `strict`, it is merged there."
            )

    def run_dense(self, traced: Any, args: Sequence[Any]) -> list[Any]:
        """As `run`, but the results are arrays."""
        return list(map(dense, self.run(traced, args)))


def dense(value: Any) -> Any:
    """The array itself, if `value` is a virtual weight."""
    return value.dense() if isinstance(value, Virtual) else value


def _jit(evaluation: Evaluation, eqn: Any, values: list[Any]) -> Sequence[Any]:
    with jax.named_scope(eqn.params["name"]):
        return evaluation.run(eqn.params["jaxpr"], values)


def _remat(evaluation: Evaluation, eqn: Any, values: list[Any]) -> Sequence[Any]:
    params = eqn.params

    def run(*values: Any) -> list[Any]:
        return evaluation.run_dense(params["jaxpr"], values)

    return jax.checkpoint(run, policy=params["policy"], prevent_cse=params["prevent_cse"])(*values)


def _scan(evaluation: Evaluation, eqn: Any, values: list[Any]) -> Sequence[Any]:
    params = eqn.params
    n, m = counts_of_scan(eqn)
    consts, carry, xs = values[:n], list(map(dense, values[n : n + m])), values[n + m :]
    # A virtual weight whose first axis is that of a stack is scanned with its adapter.
    xs = [x if not isinstance(x, Virtual) or x.can_be_scanned() else x.dense() for x in xs]
    dims = [x.axes[1:] if isinstance(x, Virtual) else None for x in xs]

    def body(carry: Any, xs: Any) -> Any:
        parts = [x if axes is None else x.slice_of(axes) for x, axes in zip(xs, dims, strict=True)]
        results = evaluation.run_dense(params["jaxpr"], [*consts, *carry, *parts])
        return results[:m], results[m:]

    carry, ys = jax.lax.scan(
        body, carry, xs, params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *ys]


def _cond(evaluation: Evaluation, eqn: Any, values: list[Any]) -> Sequence[Any]:
    index, *operands = values

    def branch(traced: Any) -> Callable[[], list[Any]]:
        return lambda: evaluation.run_dense(traced, operands)

    return jax.lax.switch(dense(index), list(map(branch, eqn.params["branches"])))


def _while(evaluation: Evaluation, eqn: Any, values: list[Any]) -> Sequence[Any]:
    params = eqn.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    of_cond, of_body, start = values[:n], values[n : n + m], list(map(dense, values[n + m :]))

    return jax.lax.while_loop(
        lambda state: evaluation.run_dense(params["cond_jaxpr"], [*of_cond, *state])[0],
        lambda state: evaluation.run_dense(params["body_jaxpr"], [*of_body, *state]),
        start,
    )


# Operations that call a traced function, by the names that JAX has given them.
_CALLS: dict[str, Callable[[Evaluation, Any, list[Any]], Sequence[Any]]] = {
    **dict.fromkeys(("jit", "pjit"), _jit),
    **dict.fromkeys(("checkpoint", "remat", "remat2"), _remat),
    "scan": _scan,
    "cond": _cond,
    "while": _while,
}
