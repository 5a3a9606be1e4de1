"""Words of PEFT, and the words for the same things here."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from ._errors import SelectionError

F = TypeVar("F", bound=Callable[..., Any])


class UnknownArgumentError(SelectionError, TypeError):
    """A function has no argument of that name. Python itself would raise a `TypeError`."""


# By argument of PEFT: the argument here of the same value.
_SAME = {"r": "rank", "lora_alpha": "alpha", "target_modules": "target"}
# Switches, and the variants that they stand for.
_VARIANTS = {"use_dora": "dora", "use_rslora": "rslora"}
_STARTS = ("corda", "eva", "lora_ga", "olora", "pissa")
_OPTIONS = {"lora_dropout": '"dropout": {!r}', "lora_bias": '"bias": "train"'}
_SPECS = 'specs=[{"target": "q_proj", "rank": 4}, {"target": "v_proj"}]'
_ADVICE = {
    "modules_to_save": "afterwards, net.mask(regex of the paths).unfreeze() trains whole layers",
    "exclude_modules": "before, net.mask(regex of the paths to adapt) narrows the call",
    "layers_to_transform": 'a regex selects blocks, such as target="layers/[01]/"',
    "layers_pattern": 'a regex selects blocks, such as target="layers/[01]/"',
    "rank_pattern": f"give each target its rank: {_SPECS}",
    "alpha_pattern": "give each target its alpha, by `specs`",
    "bias": "afterwards, net.mask(regex of the biases).unfreeze() trains biases",
    "init_lora_weights": "each start is a wrapper here, such as wrapper='pissa'",
    "target_parameters": "declare bare arrays by jno_lora_arrays (jno-lora[arrays])",
    "loftq_config": "call jno_lora_quantized.loftq (jno-lora[quantized])",
    "adapter_name": "afterwards, net.add_adapter(name) names the adapters",
    "task_type": "give the task to save_peft",
    "base_model_name_or_path": "give the name to save_peft",
    "fan_in_fan_out": "leave it out: a layer's class says how its weight lies",
    "inference_mode": "leave it out: eqx.nn.inference_mode(model) turns dropout off",
    "peft_config": "give the fields of the configuration as arguments",
}
WORDS = frozenset({*_SAME, *_VARIANTS, *_OPTIONS, *_ADVICE})

_TOKENS = "gives the model further tokens, and changes no layer"
_ROUTED = "mixes several adapters, by weights that depend on the input"
# By name of a method of PEFT, without case, dashes and underscores.
_METHODS = {
    **dict.fromkeys(
        ("prompttuning", "multitaskprompttuning", "prefixtuning", "ptuning", "cpt", "cartridge"),
        _TOKENS,
    ),
    **dict.fromkeys(("adaptionprompt", "llamaadapter"), _TOKENS),
    **dict.fromkeys(("xlora", "poly", "lily", "arrow", "moelora"), _ROUTED),
    "alora": "acts from certain tokens on",
    "peanut": "has an update that depends on the input through an activation function",
    "shadow": "runs a small network beside the model",
    "loftq": "is a start beside a quantised weight: call jno_lora_quantized.loftq "
    "(jno-lora[quantized]) on an adapted model",
    "qlora": "is LoRA on a quantised model: call jno_lora_quantized.quantize "
    '(jno-lora[quantized]), then net.lora(wrapper="lora")',
    "lora+": 'is an optimiser for LoRA: wrapper="lora", with jno.lora.optim.lora_plus',
    "loraplus": 'is an optimiser for LoRA: wrapper="lora", with jno.lora.optim.lora_plus',
    "lntuning": "trains norms, and adds nothing to a layer: "
    "net.mask(regex of the norms).unfreeze()",
    "trainabletokens": "trains rows of an embedding, and adds nothing to a layer",
}


def method_of_peft(name: str) -> str | None:
    """The truth about a name of PEFT that no adapter here has: what the method is."""
    return _METHODS.get(re.sub(r"[-_ ]", "", name).lower())


def knows_words_of_peft(function: F) -> F:
    """A decorator: an unknown argument gets an error that gives the call in our words."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: Any, **arguments: Any) -> Any:
        if unknown := arguments.keys() - set(names):
            unknown = [name for name in arguments if name in unknown]
            called = function.__qualname__.replace("Net.", "net.")
            raise UnknownArgumentError(_explained(called, names, arguments, unknown))
        return function(*args, **arguments)

    return cast(F, checked)


def _explained(
    called: str, names: list[str], arguments: Mapping[str, Any], unknown: list[str]
) -> str:
    head = f"{called}() has no argument {', '.join(map(repr, unknown))}"
    if not WORDS.intersection(unknown):
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return f"{head}{hint} Its arguments are {', '.join(names)}."
    texts = {name: _text(name, arguments[name]) for name in arguments if name in names}
    translated, advice = in_our_words({name: arguments[name] for name in unknown})
    if "wrappers" in names and "wrapper" in translated:
        translated["wrappers"] = translated.pop("wrapper")
    lines = [f"{head}, which {'is a word' if len(unknown) == 1 else 'are words'} of PEFT."]
    if translated:
        call = ", ".join(f"{name}={text}" for name, text in (texts | translated).items())
        given = "model, " if "model" in names else ""
        lines += ["Here, the call is:", f"    {called}({given}{call})"]
    lines += [f"  - {name}: {text}" for name, text in advice.items()]
    return "\n".join([*lines, "docs/peft.md has a table of PEFT's words."])


def _text(name: str, value: Any) -> str:
    """The source text of an argument. A long value, such as an array, has the argument's name."""
    text = repr(value)
    return name if len(text) > 60 or "Array(" in text else text


def in_our_words(given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Arguments here for arguments of PEFT, as source text; and advice where there is none."""
    arguments: dict[str, str] = {}
    advice: dict[str, str] = {}
    options: list[str] = []
    for name, value in given.items():
        if name in _SAME:
            arguments[_SAME[name]] = repr(value)
        elif name in _VARIANTS and value:
            arguments["wrapper"] = repr(_VARIANTS[name])
        elif name in _OPTIONS and value:
            options.append(_OPTIONS[name].format(value))
        elif name == "init_lora_weights" and value in _STARTS:
            arguments["wrapper"] = repr(value.replace("_", "-"))
        elif name in WORDS and (not value or value == "none"):
            advice[name] = f"leave {name}={value!r} out: nothing is done without it"
        elif name in _ADVICE:
            advice[name] = _ADVICE[name]
        else:
            advice[name] = "no argument here has this meaning"
    if options:
        arguments["options"] = f"{{{', '.join(options)}}}"
    return arguments, advice
