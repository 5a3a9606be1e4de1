"""The two factors of each LoRA in a tree of arrays, by the names that other libraries give them."""

import collections
import dataclasses
import re
from typing import Any

import jax.tree_util as jtu
from jaxtyping import PyTree

from jno.lora.extending import path_str

from .._names import PREFIX

# Flax and Orbax keep an array inside of a variable.
_VARIABLE = re.compile(r"/(raw_)?value$")
_PARTS = {"a": "A", "A": "A", "down": "A", "b": "B", "B": "B", "up": "B"}

# The names of arrays with slashes for dots, and whether the factors are as in JAX: inputs first.
_STYLES = (
    # Qwix, and with it Tunix and MaxText: beside `kernel` are `kernel_lora_a` and `kernel_lora_b`.
    (r"(?:(?P<module>.*)/)?(?P<array>[^/]+)_lora_(?P<part>[ab])", True),
    # MaxText's models of Linen.
    (r"(?P<module>.*)/lora_(?P<part>[ab])/(?P<array>kernel)", True),
    # PEFT's names, which diffusers writes today, also with the name of an adapter.
    (r"(?P<module>.*)/lora_(?P<part>[AB])(?:/\w+)?/weight", False),
    (r"(?P<module>.*)/lora_embedding_(?P<part>[AB])(?:/\w+)?", False),
    # kohya: `lora_mid` is the kernel of a convolution between two of size 1.
    (r"(?P<module>.*)/lora_(?P<part>down|up|mid)/weight", False),
    # Former versions of diffusers.
    (r"(?P<module>.*?)(?:/lora|_lora|/lora_linear_layer)/(?P<part>down|up)/weight", False),
)
# kohya writes underscores for all dots of a layer's name.
_KOHYA = re.compile(r"[^/]+/lora_(?:down|up|mid)/weight")
_ALPHA = re.compile(r"(.*)/alpha")


@dataclasses.dataclass
class Pair:
    """One LoRA of a tree.

    - `key`: the name of its layer in the tree, with the name of the array if the layer has several;
        `names`: the paths that it may have in the model.
    - `kind`: `"peft"` and `"kohya"` for names that these libraries alone give, else empty.
    - `inputs_first`: the factors are `(inputs, rank)` and `(rank, outputs)`, as JAX has them;
        otherwise `(rank, inputs)` and `(outputs, rank)`, as Torch has them.
    - `arrays`: `"A"`, `"B"`, `"mid"` and `"alpha"`, if the tree has them; `places`: the numbers of
        their leaves.
    """

    key: str
    names: tuple[str, ...]
    inputs_first: bool
    kind: str = ""
    arrays: dict[str, Any] = dataclasses.field(default_factory=dict)
    places: dict[str, int] = dataclasses.field(default_factory=dict)


def pairs_of(tree: PyTree, prefix: str = "") -> tuple[list[Pair], list[str]]:
    """The whole pairs of a tree, and a line for each array without a pair or of an unknown name.

    `prefix` is the start of the names to read, which leaves out all other arrays.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    alphas: dict[str, Any] = {}
    problems: list[str] = []
    start = prefix.replace(".", "/")
    for number, (keys, leaf) in enumerate(jtu.tree_leaves_with_path(tree)):
        key = path_str(keys)
        name = _VARIABLE.sub("", key.removeprefix(PREFIX).replace(".", "/"))
        if not name.startswith(start):
            continue
        name = name[len(start) :]
        if match := _ALPHA.fullmatch(name):
            alphas[match[1]] = leaf
        elif (parsed := _match(name)) is None:
            problems.append(f"{key}: no array of LoRA has such a name")
        else:
            module, array, part, inputs_first = parsed
            names = _names(module, array)
            kind = "peft" if key.startswith(PREFIX) else "kohya" if _KOHYA.fullmatch(name) else ""
            new = Pair(start + module, names, inputs_first, kind)
            pair = pairs.setdefault((module, array), new)
            if part in pair.arrays:
                problems.append(f"{key}: a second array for the same factor")
            pair.arrays[part], pair.places[part] = leaf, number
    whole: list[Pair] = []
    counts = collections.Counter(module for module, _ in pairs)
    for (module, array), pair in pairs.items():
        if counts[module] > 1 and array:
            pair.key = start + pair.names[0]
        if missing := [part for part in "AB" if part not in pair.arrays]:
            problems.append(f"{pair.key}: its factor {missing[0]} is missing")
            continue
        if module in alphas:
            pair.arrays["alpha"] = alphas[module]
        whole.append(pair)
    layers = {module for module, _ in pairs}
    names = (name for name in alphas if name not in layers)
    problems += [f"{start}{name}/alpha: no factors are beside it" for name in names]
    return whole, problems


def _match(name: str) -> tuple[str, str, str, bool] | None:
    for pattern, inputs_first in _STYLES:
        if match := re.fullmatch(pattern, name):
            groups = match.groupdict()
            part = _PARTS.get(groups["part"], groups["part"])
            return groups["module"] or "", groups.get("array") or "", part, inputs_first
    return None


def _names(module: str, array: str) -> tuple[str, ...]:
    """The paths of a layer, or of a declared array, that may be meant."""
    if array:
        return f"{module}/{array}".removeprefix("/"), module
    # Former versions of diffusers keep adapters in a processor, and its output projection has a
    # dropout beside it.
    names = dict.fromkeys((module, module.replace("/processor/", "/")))
    if module.rpartition("/")[2] == "to_out":
        names |= dict.fromkeys(f"{name}/0" for name in [*names])
    return tuple(names)
