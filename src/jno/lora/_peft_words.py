"""Words of PEFT, and the words for the same things here."""

import dataclasses
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
# Options of LoRA and its nearest relatives.
_OPTIONS = {"lora_dropout": '"dropout": {!r}', "lora_bias": '"bias": "train"'}
_WITH_OPTIONS = ("lora", "rslora")
_SPECS = 'specs=[{"target": "q_proj", "rank": 4}, {"target": "v_proj"}]'
_BLOCKS = 'a regex selects blocks, such as target="layers/[01]/"'
_ADVICE = {
    "modules_to_save": "afterwards, net.mask(regex of the paths).unfreeze() trains whole layers",
    "exclude_modules": "before, net.mask(regex of the paths to adapt) narrows the call",
    "layers_to_transform": _BLOCKS,
    "layers_pattern": _BLOCKS,
    "rank_pattern": f"give each target its rank: {_SPECS}",
    "alpha_pattern": "give each target its alpha, by `specs`",
    "bias": "afterwards, net.mask(regex of the biases).unfreeze() trains biases",
    "init_lora_weights": "leave it out: other starts are wrappers here, such as 'pissa'",
    "target_parameters": "declare bare arrays by jno_lora_arrays (jno-lora[arrays])",
    "alora_invocation_tokens": "wrapper='activated-lora', options={'invocation': tokens} "
    "(jno-lora[routed])",
    "loftq_config": "call jno_lora_quantized.loftq (jno-lora[quantized])",
    "adapter_name": "afterwards, net.add_adapter(name) names the adapters",
    "task_type": "give the task to save_peft",
    "base_model_name_or_path": "give the name to save_peft",
    "fan_in_fan_out": "leave it out: a layer's class says how its weight lies",
    "inference_mode": "leave it out: eqx.nn.inference_mode(model) turns dropout off",
    "peft_config": "give the fields of the configuration as arguments",
    "peft_type": "`wrapper` is the method; docs/peft.md lists PEFT's types",
    "init_weights": "leave it out: each method starts as in its paper",
    "feedforward_modules": "give these layers wrapper='ia3-in' and other layers 'ia3-out', by "
    "`specs`",
    **dict.fromkeys(
        ("eva_config", "corda_config", "lora_ga_config"), "give `options`, and `calibrate=`"
    ),
}
_OTHER_FIELDS = (
    "arrow_config auto_mapping ensure_weight_tying kasa_config "
    "layer_replication megatron_config megatron_core monteclora_config peft_version "
    "qalora_group_size revision runtime_config trainable_token_indices use_bdlora use_qalora "
    "velora_config"
)
_ADVICE |= dict.fromkeys(_OTHER_FIELDS.split(), "no argument here; docs/peft.md says more")
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
    **dict.fromkeys(("poly", "lily", "moelora"), f"{_ROUTED}: install jno-lora[routed]"),
    **dict.fromkeys(("arrow", "xlora"), f"{_ROUTED}: see jno_lora_routed (jno-lora[routed])"),
    "alora": 'acts from certain tokens on: wrapper="activated-lora" (jno-lora[routed])',
    "peanut": "has an update that is a small network of the layer's weight: install "
    "jno-lora[routed]",
    "bone": 'is called MiSS now: wrapper="miss"',
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
    """A decorator: an unknown argument gets an error that gives the call in our words.

    So does a configuration of PEFT in the place of an argument.
    """
    parameters = [*inspect.signature(function).parameters]
    names = [name for name in parameters if name != "self"]

    @functools.wraps(function)
    def checked(*args: Any, **arguments: Any) -> Any:
        given = dict(zip(parameters, args, strict=False)) | arguments
        unknown = [name for name in arguments if name not in names]
        config = next(filter(_is_config, given.values()), None)
        if unknown or config is not None:
            called = function.__qualname__.replace("Net.", "net.")
            if config is None:
                head = f"has no argument{'s' * (len(unknown) > 1)} {', '.join(map(repr, unknown))}"
            else:
                fields = _fields(config)
                given = {name: value for name, value in given.items() if value is not config}
                given, unknown = given | fields, [*fields]
                head = f"takes no {type(config).__name__}"
            raise UnknownArgumentError(_explained(called, head, names, given, unknown))
        return function(*args, **arguments)

    return cast(F, checked)


def _is_config(value: Any) -> bool:
    is_of_peft = type(value).__module__.partition(".")[0] == "peft"
    return is_of_peft and dataclasses.is_dataclass(value)


def _fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration that say something. PEFT's rank and alpha always do."""
    defaults = {"peft_type": "LORA", "peft_version": config.__dict__.get("peft_version")}
    for field in dataclasses.fields(config):
        if field.default_factory is not dataclasses.MISSING:
            defaults.setdefault(field.name, field.default_factory())
        else:
            defaults.setdefault(field.name, field.default)
    defaults |= dict.fromkeys(("r", "lora_alpha"))
    return {name: value for name, value in vars(config).items() if defaults.get(name) != value}


def _explained(
    called: str, head: str, names: list[str], given: Mapping[str, Any], unknown: list[str]
) -> str:
    if unknown and not WORDS.intersection(unknown):
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        options = " `options` holds arguments of one method." if "options" in names else ""
        return f"{called}() {head}{hint} Its arguments are {', '.join(names)}.{options}"
    texts = {name: _text(name, given[name]) for name in given if name in names and name != "model"}
    translated, advice = in_our_words({name: given[name] for name in unknown})
    if "lora_alpha" in unknown:
        translated.setdefault("rank", "8")  # PEFT's default
    for name in {"rank", "alpha"} & given.keys():  # the arguments here, in the place of defaults
        translated.pop(name, None)
    if "wrappers" in names and "wrapper" in translated:
        translated["wrappers"] = translated.pop("wrapper")
    is_word = "" if head.startswith("takes") else "which is a word "
    is_word = "which are words " if is_word and len(unknown) > 1 else is_word
    lines = [f"{called}() {head}{', ' if is_word else ' '}{is_word}of PEFT."]
    if translated:
        call = ", ".join(f"{name}={text}" for name, text in (texts | translated).items())
        model = "model, " if "model" in names else ""
        lines += ["Here, the call is:", f"    {called}({model}{call})"]
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
    variants: dict[str, str] = {}
    options: dict[str, str] = {}
    for name, value in given.items():
        if name in WORDS and name not in _SAME and (not value or value == "none"):
            advice[name] = f"leave {name}={value!r} out: nothing is done without it"
        elif name == "target_modules" and isinstance(value, str) and "\\." in value:
            advice[name] = "write a regex on paths with slashes; it is searched, not matched"
        elif name in _SAME:
            arguments[_SAME[name]] = repr(sorted(value) if isinstance(value, set) else value)
        elif name in _VARIANTS:
            variants[name] = _VARIANTS[name]
        elif name in _OPTIONS:
            options[name] = _OPTIONS[name].format(value)
        elif name == "init_lora_weights" and str(value).startswith(_STARTS):
            start, _, rounds = str(value).partition("_niter")
            variants[name] = start.replace("_", "-")
            options |= {name: '"svd": "randomized"'} if rounds else {}
        else:
            advice[name] = _ADVICE.get(name, "no argument here has this meaning")
    if "r" in given and "lora_alpha" not in given:
        arguments["alpha"] = "8"  # PEFT's default
    chosen = next(iter(variants.values()), "lora")
    if variants:
        arguments["wrapper"] = repr(chosen)
    for name in [*variants][1:]:
        advice[name] = f"no adapter here is {chosen} and {variants[name]}: choose"
    for name in [name for name in options if name in _OPTIONS and chosen not in _WITH_OPTIONS]:
        del options[name]
        advice[name] = f"{chosen} has no such option here; docs/peft.md says what to do"
    if options:
        arguments["options"] = f"{{{', '.join(options.values())}}}"
    return arguments, advice
