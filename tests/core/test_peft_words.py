"""A user of PEFT types PEFT's words first. The error says what they are called here."""

import equinox as eqx
import jax
import pytest

from jno.lora import Net, SelectionError, apply_lora, plan_lora

KEY = jax.random.key(0)
LAYER = eqx.nn.Linear(3, 4, key=KEY)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        ({"r": 8, "lora_alpha": 16}, ["net.lora()", "r is rank", "lora_alpha is alpha"]),
        ({"target_modules": ["q"]}, ["target_modules is target"]),
        ({"use_dora": True}, ['wrapper="dora"']),
        ({"rnak": 8}, ["rnak: did you mean 'rank'?"]),
    ],
)
def test_an_unknown_argument_is_explained(arguments, facts):
    with pytest.raises(SelectionError) as error:
        Net(LAYER).lora(**arguments)
    assert all(fact in str(error.value) for fact in facts)
    assert isinstance(error.value, TypeError)


@pytest.mark.parametrize("function", [apply_lora, plan_lora, Net(LAYER).plan])
def test_the_functions_know_the_words_too(function):
    with pytest.raises(TypeError, match="r is rank"):
        function(LAYER, r=8)


def test_a_spec_knows_the_words_too(unchecked):
    for spec, facts in [({"r": 8, "wraper": 1}, ["r is rank", "'wrapper'"]), ({0: 1}, ["no 0."])]:
        with pytest.raises(SelectionError, match=r"specs\[0\], a spec, has no") as error:
            Net(LAYER).lora(specs=[spec])
        assert all(fact in str(error.value) for fact in facts)
