"""The registry: what adapters there are, asked by class, by name or by distribution."""

from collections.abc import Callable, Sequence
from typing import Any

from .._contract import LoRAWrapper
from .._errors import PluginError
from .._paths import show_path
from ._plugins import Plugins
from ._records import IN_PROCESS, PluginRecord, RegisteredWrapper
from ._zoo_names import DEFAULT_NAMES, ZOO_NAMES


class Registry:
    """Finds, loads and names adapters.

    Plugins load lazily: the defaults and the zoo's own names import only the zoo, explicit
    classes import nothing, and everything else (other names, variants, `"auto"`, listing) loads
    all installed plugins once. Every method is thread-safe.

    **Arguments:**

    - `discover`: whether to look for installed plugins. With `False` the registry holds only what
        is given to `register`, for applications that must not import what happens to be installed.
    """

    def __init__(self, *, discover: bool = True):
        self.discover = discover
        self._plugins = Plugins(discover=discover)

    def records(self, *, strict: bool | None = None) -> tuple[PluginRecord, ...]:
        """One record per plugin found, loading all of them if that has not happened yet.

        `strict=False` never raises, whatever `JNO_LORA_STRICT` says: for tools that show what is
        broken.

        **Raises:** `PluginError` for a plugin that is broken, if `JNO_LORA_STRICT` is set.
        """
        return self._plugins.with_all(strict).records

    def defaults(self) -> tuple[type[LoRAWrapper], ...]:
        """The adapters of `wrapper=None`: `LoRALinear` and `LoRAConv`. As `zoo_class`."""
        return tuple(self.zoo_class(name) for name in DEFAULT_NAMES)

    def zoo_class(self, name: str) -> type[LoRAWrapper]:
        """One class of the zoo, by its name. Imports only the zoo.

        **Raises:** `PluginError` if the zoo is missing, blocked or broken.
        """
        snapshot = self._plugins.with_zoo()
        for wrapper in snapshot.by_name.get(name, ()):
            return wrapper.cls
        raise snapshot.without_zoo(name)

    def resolve(self, name: str) -> tuple[type[LoRAWrapper], ...]:
        """The classes that a name or variant stands for.

        **Raises:** `PluginError` if the name is ambiguous or its plugin cannot be used, and as
        `records`; `SelectionError` if nothing is called so.
        """
        if name in ZOO_NAMES:
            return (self.zoo_class(name),)
        return self._plugins.with_all().resolve(name)

    def auto(self) -> tuple[type[LoRAWrapper], ...]:
        """Every registered adapter with `auto = True`. Raises as `records`."""
        return self._plugins.with_all().auto()

    def provider(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """Which plugin provides `cls`, as far as is known without loading anything."""
        return self._plugins.snapshot.provider(cls)

    def provider_of(self, cls: type[LoRAWrapper]) -> RegisteredWrapper | None:
        """Which plugin provides `cls`. Loads those of the package that defines it, if need be."""
        return self.provider(cls) or self._plugins.with_package(_package(cls)).provider(cls)

    def provided(self, distribution: str | None, name: str) -> RegisteredWrapper:
        """The adapter `name` of one distribution, or of this process if that is `None`.

        Loads nothing for the latter, else only what that distribution provides.

        **Raises:** `PluginError` if there is no such adapter, or it cannot be used.
        """
        if distribution is None:
            return self._plugins.snapshot.provided(IN_PROCESS, name)
        return self._plugins.with_those_of(distribution).provided(distribution, name)

    def select(
        self, path: str, leaf: Any, candidates: Sequence[type[LoRAWrapper]]
    ) -> type[LoRAWrapper] | None:
        """What the plugins' `jno_lora_select` hooks choose, or `None` if none of them does.

        **Raises:** `PluginError` if a hook fails, or chooses something that is not a candidate.
        """
        given = {"path": path, "leaf": leaf, "candidates": candidates}
        chosen: Any = None
        try:
            for hook in self._plugins.hooks("jno_lora_select"):
                chosen = hook.function(*(given[name] for name in hook.argnames))
                if chosen is not None:
                    break
        except Exception as err:
            raise PluginError(
                f"A `jno_lora_select` hook failed on the layer at {show_path(path)!r}: "
                f"{type(err).__name__}: {err}"
            ) from err
        if chosen is not None and chosen not in candidates:
            raise PluginError(
                f"A `jno_lora_select` hook chose {chosen!r} for {show_path(path)!r}, which is not "
                f"among the candidates {[c.__name__ for c in candidates]}. Return one of them, or "
                "None."
            )
        return chosen

    def command_hooks(self) -> list[tuple[str, Callable[[Any], Any]]]:
        """The plugins that add commands, our own first, each with what adds them to a group."""
        self._plugins.with_all(strict=False)

        def adding(hook: Any) -> Callable[[Any], Any]:
            return lambda group: hook.function(*[group][: len(hook.argnames)])

        hooks = self._plugins.hooks("jno_lora_commands")
        return [(hook.plugin_name, adding(hook)) for hook in reversed(hooks)]

    def register(self, item: Any) -> Any:
        """Register an adapter class, or an object with hook implementations, in this process.

        **Arguments:**

        - `item`: a `LoRAWrapper` subclass, or any object (a module, an instance) whose functions
            are marked with `jno.lora.hookimpl`. A class that is defined again under the same
            module and name (a notebook cell that ran twice) replaces the former one.

        **Returns:** `item`, so that this can be used as a class decorator.

        **Raises:** `WrapperError` if a class breaks the contract; `PluginError` if an object
        implements no hook, or one that does not exist or has other arguments.
        """
        self._plugins.register(item)
        return item

    def refresh(self) -> None:
        """Forget every plugin that was found, so that the next question looks again.

        What was registered in this process stays. Modules that Python has imported stay imported.
        Compiled programs, filters and what was found out of classes are forgotten too, so that a
        class which was edited in place is seen as it is now.
        """
        self._plugins.refresh()


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]


_DEFAULT = Registry()


def default_registry(given: Registry | None = None) -> Registry:
    """`given`, or else the registry that every function uses."""
    return _DEFAULT if given is None else given


def registered() -> tuple[PluginRecord, ...]:
    """One record per plugin, loading all installed plugins if that has not happened yet.

    **Raises:** `PluginError` for a plugin that is broken, if `JNO_LORA_STRICT` is set.
    """
    return _DEFAULT.records()


def register(item: Any) -> Any:
    """Register an adapter class or a plugin object in this process. See `Registry.register`."""
    return _DEFAULT.register(item)


def refresh() -> None:
    """Look for plugins again at the next question. See `Registry.refresh`."""
    _DEFAULT.refresh()
