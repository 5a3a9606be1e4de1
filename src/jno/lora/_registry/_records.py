"""Frozen records of plugins and of the adapters that they provide."""

import dataclasses
from typing import Any, Literal

import pluggy

from .._contract import LoRAWrapper

PluginStatus = Literal["loaded", "blocked", "failed", "incompatible", "conflict"]

BROKEN = ("failed", "incompatible")  # plugins that should have been loaded, and could not be
IN_PROCESS = "(in-process)"  # the "distribution" of what `jno.lora.register` registers


@dataclasses.dataclass(frozen=True)
class RegisteredWrapper:
    """One adapter class and the plugin that provides it."""

    cls: type[LoRAWrapper]
    distribution: str
    version: str

    @property
    def name(self) -> str:
        """The name to use in `wrapper=`."""
        return self.cls.__name__

    @property
    def qualified_name(self) -> str:
        """The name to use in `wrapper=` where `name` is ambiguous: `"distribution:Name"`."""
        return f"{self.distribution}:{self.name}"


@dataclasses.dataclass(frozen=True, repr=False)
class PluginRecord:
    """One plugin: its origin, its status, and the adapters that it provides.

    - `name`: the entry point's name; `value`: the module it names.
    - `status`: `"loaded"`, `"blocked"` (by `JNO_LORA_PLUGINS` or `JNO_LORA_BLOCK`), `"failed"`,
        `"incompatible"` (asks for a newer `jno_lora_api`) or `"conflict"` (loaded, but some of its
        names must be written `"distribution:Name"`, since another plugin has them).
    - `error`: the exception, or the reason, if the status is not `"loaded"`.
    - `seconds`: how long loading took.
    - `hooks`: the hooks that the plugin implements; pluggy's callers, which call this plugin alone.
    - `settings_changed`: a text for each setting of the whole program (options of JAX, filters of
        warnings) that the plugin changed while it loaded. The settings were set back.
    - `prints`: whether the plugin wrote to standard output while it loaded.
    - `defaults`: the names of the adapters of `wrapper=None`. Only the zoo has any.
    """

    name: str
    distribution: str
    version: str
    value: str
    status: PluginStatus
    error: Exception | None = None
    seconds: float = 0.0
    wrappers: tuple[RegisteredWrapper, ...] = ()
    hooks: tuple[pluggy.HookCaller, ...] = ()
    defaults: tuple[str, ...] = ()
    settings_changed: tuple[str, ...] = ()
    prints: bool = False

    def __repr__(self) -> str:
        return f"PluginRecord({self.describe()}, {self.status}, {len(self.wrappers)} adapters)"

    @property
    def usable(self) -> bool:
        """Whether its adapters can be used."""
        return self.status in ("loaded", "conflict")

    def describe(self) -> str:
        """For messages: distribution, version and entry point."""
        version = f" {self.version}" if self.version else ""
        return f"{self.distribution}{version} (entry point {self.name!r} = {self.value!r})"


def why_unusable(record: PluginRecord) -> str:
    status = "has failed" if record.status == "failed" else f"is {record.status}"
    return f"{record.describe()} {status}: {type(record.error).__name__}: {record.error}"


def plugin_of(record: PluginRecord) -> Any:
    """The object that implements the hooks of a plugin; `None` for a class without a plugin."""
    return record.hooks[0].get_hookimpls()[0].plugin if record.hooks else None
