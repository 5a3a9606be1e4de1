"""A user of PEFT types PEFT's words first. The error gives the call in our words."""

import dataclasses
import inspect
import re

import equinox as eqx
import jax
import pytest

from jno.lora import LoRAWrapper, Net, Registry, SelectionError, apply_lora, calibrate, plan_lora

from .toys import ToyLinear

KEY = jax.random.key(0)
MODEL = {"self_attn": {"q_proj": eqx.nn.Linear(3, 4, key=KEY)}, "out": eqx.nn.Linear(4, 2, key=KEY)}


def registry_of(cls) -> Registry:
    registry = Registry(discover=False)
    registry.register(cls)
    return registry


def the_call_in(error) -> str:
    lines = str(error.value).splitlines()
    return lines[lines.index("Here, the call is:") + 1].strip()


def test_the_error_gives_a_call_that_works():
    net = Net(MODEL, registry=registry_of(ToyLinear))
    with pytest.raises(SelectionError, match="words of PEFT") as error:
        net.lora(r=2, lora_alpha=8, target_modules=["self_attn.q_proj"], wrapper=ToyLinear)
    call = the_call_in(error)
    assert call == (
        f"net.lora(wrapper={ToyLinear!r}, rank=2, alpha=8, target=['self_attn.q_proj'])"
    )
    eval(call.replace(repr(ToyLinear), "ToyLinear"), {"net": net, "ToyLinear": ToyLinear})
    (row,) = net.summary()
    assert (row.path, row.rank, row.alpha) == ("self_attn/q_proj", 2, 8)


@pytest.mark.parametrize(
    ("arguments", "translated"),
    [
        ({"use_dora": True}, "wrapper='dora'"),
        ({"use_rslora": True}, "wrapper='rslora'"),
        ({"init_lora_weights": "lora_ga"}, "wrapper='lora-ga'"),
        ({"lora_dropout": 0.1, "lora_bias": True}, 'options={"dropout": 0.1, "bias": "train"}'),
    ],
)
def test_switches_of_peft_are_wrappers_and_options(arguments, translated):
    with pytest.raises(TypeError, match="PEFT") as error:
        Net(MODEL).lora(**arguments)
    assert the_call_in(error) == f"net.lora({translated})"


@pytest.mark.parametrize(
    "word",
    [
        "modules_to_save",
        "exclude_modules",
        "rank_pattern",
        "layers_to_transform",
        "bias",
        "task_type",
    ],
)
def test_words_without_an_argument_here_get_advice(word):
    with pytest.raises(SelectionError, match=rf"  - {word}: \w+"):
        Net(MODEL).plan(**{word: "all"})


@pytest.mark.parametrize(
    ("arguments", "call", "advice"),
    [
        ({"use_dora": True, "lora_dropout": 0.1}, "wrapper='dora'", "lora_dropout: dora has no"),
        ({"use_dora": True, "use_rslora": True}, "wrapper='dora'", "use_rslora: no adapter here"),
        ({"r": 8, "target_modules": r".*\.q"}, "rank=8, alpha=8", "target_modules: write a regex"),
        ({"target_modules": {"v", "q"}}, "target=['q', 'v']", ""),
        ({"r": 8, "alpha": 2}, "alpha=2, rank=8", ""),
        ({"lora_alpha": 16}, "alpha=16, rank=8", ""),
        (
            {"init_lora_weights": "pissa_niter_16"},
            """wrapper='pissa', options={"svd": "randomized"}""",
            "",
        ),
        (
            {"r": 8, "use_qalora": True},
            "rank=8, alpha=8",
            "use_qalora: no argument here; docs/peft",
        ),
    ],
)
def test_no_call_is_given_that_fails_or_drops_a_word(arguments, call, advice):
    with pytest.raises(SelectionError, match="of PEFT") as error:
        Net(MODEL).lora(**arguments)
    assert the_call_in(error) == f"net.lora({call})"
    assert advice in str(error.value)


def test_positional_arguments_stay_in_the_call():
    with pytest.raises(SelectionError, match="of PEFT") as error:
        Net(MODEL).lora(2, lora_alpha=8)
    assert the_call_in(error) == "net.lora(rank=2, alpha=8)"
    with pytest.raises(SelectionError, match="of PEFT") as error:
        apply_lora(MODEL, 2, lora_alpha=8, key=KEY)
    assert the_call_in(error).replace(repr(KEY), "key") == (
        "apply_lora(model, rank=2, key=key, alpha=8)"
    )


@dataclasses.dataclass
class LoraConfig:
    """The part of PEFT's class that matters: fields with defaults, and fields that it fills."""

    r: int = 8
    lora_alpha: int = 8
    target_modules: set[str] | None = None
    use_dora: bool = False
    rank_pattern: dict[str, int] = dataclasses.field(default_factory=dict)
    peft_type: str | None = None
    peft_version: str = "0.21"


LoraConfig.__module__ = "peft.tuners.lora.config"


def test_a_configuration_of_peft_is_translated():
    config = LoraConfig(r=2, lora_alpha=4, target_modules={"v", "q"}, peft_type="LORA")
    for call in (
        lambda: Net(MODEL).lora(config),
        lambda: Net(MODEL).lora(peft_config=config),
        lambda: apply_lora(MODEL, config),
    ):
        with pytest.raises(SelectionError, match=r"\(\) takes no LoraConfig of PEFT\.") as error:
            call()
        arguments = the_call_in(error).partition("rank")
        assert "".join(arguments[1:]) == "rank=2, alpha=4, target=['q', 'v'])"
        assert "  - " not in str(error.value)
    with pytest.raises(SelectionError) as error:
        Net(MODEL).lora(LoraConfig())
    assert the_call_in(error) == "net.lora(rank=8, alpha=8)"
    with pytest.raises(SelectionError, match="peft_type: `wrapper` is the method"):
        Net(MODEL).lora(dataclasses.replace(config, peft_type="IA3"))


def test_calibrate_knows_the_words_too():
    with pytest.raises(SelectionError, match=r"calibrate\(\) has no argument 'target_modules'"):
        calibrate(MODEL, [], lambda model, batch: 0.0, target_modules=["q_proj"])


def test_functions_use_their_argument_for_adapters():
    with pytest.raises(SelectionError) as error:
        apply_lora(MODEL, r=2, use_dora=True, key=KEY)
    assert the_call_in(error) == "apply_lora(model, key=key, rank=2, alpha=8, wrappers='dora')"
    with pytest.raises(SelectionError, match=r"plan_lora\(\) has no argument 'r'"):
        plan_lora(MODEL, r=2)


def test_any_unknown_argument_gets_the_nearest_and_stays_a_type_error():
    with pytest.raises(
        TypeError, match=r"'wrapper'; did you mean 'wrappers'.*Its arguments are model"
    ):
        apply_lora(MODEL, 2, wrapper="lora", key=KEY)


def test_the_signature_is_the_signature_of_the_function():
    assert list(inspect.signature(Net.lora).parameters)[:3] == ["self", "rank", "alpha"]


def test_keys_of_specs_too():
    with pytest.raises(
        SelectionError, match=r'specs\[0\].*words of PEFT(.|\n)*"rank": 2(.|\n)*bias'
    ):
        plan_lora(MODEL, specs=[{"r": 2, "bias": "all"}])


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("prompt_tuning", "further tokens"),
        ("loftq", "jno_lora_quantized.loftq"),
        ("lora+", "lora_plus"),
        ("QLoRA", "jno_lora_quantized.quantize"),
        ("X-LoRA", "by weights that depend on the input: see jno_lora_routed"),
        ("aLoRA", "activated-lora"),
    ],
)
def test_methods_of_peft_get_a_true_answer(name, truth):
    registry = Registry(discover=False)
    with pytest.raises(SelectionError, match=re.escape(truth)):
        registry.resolve(name)


def test_an_adapter_of_that_name_comes_first():
    class LoftQ(ToyLinear):
        variant = "loftq"

    assert registry_of(LoftQ).resolve("loftq") == (LoftQ,)
    assert issubclass(LoftQ, LoRAWrapper)


def test_a_dot_in_a_list_of_names_is_a_slash():
    dots, slashes = (
        plan_lora(MODEL, 2, target=[name], wrappers=ToyLinear)
        for name in ("self_attn.q_proj", "self_attn/q_proj")
    )
    assert dots.rows == slashes.rows
    assert dots.wrapped[0].path == "self_attn/q_proj"


@pytest.mark.usefixtures("unchecked")
def test_several_names_to_activate_are_refused():
    message = r"must be a string, but is \['a', 'b'\].*net\.activate\('a', 'b'\)"
    with pytest.raises(SelectionError, match=message):
        Net(MODEL).activate(["a", "b"])
