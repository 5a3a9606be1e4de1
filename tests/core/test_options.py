"""`options`: further arguments of an adapter's constructor."""

import enum
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jno.lora import (
    SelectionError,
    WrapperError,
    apply_lora,
    extract_adapters,
    merge_lora,
    plan_lora,
)

from .toys import ToyLinear, ToyScale


def test_options_reach_the_constructor_and_a_spec_may_have_its_own(model, getkey):
    class Scaled(ToyScale):
        def __init__(self, base, rank, alpha, *, key, start=1.0):
            ToyScale.__init__(self, base, rank, alpha, key=key)
            self.gain = jnp.full(base.out_features, start)

    specs = [{"target": "head", "options": {"start": 3.0}}, {}]
    adapted = apply_lora(
        model, 1, key=getkey(), wrapper=Scaled, specs=specs, options={"start": 2.0}
    )
    assert adapted.head.gain[0] == 3.0 and adapted.encoder[0].gain[0] == 2.0


class Keeping(ToyScale):
    """Keeps an option as a static field."""

    kept: object = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key, kept=1.0):
        ToyScale.__init__(self, base, rank, alpha, key=key)
        self.kept = kept
        self.gain = jnp.full(base.out_features, kept, jnp.float32)


@pytest.mark.parametrize(
    "number", [np.float32(2), np.int64(2), np.bool_(True), jnp.bfloat16.dtype.type(2)]
)
def test_a_numpy_number_among_the_options_may_be_kept_as_a_static_field(model, getkey, number):
    options = {"kept": number}
    adapted = apply_lora(model, 1, key=getkey(), wrapper=Keeping, options=options)
    assert adapted.head.kept == number and not eqx.is_array(adapted.head.kept)
    assert merge_lora(adapted).head.weight[0, 0] == float(number) * model.head.weight[0, 0]


def test_an_array_among_the_options_that_is_kept_as_a_static_field_is_warned_of(model, getkey):
    two = jnp.float32(2)
    with pytest.warns(UserWarning, match="set as static"):
        adapted = apply_lora(model, 1, key=getkey(), wrapper=Keeping, options={"kept": two})
    assert adapted.head.kept is two
    assert merge_lora(adapted).head.weight[0, 0] == 2 * model.head.weight[0, 0]


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        (Keeping, "has no option 'kpt'.\n  - kpt: did you mean 'kept'?\nThere are kept."),
        (ToyLinear, "has no option 'kpt'.\nThere are none."),
    ],
)
def test_an_option_that_the_adapter_lacks_is_named_with_the_nearest(model, getkey, wrapper, said):
    with pytest.raises(SelectionError) as caught:
        apply_lora(model, 1, key=getkey(), wrapper=wrapper, options={"kpt": 1})
    where = f"{wrapper.__name__}, the adapter for the Linear at 'encoder/0', "
    assert str(caught.value).startswith(where + said)
    with pytest.raises(SelectionError, match="has no option 'kpt'"):
        plan_lora(model, 1, wrapper=wrapper, options={"kpt": 1})


def test_an_option_of_another_adapter_of_the_call_is_none_of_this(model, getkey):
    specs = [{"target": "encoder", "wrapper": ToyLinear}, {"target": "head", "wrapper": Keeping}]
    with pytest.raises(SelectionError, match=r"ToyLinear.* no option 'kept'"):
        apply_lora(model, 1, key=getkey(), specs=specs, options={"kept": 1})


@pytest.mark.parametrize("given", ["base", "rank", "alpha", "key"])
def test_arguments_of_the_call_are_refused_as_options(model, getkey, given):
    with pytest.raises(SelectionError, match=f"no option '{given}'(.|\n)*There are kept"):
        apply_lora(model, 1, key=getkey(), wrapper=Keeping, options={given: 1})


def test_options_are_checked_before_any_adapter_is_built(model, getkey):
    built = []

    class Counting(ToyLinear):
        def __init__(self, base, rank, alpha, *, key):
            built.append(base)
            ToyLinear.__init__(self, base, rank, alpha, key=key)

    specs = [{"target": "encoder"}, {"target": "head", "options": {"kpt": 1}}]
    with pytest.raises(SelectionError, match="'head'"):
        apply_lora(model, 1, key=getkey(), wrapper=Counting, specs=specs)
    assert not built


def test_a_constructor_with_keyword_arguments_takes_any_option(model, getkey):
    class Open(Keeping):
        def __init__(self, base, rank, alpha, *, key, **options):
            Keeping.__init__(self, base, rank, alpha, key=key, kept=len(options))

    options = {"anything": 1}
    adapted = apply_lora(model, 1, key=getkey(), target="head", wrapper=Open, options=options)
    assert adapted.head.kept == 1


class Way(enum.Enum):
    UP = 1
    DOWN = 2


class Told(ToyScale):
    """Keeps an option as a static field, and in no array."""

    told: Any = eqx.field(static=True)

    def __init__(self, base, rank, alpha, *, key, told=Way.UP):
        ToyScale.__init__(self, base, rank, alpha, key=key)
        self.told = told


@pytest.mark.parametrize("told", [Way.DOWN, 2, [1], float("inf")], ids=str)
def test_an_option_that_a_file_would_lose_is_refused(told):
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    adapted = Told(linear, 1, 1.0, key=jax.random.key(0), told=told)
    said = re.escape(f"`told`, which is {told!r}, would be {Way.UP!r}")
    with pytest.raises(WrapperError, match=said):
        extract_adapters([adapted, adapted])


@pytest.mark.parametrize(
    "told",
    [Way.UP, jnp.tanh, object(), float("nan")],
    ids=["equal", "function", "object", "nan"],
)
def test_a_value_without_equality_is_not_an_option_that_is_lost(told):
    linear = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    adapted = Told(linear, 1, 1.0, key=jax.random.key(0), told=told)
    assert list(extract_adapters([adapted])) == ["0"]
