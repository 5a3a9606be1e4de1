"""Random adapters, and random calls that ask for them in every way that there is."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from hypothesis import strategies as st

import jno_lora_attention as attention
import jno_lora_zoo as zoo
from jno.lora import LoRAWrapper, Registry

from .odd_nodes import EmbeddingAdapter, NodeAdapter, NormAdapter
from .random_models import TARGETS

METHODS = (
    *("LoRA", "rsLoRA", "LoRAFA", "DoRA", "PiSSA", "LoRAXS"),
    *("VeRA", "MiLoRA", "IA3", "LoKr", "OFT"),
)
# Their update is zero at first, so nothing is rounded: `W + s B A` with `B = 0`, `1 W`.
EXACT = {"LoRA", "rsLoRA", "LoRAFA", "LoRAXS", "VeRA", "IA3", "LoKr", "OFT"}
# They take their part out of the weight and add it again, which rounds it.
SPLITTING = {"PiSSA", "MiLoRA"}


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Adapters for several kinds of layer, in order of priority, and options for all of them."""

    method: str
    classes: tuple[type[LoRAWrapper], ...]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def call(self) -> dict[str, Any]:
        """Arguments that ask for them."""
        return {"wrappers": list(self.classes), "options": self.options}

    @property
    def coarsest(self) -> Any:
        """The dtype of their arrays, or that of most layers."""
        return self.options.get("adapter_dtype", jnp.float32)


def adapters_of(method: str) -> list[type[LoRAWrapper]]:
    """The adapters of a method for each kind of layer of the zoo."""
    kinds = ("Linear", "Conv", "ConvTranspose", "InNorm", "Embedding", "Recurrent")
    return [getattr(zoo, method + kind) for kind in kinds]


def _with_attention(name: str, method: str, **options: Any) -> Adapters:
    unit = getattr(attention, name)
    # Not for norms: none of these has an option for attention.
    others = () if "projections" in options else (zoo.LoRALinear, zoo.LoRAConv)
    return Adapters(method, (unit, *others), options)


BY_METHOD = [Adapters(method, tuple(adapters_of(method))) for method in METHODS]
WITH_OPTIONS = [
    Adapters("LoRA", tuple(adapters_of("LoRA")), {"adapter_dtype": jnp.bfloat16}),
    Adapters("DoRA", tuple(adapters_of("DoRA")), {"adapter_dtype": jnp.float16}),
    Adapters("LoKr", tuple(adapters_of("LoKr")), {"multiplier": 0.5}),
]
# The unit first: its projections are linear layers.
ATTENTION = [
    _with_attention("LoRAAttention", "LoRA"),
    _with_attention("LoRAAttention", "LoRA", projections="kvo"),
    _with_attention("IA3Attention", "IA3"),
]


CLASSES = [
    *(zoo.LoRALinear, zoo.DoRALinear, zoo.LoRAConv, zoo.LoRAInNorm, zoo.LoRAConvTranspose),
    *(zoo.LoRAEmbedding, attention.LoRAAttention, zoo.LoRARecurrent),
    *(NodeAdapter, EmbeddingAdapter, NormAdapter),
]
NAMES = ["LoRALinear", "DoRAConv", "LoRAEmbedding", "jno-lora-zoo:DoRALinear", "NodeAdapter"]
VARIANTS = ["lora", "dora", "LoRA_in_Norm", "lora-attention", "DORA", "test-shift"]
WRAPPERS = st.one_of(
    st.none(),
    st.just("auto"),
    *(st.sampled_from(names) for names in (CLASSES, NAMES, VARIANTS)),
    st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True),
    st.lists(
        st.sampled_from([*CLASSES, *NAMES, *VARIANTS, "auto"]), min_size=1, max_size=3, unique=True
    ),
)
OPTIONS = st.sampled_from([{}, {"adapter_dtype": jnp.bfloat16}])


_TARGET = {"target": st.sampled_from([*TARGETS, None])}
_KEYS = {
    "wrapper": WRAPPERS,
    "rank": st.integers(1, 2),
    "alpha": st.sampled_from([3.0, 4.0]),
    "options": OPTIONS,
}
# Most have a target, else the first would take everything.
_SPEC = st.one_of(
    *[st.fixed_dictionaries(_TARGET, optional=_KEYS)] * 4,
    st.fixed_dictionaries({}, optional=_KEYS),
)
SPECS = st.lists(_SPEC, min_size=1, max_size=6)
_CALL = {"rank": st.integers(1, 2), "alpha": st.sampled_from([1.0, 3.0])}
_OF_ALL = {"wrappers": WRAPPERS, "options": OPTIONS}
# With specs, of which each may leave something to the call, or with one target for all.
CALLS = st.one_of(
    st.fixed_dictionaries({**_CALL, "specs": SPECS}, optional=_OF_ALL),
    st.fixed_dictionaries(_CALL, optional={**_OF_ALL, "target": st.sampled_from(TARGETS)}),
)


def registry() -> tuple[Registry, dict[str, type[LoRAWrapper]]]:
    """A registry of the installed adapters and those of the tests; and all of them by name."""
    registry = Registry()
    for item in (NodeAdapter, EmbeddingAdapter, NormAdapter):
        registry.register(item)
    wrappers = [wrapper for record in registry.records() for wrapper in record.wrappers]
    return registry, {f"{w.distribution}:{w.name}": w.cls for w in wrappers}


def lacks_an_option(cls: type[LoRAWrapper], options: Mapping[str, Any]) -> bool:
    """Whether the adapter's constructor does not take the options, of those drawn here."""
    return bool(options) and cls in (NodeAdapter, EmbeddingAdapter, NormAdapter)
