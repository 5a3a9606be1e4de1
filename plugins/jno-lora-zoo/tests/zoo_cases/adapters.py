"""The adapters of the zoo, and how the tests build and move them."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.pairs import ALL, pairwise

import jno_lora_zoo
from jno.lora import lora_trainable_filter
from jno.lora._shared_arrays import with_shared_arrays
from jno_lora_zoo import METHODS

from .laws import LAWS, fields_of, reference
from .laws_from_data import given_to
from .layers import Case, case

ALL_METHODS = tuple(LAWS)
# One method for each way to use a layer: a product of two factors, the norms of the weight's rows,
# a changed base, factors that are drawn, a factor of the outputs, an update in pieces, a rotation.
WAYS = ("LoRA", "DoRA", "PiSSA", "VeRA", "IA3", "LoKr", "OFT")
# One method for each law and way to compute it: PiSSA, say, computes as LoRA does.
LAW_WAYS = {(m.forward, m.law, getattr(m, "update", None)): m.__name__ for m in METHODS}.values()
# The methods that run the whole kit on each kind of layer. DoRA has a low-rank product, a norm of
# each row and a gain of the outputs, and so uses the most of a kind.
WHOLE_KIT = WAYS if ALL else ("DoRA",)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A method on a kind of layer."""

    method: str
    kind: str

    @property
    def name(self) -> str:
        return self.method + self.kind

    @property
    def cls(self) -> Any:
        return getattr(jno_lora_zoo, self.name)


def adapters(*methods: str, linear: Iterable[str] = ("plain",), conv: Iterable[str] = ("plain",)):
    """Parametrises a test by `adapter` and `base`: these methods (`WAYS`) on these layers.

    Every method runs on one layer, and every layer with a method of each structure.
    """
    return on_cases(dealt(pairs(*methods, Linear=linear, Conv=conv)))


def pairs(*methods: str, **names: Iterable[str]) -> list[tuple[Adapter, Case]]:
    """These methods (`WAYS`) on the layers of these names, by their kind."""
    return [
        (Adapter(method, kind), case(kind, name))
        for kind, of_kind in names.items()
        for method in methods or WAYS
        for name in of_kind
    ]


def dealt(pairs: Iterable[tuple[Adapter, Case]], layers: int = 1) -> list[tuple[Adapter, Case]]:
    """Those pairs that `pairwise` keeps."""
    named = {
        (adapter.method, (adapter.kind, base.name)): (adapter, base) for adapter, base in pairs
    }
    return [named[names] for names in pairwise(named, layers)]


def on_cases(pairs: Iterable[tuple[Adapter, Case]]):
    """Parametrises a test by `adapter` and `base`: by these pairs, each once."""
    cases = {f"{adapter.name}-{base.name}": (adapter, base) for adapter, base in pairs}
    # The scope keeps the tests of one case together, so that one process compiles what they share.
    return pytest.mark.parametrize(
        ("adapter", "base"), cases.values(), ids=list(cases), scope="module"
    )


def build(adapter: Adapter, base: Case | Any, alpha: float = 3.0, rank: int | None = None, **kw):
    """The adapter around the layer, as it starts."""
    if isinstance(base, Case):
        rank, base = base.rank if rank is None else rank, base.layer
    return made(adapter.cls, base, 2 if rank is None else rank, alpha, key=_key(), **kw)


def made(cls: Any, layer: Any, rank: int, alpha: float, *, key: Any, **kw: Any) -> Any:
    """The adapter as its constructor makes it, with everything that it needs."""
    kw = given_to(cls, layer) | kw
    return with_shared_arrays(cls(layer, rank, alpha, key=key, **kw), key=key)


def perturb(model: Any, size: float = 0.4, seed: int = 0) -> Any:
    """A wrapper, or a model with some, with all that trains moved at random, as after training."""
    rng = np.random.default_rng(seed)

    def move(x: Any) -> Any:
        return x + jnp.asarray(size * rng.normal(size=x.shape), x.dtype)

    trainable, frozen = eqx.partition(model, lora_trainable_filter(model))
    return eqx.combine(jax.tree.map(move, trainable), frozen)


def law_of(adapter: Adapter, wrapper: Any, base: Case, **fields: Any) -> np.ndarray:
    """`W'` by the law in NumPy, for the wrapper's arrays (or other `fields`) and the base."""
    arrays = fields_of(wrapper)
    vars(arrays).update(fields)
    return reference(adapter.method, arrays, base.matrix(), base.rank, wrapper.alpha)


@functools.cache
def _key() -> jax.Array:
    with jax.ensure_compile_time_eval():  # the first that asks may be traced
        return jax.random.key(11)
