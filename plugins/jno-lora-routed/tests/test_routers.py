"""The routers keep their contract, and `check_router` notices routers that do not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import WrapperError
from jno_lora_routed import Given, Prototypes, Softmax, Tasks, TopK
from jno_lora_routed.testing import check_router
from jno_lora_testing import ConformanceError


@pytest.mark.parametrize(
    ("router", "options"),
    [
        (Softmax, {}),
        (TopK, {"top_k": 2}),
        (Prototypes, {"top_k": 2, "temperature": 0.5}),
        (Tasks, {}),
        (Given, {}),
    ],
)
def test_check_router(router, options):
    assert check_router(router, options=options).slots == 3


def test_slots_in_groups_and_a_frozen_name_that_is_no_field():
    key = jax.random.key(0)
    router = Tasks(6, 4, key=key, dtype=jnp.float32, tasks=2, splits=2)
    weights = router(jnp.ones(6))
    assert router.total() == 2.0 == jnp.sum(weights)
    assert jnp.sum(weights[:2]) == 1.0
    misspelt = type("Misspelt", (Softmax,), {"frozen": ("wieght",)})
    with pytest.raises(WrapperError, match=r"frozen` names wieght, but the fields are .*weight"):
        check_router(misspelt)


CALLS = []


def counted(self, x, *, key=None):
    CALLS.append(None)
    return jnp.roll(Softmax.__call__(self, x), len(CALLS))


def read_from_the_batch(self, x, *, key=None):
    return Softmax.__call__(self, -x if type(x).__name__ == "BatchTracer" else x)


def divided(self, x, *, key=None):
    z = self.logits(x)
    return (z / jnp.sum(z)).astype(x.dtype)  # 0 / 0


# By law, a call that breaks it.
CALLED = {
    "shape": lambda self, x, *, key=None: jnp.pad(Softmax.__call__(self, x), (0, 1)),
    "dtype": lambda self, x, *, key=None: jax.nn.softmax(self.logits(x)),
    "finite": divided,
    "total": lambda self, x, *, key=None: jax.nn.sigmoid(self.logits(x)).astype(x.dtype),
    "same": counted,
    "map": read_from_the_batch,
    "gradient": lambda self, x, *, key=None: jax.lax.stop_gradient(Softmax.__call__(self, x)),
}


class Lost(Softmax):
    power: float = eqx.field(static=True)

    def __init__(self, inputs, slots, *, key, dtype, power=1.0):
        super().__init__(inputs, slots, key=key, dtype=dtype)
        self.power = power

    def __call__(self, x, *, key=None):
        return jax.nn.softmax(self.power * self.logits(x)).astype(x.dtype)


class WithANumber(Softmax):
    power: float

    def __init__(self, inputs, slots, *, key, dtype):
        super().__init__(inputs, slots, key=key, dtype=dtype)
        self.power = 1.0


class NeedsAnOption(Softmax):
    def __init__(self, inputs, slots, *, key, dtype, depth):
        super().__init__(inputs, slots, key=key, dtype=dtype)


class StartsAtNaN(Softmax):
    def __init__(self, inputs, slots, *, key, dtype):
        super().__init__(inputs, slots, key=key, dtype=dtype)
        self.weight = jnp.full((slots, inputs), jnp.nan, dtype)


@pytest.mark.parametrize(
    ("law", "router", "options"),
    [
        *((law, type(law, (Softmax,), {"__call__": call}), {}) for law, call in CALLED.items()),
        ("arrays", WithANumber, {}),
        ("start", StartsAtNaN, {}),
        ("file", Lost, {"power": 2.0}),
        ("start", NeedsAnOption, {"depth": 2}),
    ],
)
def test_each_law_notices(law, router, options):
    with pytest.raises(ConformanceError, match=rf"\[{law}\] "):
        check_router(router, options=options)
