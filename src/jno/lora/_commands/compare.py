"""`jno-lora compare`: adapters side by side on a model that a function of yours makes."""

import inspect
from collections.abc import Mapping

from .._comparing import Comparison, compare
from .._errors import SelectionError
from .importing import find

_EXAMPLE = """
    def task():
        return {
            "model": model,
            "loss": lambda model, batch: ...,  # a scalar
            "batches": [batch, ...],
            "wrappers": ["lora", "dora", MyAdapter, "full"],
            "steps": 200,
            "key": jax.random.key(0),
        }
"""


def run(what: str) -> Comparison:
    """Compare what the function `MODULE:FACTORY` returns: the arguments of `compare`, as a dict.

    **Raises:** `PluginError` if there is no such function; `SelectionError` if it returns something
    else; what `compare` raises.
    """
    factory = find(what, "my_package.tasks:digits")
    if not callable(factory):
        raise SelectionError(f"{what!r} is {factory!r}, but must be a function, such as{_EXAMPLE}")
    task = factory()
    if not isinstance(task, Mapping):
        raise SelectionError(
            f"{what} must return the arguments of `jno.lora.compare` as a dict, but returned a "
            f"{type(task).__name__}. For example:{_EXAMPLE}"
        )
    try:
        inspect.signature(compare).bind(**task)
    except TypeError as err:
        raise SelectionError(
            f"The dict that {what} returns does not fit `jno.lora.compare`: {err}. "
            f"For example:{_EXAMPLE}"
        ) from err
    return compare(**task)
