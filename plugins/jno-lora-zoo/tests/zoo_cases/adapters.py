"""The 22 adapters, and how the tests build and move them."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jno_lora_zoo

from .laws import fields_of, reference
from .layers import CONVS, LINEARS, Case, case

METHODS = (
    "LoRA",
    "rsLoRA",
    "LoRAFA",
    "DoRA",
    "PiSSA",
    "LoRAXS",
    "VeRA",
    "MiLoRA",
    "IA3",
    "LoKr",
    "OFT",
)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One of the 22: a method on a kind of layer."""

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


ADAPTERS = tuple(Adapter(method, kind) for kind in ("Linear", "Conv") for method in METHODS)


def adapters(*methods: str, linear: Iterable[str] = ("plain",), conv: Iterable[str] = ("plain",)):
    """Parametrises a test by `adapter` and `base`: these methods (all) on these layers."""
    names = {"Linear": tuple(linear), "Conv": tuple(conv)}
    cases = [
        pytest.param(adapter, case(adapter.kind, name), id=f"{adapter.name}-{name}")
        for adapter in ADAPTERS
        if not methods or adapter.method in methods
        for name in names[adapter.kind]
    ]
    # The scope keeps the tests of one case together, so that one process compiles what they share.
    return pytest.mark.parametrize(("adapter", "base"), cases, scope="module")


def everywhere(*methods: str):
    """Parametrises a test by these methods (all) on every layer there is."""
    return adapters(*methods, linear=LINEARS, conv=CONVS)


def build(adapter: Adapter, base: Case | Any, alpha: float = 3.0, rank: int | None = None, **kw):
    """The adapter around the layer, as it starts."""
    if isinstance(base, Case):
        rank, base = base.rank if rank is None else rank, base.layer
    return adapter.cls(base, 2 if rank is None else rank, alpha, key=_key(), **kw)


def perturb(wrapper: Any, size: float = 0.4, seed: int = 0) -> Any:
    """The wrapper with every trained field moved at random, as after training."""
    rng = np.random.default_rng(seed)
    names = type(wrapper).adapter_fields
    old = [getattr(wrapper, name) for name in names]
    new = [x + jnp.asarray(size * rng.normal(size=x.shape), x.dtype) for x in old]
    return eqx.tree_at(lambda w: [getattr(w, name) for name in names], wrapper, new)


def law_of(adapter: Adapter, wrapper: Any, base: Case, **fields: Any) -> np.ndarray:
    """`W'` by the law in NumPy, for the wrapper's arrays (or other `fields`) and the base."""
    arrays = fields_of(wrapper)
    if adapter.method == "VeRA":
        arrays.A, arrays.B = (
            np.asarray(x).astype(np.float64)
            for x in wrapper.projections(jnp.zeros(base.matrix().shape))
        )
    vars(arrays).update(fields)
    return reference(adapter.method, arrays, base.matrix(), base.rank, wrapper.alpha)


@functools.cache
def _key() -> jax.Array:
    return jax.random.key(11)
