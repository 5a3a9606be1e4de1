"""Advice on the layers that a plan leaves out: who could adapt them, or how to declare them."""

import dataclasses
from typing import Any

from jaxtyping import PyTree

from .._registry import Registry
from .._tree import (
    claims,
    count_plain,
    fields_of,
    is_parameter,
    layers_left_out,
    modules_in,
    why_not,
)
from ._plan import Plan, PlanRow

_NAMED = 4  # how many adapters the advice in a row names


def advised(plan: Plan, model: PyTree, registry: Registry) -> Plan:
    """`plan`, with the layers that it leaves out, and with advice in their rows.

    Queries the adapters of all installed plugins, and loads the plugins if a layer with matrices is
    left out. (If the call names classes, it loads nothing, and only queries the loaded plugins. The
    remaining plugins may have adapters, so there is no advice on how to declare.) This is why
    `apply_lora` and `net.lora` give no advice. A plan does not query when it prints either, because
    it would have to keep the model, and would change as plugins are loaded.
    """
    adapted = {row.keys for row in plan.having("wrapped", "already adapted")}
    left_out = layers_left_out(model, count_plain(model), adapted)
    layers = dict(modules_in(model))
    asks_all = plan.by_default or not registry.discover

    def advice_for(row: PlanRow) -> str | None:
        layer: Any = layers[row.keys]
        values = fields_of(layer).items()
        matrices = [name for name, x in values if is_parameter(x) and len(x.shape) > 1]
        if row.status != "no wrapper applies" or not matrices:
            return None
        records = registry.records(strict=False) if asks_all else registry.loaded()
        wrappers = [wrapper for record in records for wrapper in record.wrappers]
        if applying := [wrapper for wrapper in wrappers if claims(wrapper.cls, layer)]:
            # The adapters of `wrapper="auto"` first: the plugin itself prefers them.
            applying.sort(key=lambda wrapper: not wrapper.cls.auto)
            names = [wrapper.cls.__name__ for wrapper in applying]
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            origins = ", ".join(dict.fromkeys(wrapper.distribution for wrapper in applying))
            return f"none of this call; {', '.join(names[:_NAMED])}{more} ({origins})"
        if row.reason is not None or not asks_all:
            return None
        reasons = filter(None, (why_not(wrapper.cls, layer) for wrapper in wrappers))
        declare = f"declare {', '.join(matrices)} (docs/operators.md)"
        return f"no installed adapter applies; {next(reasons, declare)}"

    rows = tuple(dataclasses.replace(row, advice=advice_for(row)) for row in plan.rows)
    return dataclasses.replace(plan, rows=rows, left_out=left_out)
