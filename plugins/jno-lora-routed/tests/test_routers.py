"""The routers keep their contract, and `check_router` notices routers that do not."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from jno.lora import WrapperError
from jno.lora.testing import ConformanceError
from jno_lora_routed import Given, Prototypes, Router, Softmax, Tasks, TopK
from jno_lora_routed.testing import check_router


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


def test_slots_in_groups():
    key = jax.random.key(0)
    router = Tasks(6, 4, key=key, dtype=jnp.float32, tasks=2, splits=2)
    weights = router(jnp.ones(6))
    assert router.total() == 2.0 == jnp.sum(weights)
    assert jnp.sum(weights[:2]) == 1.0


class OneTooMany(Softmax):
    def __call__(self, x, *, key=None):
        return jnp.pad(super().__call__(x), (0, 1))


class InFloat32(Softmax):
    def __call__(self, x, *, key=None):
        return jax.nn.softmax(self.logits(x))


class Divides(Softmax):
    def __call__(self, x, *, key=None):
        z = self.logits(x)
        return (z / jnp.sum(z)).astype(x.dtype)  # 0 / 0


class Sigmoid(Softmax):
    def __call__(self, x, *, key=None):
        return jax.nn.sigmoid(self.logits(x)).astype(x.dtype)


CALLS = []


class Counts(Softmax):
    def __call__(self, x, *, key=None):
        CALLS.append(None)
        return jnp.roll(super().__call__(x), len(CALLS))


class ReadsTheBatch(Softmax):
    def __call__(self, x, *, key=None):
        is_mapped = type(x).__name__ == "BatchTracer"
        return super().__call__(-x if is_mapped else x)


class Detached(Softmax):
    def __call__(self, x, *, key=None):
        return jax.lax.stop_gradient(super().__call__(x))


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


class StartsAtNaN(Router):
    slots: int = eqx.field(static=True)
    weight: jax.Array

    def __init__(self, inputs, slots, *, key, dtype):
        self.slots, self.weight = slots, jnp.full((slots, inputs), jnp.nan, dtype)

    def __call__(self, x, *, key=None):
        return jax.nn.softmax(self.weight.astype(x.dtype) @ x)


@pytest.mark.parametrize(
    ("law", "router", "options"),
    [
        ("shape", OneTooMany, {}),
        ("dtype", InFloat32, {}),
        ("finite", Divides, {}),
        ("total", Sigmoid, {}),
        ("same", Counts, {}),
        ("map", ReadsTheBatch, {}),
        ("gradient", Detached, {}),
        ("arrays", WithANumber, {}),
        ("start", StartsAtNaN, {}),
        ("file", Lost, {"power": 2.0}),
    ],
)
def test_each_law_notices(law, router, options):
    with pytest.raises(ConformanceError, match=rf"\[{law}\] "):
        check_router(router, options=options)


def test_options_without_a_default():
    with pytest.raises(ConformanceError, match=r"\[start\] .*need defaults: .*'depth'"):
        check_router(NeedsAnOption, options={"depth": 2})


def test_a_frozen_name_must_be_a_field():
    class Misspelt(Softmax):
        frozen = ("wieght",)

    with pytest.raises(WrapperError, match=r"frozen` names wieght, but the fields are .*weight"):
        check_router(Misspelt)
