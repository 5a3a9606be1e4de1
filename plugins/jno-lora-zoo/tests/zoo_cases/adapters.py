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
from tests.pairs import pairwise

import jno_lora_zoo
from jno.lora import lora_trainable_filter
from jno.lora._shared_arrays import with_shared_arrays

from .laws import METHODS, fields_of, reference
from .laws_from_data import given_to
from .layers import CONVS, LINEARS, Case, case


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

    def case(self, linear: str, conv: str) -> Case:
        """The base layer of one of these names, whichever is of this adapter's kind."""
        return case(self.kind, linear if self.kind == "Linear" else conv)


# The 22 on linear layers and convolutions.
ADAPTERS = tuple(Adapter(method, kind) for kind in ("Linear", "Conv") for method in METHODS)


def adapters(*methods: str, linear: Iterable[str] = ("plain",), conv: Iterable[str] = ("plain",)):
    """Parametrises a test by `adapter` and `base`: these methods (all) on these layers."""
    return on_cases(pairs(*methods, Linear=linear, Conv=conv))


def pairs(*methods: str, **names: Iterable[str]) -> list[tuple[Adapter, Case]]:
    """These methods (all) on the layers of these names, by their kind."""
    return [
        (Adapter(method, kind), case(kind, name))
        for kind, of_kind in names.items()
        for method in methods or METHODS
        for name in of_kind
    ]


def on_cases(pairs: Iterable[tuple[Adapter, Case]], layers: int = 1):
    """Parametrises a test by `adapter` and `base`, by those pairs that `pairwise` keeps."""
    named = {
        (adapter.method, (adapter.kind, base.name)): (adapter, base) for adapter, base in pairs
    }
    chosen = [named[names] for names in pairwise(named, layers)]
    cases = [pytest.param(*pair, id=f"{pair[0].name}-{pair[1].name}") for pair in chosen]
    # The scope keeps the tests of one case together, so that one process compiles what they share.
    return pytest.mark.parametrize(("adapter", "base"), cases, scope="module")


def each(*methods: str):
    """Parametrises a test by `adapter` alone: these methods (all), on a kind of layer or both."""
    pairs = [(a.method, a.kind) for a in ADAPTERS if not methods or a.method in methods]
    chosen = [Adapter(*names) for names in pairwise(pairs)]
    return pytest.mark.parametrize("adapter", chosen, ids=lambda a: a.name, scope="module")


def everywhere(*methods: str):
    """Parametrises a test by these methods (all) on every layer there is."""
    return adapters(*methods, linear=LINEARS, conv=CONVS)


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
    if hasattr(wrapper, "projections"):  # VeRA's and RandLoRA's random matrices
        arrays.A, arrays.B = (
            np.asarray(x).astype(np.float64)
            for x in wrapper.projections(jnp.zeros(base.matrix().shape))
        )
    vars(arrays).update(fields)
    return reference(adapter.method, arrays, base.matrix(), base.rank, wrapper.alpha)


@functools.cache
def _key() -> jax.Array:
    with jax.ensure_compile_time_eval():  # the first that asks may be traced
        return jax.random.key(11)
