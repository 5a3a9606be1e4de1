"""PEFT's names of modules, derived from the paths of layers."""

import re
from collections.abc import Callable, Iterable, Mapping

from jno.lora import SelectionError

from .errors import MisfitError

Rename = Mapping[str, str] | Callable[[str], str] | None

# The prefix of each tensor's name: the two levels that PEFT puts around a model.
PREFIX = "base_model.model."
# PEFT ties a head to an embedding with the first name, and finds both by these names.
EMBEDDING, HEAD = "embed_tokens", "lm_head"


def module_name(path: str, rename: Rename) -> str:
    """PEFT's name for the module at `path`. **Raises:** `SelectionError` for a bad `rename`."""
    if callable(rename):
        return rename(path).replace("/", ".")
    name = path
    for pattern, replacement in (rename or {}).items():
        name = compiled(pattern, "rename").sub(replacement, name)
    return name.replace("/", ".")


def has_rule(paths: Iterable[str], rename: Rename) -> bool:
    """Whether `rename` has a rule for one of the paths, also a rule that keeps the name."""
    return callable(rename) or any(re.search(x, path) for x in rename or () for path in paths)


def compiled(pattern: str, argument: str) -> re.Pattern[str]:
    """Compile a regular expression. **Raises:** `SelectionError` if it is not valid."""
    try:
        return re.compile(pattern)
    except re.error as err:
        raise SelectionError(f"The pattern {pattern!r} of `{argument}` is bad: {err}") from err


def peft_name(path: str, rename: Rename) -> str:
    """`module_name`, checked. **Raises:** `MisfitError` if the name is not possible in PEFT."""
    module = module_name(path, rename)
    if "[" in module:
        raise MisfitError(
            f"it is a stack of layers, and PEFT has a name for each layer, such as {path!r} here. "
            r'Give the names with `rename`, such as rename={r"^blocks/(.*)\[(\d+)\]$": '
            r'r"layers/\2/\1"}; or, if PEFT has one array of all experts, use `target_parameters`'
        )
    if not module or module.startswith(".") or module.endswith("."):
        raise MisfitError(
            f"PEFT cannot call a module {module!r}. Give a name, such as rename={{'^$': 'linear'}}"
        )
    return module


def dotted_path(module: str, rename: Rename) -> str:
    """The path of PEFT's `module`, with dots for slashes, so that both can be compared."""
    return module_name(module if callable(rename) else module.replace(".", "/"), rename)


def is_embedding(module: str) -> bool:
    """Whether PEFT can tie a head to the module with that name."""
    return module.rpartition(".")[2] == EMBEDDING


def may_be_tied(module: str) -> bool:
    """Whether a setting with that name makes PEFT look for ties."""
    return module.rpartition(".")[2] in (EMBEDDING, HEAD)


def show_index(index: tuple[int, ...]) -> str:
    """An index of a layer in a stack, as names have it between brackets."""
    return ",".join(map(str, index))


def indexed(path: str, index: tuple[int, ...]) -> str:
    """The path of one layer of a stack, such as `layers/q_proj[3]`; `path` for a single layer."""
    return f"{path}[{show_index(index)}]" if index else path
