"""Find the LoRAs in a tree of arrays.

Each library names the two factors of a LoRA differently.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping

import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree

from jno.lora import SelectionError
from jno.lora.extending import path_str, show_path
from jno_lora_peft.errors import MisfitError, Problems
from jno_lora_peft.layouts import Shape
from jno_lora_peft.names import PREFIX
from jno_lora_peft.types.type import widened

from ._arrays import Array
from ._sources import ADAPTER, Factor, Source, find_factor
from ._states import State

# Flax and Orbax store an array inside a variable.
_VARIABLE = re.compile(r"/(raw_)?value$")
_ALPHA = re.compile(r"(.*)/alpha")
# KerasHub writes the rank of all layers.
_RANK = re.compile(r"lora(/vars)?/rank")


@dataclasses.dataclass(frozen=True)
class Pair:
    """One LoRA of a tree.

    - `key`: the name of its layer in the tree, with the name of the array if the layer has several.
    - `names`: the possible names of the layer in its project, without the prefix; the last is its
        newest. `paths`: its possible paths in a model.
    - `weights`: the possible names of its weight, by the name of its `{module}`.
    - `source`: how its project lays out the arrays; `law`: the key of its law there, if any.
    - `is_embedding`: whether the names of its arrays say that its weight is a table.
    - `arrays`: `"A"`, `"B"`, `"mid"` and `"alpha"`, if present; `leaves`: the numbers of their
        leaves in the tree.
    """

    key: str
    names: tuple[str, ...]
    paths: tuple[str, ...]
    weights: tuple[str, ...]
    source: Source
    law: str
    is_embedding: bool
    arrays: dict[str, Array] = dataclasses.field(default_factory=dict)
    leaves: dict[str, int] = dataclasses.field(default_factory=dict)

    def shape_of(self, part: str) -> Shape:
        """The shape of an array."""
        return tuple(self.arrays[part].shape)

    def takes_alpha(self, state: State) -> bool:
        """Whether neither the project nor the file gives the scale."""
        is_known = self.source.alpha == "none" or "alpha" in self.arrays
        return not is_known and state.config_for(self.key) is None

    def alpha(self, state: State, given: float | None) -> float | None:
        """The alpha of the LoRA; `None` for a scale of 1.

        - `given`: the alpha of the user.

        **Raises:** `SelectionError` if it is missing, or differs from the alpha of the state;
        `MisfitError` if the array is not one number.
        """
        if "alpha" in self.arrays:
            beside = np.asarray(self.arrays["alpha"])
            if beside.size != 1:
                raise MisfitError(f"alpha has the shape {beside.shape}, not one number")
            # Of any dtype, because kohya saves whole numbers; a zero means a scale of 1.
            return float(beside.item()) or None
        if (layer := state.config_for(self.key)) is not None:
            return layer.config.alpha(layer.name)
        if state.alpha is not None and given not in (None, state.alpha):
            raise SelectionError(f"alpha={given!r}, but the state has alpha={state.alpha!r}")
        if self.source.alpha == "none":
            return None
        alpha = state.alpha if given is None else given
        if alpha is not None:
            return float(alpha)
        rank = self.shape_of("A")[-1 if self.source.inputs_first else 0]
        if rank in self.source.alpha_is_rank:
            return float(rank)
        if self.source.alpha == "needed":
            raise SelectionError(
                f"{show_path(self.key)}: {self.source.name} scales an update by alpha / rank, and "
                "the alpha is not in the arrays. Read a directory of PEFT by load_peft, or give "
                "the alpha of openpi's LoRAConfig or Qwix's LoraRule: load_lora_state and "
                "convert_lora take alpha=16, and jno-lora convert --alpha 16"
            )
        return None


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a tree holds: its LoRAs, the names of other arrays, and the names without the prefix."""

    pairs: list[Pair]
    remaining: list[str]
    skipped: list[str]


def normalise(key: str) -> str:
    """The name of an array with slashes, without the variable and PEFT's prefix."""
    return _VARIABLE.sub("", key.removeprefix(PREFIX).replace(".", "/"))


def weight_path(name: str) -> str:
    """The name of a weight as the names of a base are compared."""
    # EasyDeL puts a `base_module` into an adapter.
    return re.sub(r"^/?(params/)?", "", normalise(name).replace("/base_module/", "/"))


def find_pairs(tree: PyTree, prefix: str, problems: Problems) -> Contents:
    """The LoRAs of a tree, from the arrays whose names start with `prefix`.

    Arrays of LoRA that are not of a whole LoRA get a line in `problems`.
    """
    leaves = [(path_str(keys), leaf) for keys, leaf in jtu.tree_leaves_with_path(tree)]
    start = prefix.replace(".", "/")
    start += "/" * any(normalise(key).startswith(f"{start}/") for key, _ in leaves)
    contents = Contents([], [], [])
    factors: dict[int, Factor] = {}  # by the number of the leaf
    alphas: dict[str, Array] = {}
    for number, (key, leaf) in enumerate(leaves):
        name = normalise(key)
        if not name.startswith(start):
            contents.skipped.append(key)
        elif match := _ALPHA.fullmatch(name, len(start)):
            alphas[match[1]] = leaf
        elif factor := find_factor(name[len(start) :]):
            factors[number] = factor
        elif _RANK.fullmatch(name, len(start)):
            continue
        elif ADAPTER.search(name):
            problems.append(f"{key}: no array of LoRA has such a name")
        else:
            contents.remaining.append(key)
    arrays = {(factor.module, factor.array) for factor in factors.values()}
    counts = collections.Counter(module for module, _ in arrays)
    pairs: dict[tuple[str, str], Pair] = {}
    for number, factor in factors.items():
        key, leaf = leaves[number]
        new = _new_pair(key, factor, start, counts[factor.module] > 1)
        pair = pairs.setdefault((factor.module, factor.array), new)
        if factor.part in pair.arrays:
            problems.append(f"{key}: a second array for the same factor")
        pair.arrays[factor.part], pair.leaves[factor.part] = leaf, number
    for (module, _), pair in pairs.items():
        if missing := [part for part in "AB" if part not in pair.arrays]:
            problems.append(f"{pair.key}: its factor {missing[0]} is missing")
            continue
        if module in alphas:
            pair.arrays["alpha"] = alphas[module]
        contents.pairs.append(pair)
    for module in sorted(alphas.keys() - counts.keys()):
        problems.append(f"{start}{module}/alpha: no factors are beside it")
    return contents


def _new_pair(key: str, factor: Factor, start: str, has_several: bool) -> Pair:
    """The LoRA of a factor, without its arrays.

    - `start`: the prefix; `has_several`: whether several arrays of the layer have LoRAs.
    """
    source, paths = factor.source, _paths(factor.module, factor.array)
    name, array = factor.module, f"/{factor.array}"
    if has_several and factor.array:
        name, array = paths[0], ""
    names = paths if source.name == "diffusers" else (name,)
    weights = [weight.replace("/{array}", array) for weight in source.weights]
    weights += [start + weight for weight in weights if start]
    if key.startswith(PREFIX):
        source = dataclasses.replace(source, alpha="needed")
    law, is_embedding = factor.law, factor.is_embedding
    return Pair(start + name, names, paths, tuple(weights), source, law, is_embedding)


def _paths(module: str, array: str) -> tuple[str, ...]:
    """The possible paths of a layer, or of a declared array."""
    if array:
        return f"{module}/{array}".removeprefix("/"), module
    # Older versions of diffusers keep adapters in a processor, whose output projection is in a list
    # with a dropout.
    paths = dict.fromkeys((module, module.replace("/processor/", "/")))
    if module.rpartition("/")[2] == "to_out":
        paths |= dict.fromkeys(f"{path}/0" for path in [*paths])
    return tuple(paths)


def first_factor(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first factor, with kohya's core: a kernel followed by a product, which are a kernel."""
    first = arrays["A"]
    if "mid" not in arrays:
        return first
    core = arrays["mid"]
    if core.shape[:2] != (len(first), len(first)):
        raise MisfitError(f"lora_mid has the shape {core.shape}, and the rank is {len(first)}")
    first = widened(first.reshape(len(first), -1))
    return np.moveaxis(np.tensordot(widened(core), first, axes=(1, 0)), -1, 1)
