"""The case of the adapter that needs an option, for `jno-lora check jno-lora-routed`."""

from collections.abc import Callable

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from jno_lora_testing import WrapperCase

from ._activated import ActivatedLoRA, with_invocation

_INVOCATION = (3, 4)
_TOKENS = np.asarray([1, *_INVOCATION, 2])  # the first is not active


def _call(layer: Callable[[Array], Array], x: Float[Array, "tokens in"]) -> Array:
    if isinstance(layer, ActivatedLoRA):
        layer = with_invocation(layer, _TOKENS, axis="tokens")
    return jax.vmap(layer, axis_name="tokens")(x)


CASES = [
    WrapperCase(
        ActivatedLoRA,
        base=lambda key: eqx.nn.Linear(6, 5, key=key),
        inputs=lambda key: (jax.random.normal(key, (len(_TOKENS), 6)),),
        options={"invocation": _INVOCATION},
        call=_call,
        parameters=2 * (6 + 5),
    )
]
