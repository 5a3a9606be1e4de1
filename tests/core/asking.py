"""What tests ask of plans and registries."""

from typing import Any

from jno.lora import LoRAWrapper, Registry, plan_lora


def wrapped(model: Any, *args: Any, **kwargs: Any) -> dict[str, type[LoRAWrapper] | None]:
    """What `plan_lora` would wrap: the adapter class by path."""
    return {row.path: row.wrapper for row in plan_lora(model, *args, **kwargs).wrapped}


def statuses(registry: Registry) -> dict[str, str]:
    """What became of each plugin, by its distribution."""
    return {record.distribution: record.status for record in registry.records()}


def one(registry: Registry, name: str) -> type[LoRAWrapper]:
    """The only class of that name."""
    (cls,) = registry.resolve(name)
    return cls
