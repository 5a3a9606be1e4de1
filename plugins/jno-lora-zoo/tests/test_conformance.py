"""Every adapter of the zoo keeps every promise, as the kit checks it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import pytest
from tests.pairs import ALL
from zoo_cases import (
    ALL_METHODS,
    LAW_WAYS,
    OF_THE_KIND,
    OPTIONS,
    WHOLE_KIT,
    check_kind,
    fields_of,
    parameter_count,
    reference,
)
from zoo_cases.laws import adapted_bias
from zoo_cases.layers import matrix_of

import jno_lora_zoo
from jno.lora import unwrap_lora
from jno_lora_testing import (
    WrapperCase,
    cyclic_shift,
    parametrize_with_checks,
)

RANK = 3


class Layer(NamedTuple):
    """A layer of a kind: how it is made and called, the shape of its matrix, and its symmetries."""

    kind: str
    name: str
    base: Any
    inputs: Any
    matrix: tuple[int, int]
    symmetries: tuple[Any, ...] = ()


def layer(cls, *args, **settings):
    return lambda key: cls(*args, **settings, key=key)


def normal(*shapes):
    return lambda key: tuple(jax.random.normal(key, shape) for shape in shapes)


def shifts(rows):
    """Of two axes of points; the stride of the first is 2."""
    return (
        cyclic_shift(-2, steps=rows, name="cyclic shift of rows"),
        cyclic_shift(-1, name="cyclic shift of columns"),
    )


nn, PERIODIC = eqx.nn, {"padding_mode": "CIRCULAR", "padding": "SAME", "groups": 2}
LINEAR = Layer("Linear", "linear", layer(nn.Linear, 7, 5), normal((7,)), (5, 7))
CONV = Layer(
    "Conv",
    "periodic",
    layer(nn.Conv2d, 4, 8, (3, 2), stride=(2, 1), dilation=(1, 2), **PERIODIC),
    normal((4, 6, 5)),
    (8, 12),
    shifts((2, 1)),
)
UP = Layer(
    "ConvTranspose",
    "periodic",
    layer(nn.ConvTranspose2d, 4, 6, (3, 2), stride=(2, 1), **PERIODIC),
    normal((4, 4, 5)),
    (6, 12),
    shifts((1, 2)),
)
ROWS = Layer("InNorm", "rows", lambda key: nn.WeightNorm(LINEAR.base(key)), normal((7,)), (5, 7))
# One norm for all rows, which keeps their proportions.
WHOLE = ROWS._replace(name="whole", base=lambda key: nn.WeightNorm(LINEAR.base(key), axis=None))
TABLE = Layer(
    "Embedding",
    "table",
    layer(nn.Embedding, 11, 6),
    lambda key: (jax.random.randint(key, (), 0, 11),),
    (6, 11),
)
GRU = Layer("Recurrent", "gru", layer(nn.GRUCell, 4, 3), normal((4,), (3,)), (9, 7))
LSTM = Layer(
    "Recurrent",
    "lstm",
    layer(nn.LSTMCell, 4, 3, use_bias=False),
    lambda key: (normal((4,))(key)[0], normal((3,), (3,))(key)),
    (12, 7),
)
# What the kind of layer has a part in.
OF_THE_LAYER = (
    *OF_THE_KIND,
    *("merge-restores-form", "reads-like-the-layer", "special-inputs", "subclass*"),
    *("jit", "vmap", "output-dtype", "partition-specs", "sharding"),
)
# These run the whole kit on linear layers: a product of two factors, the norms of the rows, a
# rotation, and the methods whose `forward` has a rule for derivatives, or operations that Taylor
# mode knows badly.
WHOLE_ON_LINEAR = ALL_METHODS if ALL else ("LoRA", "DoRA", "VeRA", "OFT", "HRA", "SHiRA", "DEFT")
# Where the other methods differ: in their arrays and their law. `test_oracles.py` has their values
# and gradients, in double precision.
OF_THE_METHOD = (
    *("contract", "key-forms", "trainable-fields", "no-shared-buffers", "partition-specs"),
    *("law", "ranks", "special-inputs", "unwrap-restores", "state-round-trip", "state-size"),
    *("stacked-layers", "eval-shape", "no-lapack-in-step"),
    *("low-rank-*", "factor-sides", "penalty", "rank-gate", "matrix"),
    *("shared-arrays", "poor-statistics", "calibration"),
)


def case(method, layer, checks=("*",)):
    if layer is ROWS and method in ("IA3", "IA3Out"):
        layer = WHOLE
    cls = getattr(jno_lora_zoo, method + layer.kind)
    return WrapperCase(
        cls,
        base=layer.base,
        inputs=layer.inputs,
        rank=RANK,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, RANK, *layer.matrix),
        # The laws of starts from data are for other data; see `test_oracles.py`.
        law=law_of(method) if layer.kind == "Linear" and not cls.needs else None,
        name=f"{method}{layer.kind}-{layer.name}",
        checks=checks,
        symmetries=layer.symmetries,
    )


def law_of(method):
    """The law in NumPy, which the kit also tries with other ranks and scales."""

    def law(trained):
        base, fields = unwrap_lora(trained), fields_of(trained)
        return {
            "weight": reference(method, fields, matrix_of(base), trained.rank, trained.alpha),
            "bias": adapted_bias(method, fields, base).bias,
        }

    return law


CASES = [
    *(case(method, LINEAR) for method in WHOLE_ON_LINEAR),
    *(
        case(method, LINEAR, OF_THE_METHOD)
        for method in ALL_METHODS
        if method not in WHOLE_ON_LINEAR
    ),
    *(
        case(method, layer, ("*",) if ALL else OF_THE_LAYER)
        for layer in (CONV, UP, ROWS, TABLE, GRU)
        for method in WHOLE_KIT
    ),
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    check()


# Methods that compute their law in the same way round alike.
ROUNDING = [
    case(method, LINEAR, ("trained-in-half-precision",))
    for method in (ALL_METHODS if ALL else LAW_WAYS)
    if method not in WHOLE_ON_LINEAR
]


@pytest.mark.slow
@parametrize_with_checks([*(case(method, CONV) for method in WHOLE_KIT), *ROUNDING])
def test_the_whole_kit_on_a_convolution_and_the_rounding_of_each_law(check):
    check()


# Another structure than DoRA's, and a start from data.
MORE = [method for method in ALL_METHODS if method not in WHOLE_KIT] if ALL else ("LoRA", "CorDA")
OTHERS = [
    *((layer, method) for layer in (CONV, UP, ROWS, TABLE, GRU) for method in MORE),
    # The LSTM's pair of states, and the missing bias, do not depend on the method.
    *((LSTM, method) for method in ("LoRA", "DoRA")),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "method"), OTHERS, ids=[f"{m}{layer.kind}-{layer.name}" for layer, m in OTHERS]
)
def test_other_methods_keep_what_the_kind_has_a_part_in(layer, method):
    check_kind(case(method, layer))
