"""The layer classes of e3nn-jax and nequix, recognised without importing these libraries."""

from typing import Any

from jaxtyping import Array

from jno_lora_zoo import ByName


class E3nnLinear(metaclass=ByName):
    """`e3nn_jax.equinox.Linear` and its subclasses."""

    irreps_in: Any
    irreps_out: Any
    linear_type: str
    channel_out: int | None
    _linear: Any  # e3nn's functional layer, with the instructions
    _weights: dict[str, Array]

    names = frozenset({("e3nn_jax._src.linear_equinox", "Linear")})


class NequixLinear(metaclass=ByName):
    """`nequix.model.Linear`, the layers of the radial networks, and its subclasses."""

    weights: Array

    names = frozenset({("nequix.model", "Linear")})
