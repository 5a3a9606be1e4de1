"""The errors and warnings of `jno.lora`: one base class, so that one `except` catches all."""


class JnoLoraError(Exception):
    """Base class of every error that `jno.lora` raises on purpose.

    An operation that raises one has changed nothing: the model (or `Net`) is as it was before. A
    message that lists everything that is wrong shows 100 lines, and says how many more there are.
    """


class SelectionError(JnoLoraError, ValueError):
    """The arguments select no layer, or do not make sense for this model.

    Raised for a target, spec or wrapper that matches nothing, layers that all carry an adapter
    already, a mask of another structure, an invalid regular expression, rank or spec key.
    """


class WrapperError(JnoLoraError):
    """An adapter class breaks the `LoRAWrapper` contract, or its constructor or merge failed."""


class PluginError(JnoLoraError, ImportError):
    """A plugin is missing, failed to load, is blocked, incompatible, or in conflict with another.

    It is an `ImportError` too, so that `from jno.lora import DoRALinear` without the zoo fails in
    the way that Python programmers expect.
    """


class CheckpointError(JnoLoraError):
    """A file of adapters is damaged, of an unknown format, or does not fit the model."""


class PeftFormatError(JnoLoraError):
    """A PEFT adapter directory is damaged, does not fit, or is of a type that has no exact form."""


class MissingLibraryError(JnoLoraError, ImportError):
    """A library that only some functions need (matplotlib, optax) is not installed.

    The message says which extra of `jno-lora` installs it.
    """


class JnoLoraWarning(UserWarning):
    """The category of every warning that `jno.lora` emits."""
