"""A user of PEFT types PEFT's words first. The error says what they are called here."""

import equinox as eqx
import jax
import pytest

from jno.lora import Net, SelectionError, apply_lora, plan_lora

KEY = jax.random.key(0)
LAYER = eqx.nn.Linear(3, 4, key=KEY)
NET = Net(LAYER)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: NET.lora(r=8, lora_alpha=16), ["net.lora()", "r is rank", "lora_alpha is alpha"]),
        (lambda: NET.lora(target_modules=["q"]), ["target_modules is target"]),
        (lambda: NET.lora(use_dora=True), ['wrapper="dora"']),
        (lambda: NET.lora(rnak=8), ["rnak: did you mean 'rank'?"]),
        (lambda: NET.plan(r=8), ["r is rank"]),
        (lambda: apply_lora(LAYER, r=8), ["r is rank"]),
        (lambda: plan_lora(LAYER, r=8), ["r is rank"]),
        (lambda: NET.lora(specs=[{"r": 8, "wraper": 1}]), ["specs[0]", "r is rank", "'wrapper'"]),
        (lambda: NET.lora(specs=[{0: 1}]), ["specs[0], a spec, has no 0."]),
    ],
)
def test_an_unknown_argument_is_explained(call, facts, unchecked):
    with pytest.raises(SelectionError) as error:
        call()
    assert all(fact in str(error.value) for fact in facts)
    assert isinstance(error.value, TypeError) or "specs[0]" in facts[0]
