"""Which pairs of a method and a layer the tests run.

An adapter is a method on a kind of layer. A fault is in the method, in the kind, or between a kind
and a structure of methods. CI therefore runs each method on two layers, and each layer with a
method of each structure: `make test` each method and each kind once, `make test-more` the others.
`make test-all` runs every pair (`JNO_LORA_TEST_ALL=1`).
"""

import os
from collections.abc import Hashable, Iterable
from typing import TypeVar

from jno_lora_zoo import METHODS

ALL = os.environ.get("JNO_LORA_TEST_ALL", "0") != "0"

# For each structure of methods, the method that stands for it: the first that a test has.
STRUCTURES = {
    "a low-rank update": ("LoRA",),
    "a law of the whole weight": ("DoRA",),
    "a start from data, or from the weight": ("CorDA", "PiSSA", "EVA"),
}
# The kinds of layer with an adapter of every method. `Linear` is not here: it runs every method.
KINDS = (
    *("Conv", "ConvTranspose", "Embedding", "InNorm", "Recurrent"),
    *("Array", "ChannelLastConv", "ChannelLastConvTranspose", "E3nn", "SubsampledLinear"),
    *("HaliaxLinear", "HaliaxEmbedding", "HaliaxConv"),
)

Layer = TypeVar("Layer", bound=Hashable)


def for_each_structure(methods: Iterable[str]) -> tuple[str, ...]:
    """The methods that stand for the structures."""
    methods = set(methods)
    found = (next((m for m in names if m in methods), None) for names in STRUCTURES.values())
    return tuple(method for method in found if method is not None)


def pairwise(pairs: Iterable[tuple[str, Layer]], layers: int = 1) -> list[tuple[str, Layer]]:
    """Of the pairs of a method and a layer, those that CI runs, in their order.

    Every method keeps so many of its `layers`, dealt in turn, and every layer keeps a method of
    each structure.
    """
    pairs = list(pairs)
    layers_of: dict[str, list[Layer]] = {}
    for method, layer in pairs:
        layers_of.setdefault(method, []).append(layer)
    kept = set()
    for n, (method, its_layers) in enumerate(layers_of.items()):
        # Far apart in the list, so that they are of different kinds.
        step = len(its_layers) // layers
        dealt = (its_layers[(n + i * step) % len(its_layers)] for i in range(layers))
        kept.update((method, layer) for layer in dealt)
    every_layer = for_each_structure(layers_of)
    return [pair for pair in pairs if ALL or pair in kept or pair[0] in every_layer]


def methods_on(kind: str, methods: Iterable[str] | None = None) -> list[str]:
    """Of these methods (all), those that the tests of this kind of layer run.

    One of each structure, and the methods that are dealt to the kind.
    """
    names = [method.__name__ for method in METHODS]
    methods = names if methods is None else list(methods)
    dealt = {name for n, name in enumerate(names) if KINDS[n % len(KINDS)] == kind}
    every_kind = for_each_structure(methods)
    return [name for name in methods if ALL or name in dealt or name in every_kind]
