"""Every adapter of the zoo keeps every promise, as the kit checks it."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import pytest
from tests.pairs import ALL
from zoo_cases import (
    ALL_METHODS,
    OF_THE_KIND,
    OPTIONS,
    SAME_BUT,
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
from jno.lora.testing import (
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


nn, PERIODIC = eqx.nn, {"padding_mode": "CIRCULAR", "padding": "SAME"}
CONV = {"stride": (2, 1), "dilation": (1, 2), "groups": 2}
UP = {"stride": (2, 1), "groups": 2}
LINEAR = Layer("Linear", "linear", layer(nn.Linear, 7, 5), normal((7,)), (5, 7))
CIRCULAR = Layer(
    "Conv",
    "circular",
    layer(nn.Conv1d, 3, 5, 3, padding=1, padding_mode="CIRCULAR", use_bias=False),
    normal((3, 8)),
    (5, 9),
    (cyclic_shift(-1),),
)
ROWS = Layer("InNorm", "rows", lambda key: nn.WeightNorm(LINEAR.base(key)), normal((7,)), (5, 7))
# One norm for all rows, which keeps their proportions.
WHOLE = ROWS._replace(name="whole", base=lambda key: nn.WeightNorm(LINEAR.base(key), axis=None))
GROUPED = Layer(
    "Conv",
    "grouped",
    layer(nn.Conv2d, 4, 8, (3, 2), **CONV, padding="SAME"),
    normal((4, 6, 5)),
    (8, 12),
)
GROUPED_UP = Layer(
    "ConvTranspose",
    "grouped",
    layer(nn.ConvTranspose2d, 4, 6, (3, 2), **UP, padding=1),
    normal((4, 4, 5)),
    (6, 12),
)
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
# Of each kind, the layer for the whole kit, and the layer for the checks of the kind. With circular
# padding, these include the shifts: with those of `CIRCULAR`, every method of the zoo keeps them.
KINDS = {
    "Conv": (
        GROUPED,
        GROUPED._replace(
            name="periodic",
            base=layer(nn.Conv2d, 4, 8, (3, 2), **CONV, **PERIODIC),
            symmetries=shifts((2, 1)),
        ),
    ),
    "ConvTranspose": (
        GROUPED_UP,
        GROUPED_UP._replace(
            name="periodic",
            base=layer(nn.ConvTranspose2d, 4, 6, (3, 2), **UP, **PERIODIC),
            symmetries=shifts((1, 2)),
        ),
    ),
    "InNorm": (ROWS, ROWS),
    "Embedding": (TABLE, TABLE),
    "Recurrent": (GRU, GRU),
}
# What the kind of layer, or its way of padding, has a part in.
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
    *("stacked-layers", "eval-shape", "no-lapack-in-step", "trained-in-half-precision"),
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
        case(method, layer, ("*",) if ALL or kind == "Conv" else OF_THE_LAYER)
        for kind, (layer, _) in KINDS.items()
        for method in WHOLE_KIT
    ),
    case("DoRA", CIRCULAR, OF_THE_LAYER),
]


@parametrize_with_checks(CASES)
def test_conformance(check):
    check()


# Another structure than DoRA's, and a start from data.
MORE = [method for method in ALL_METHODS if method not in WHOLE_KIT] if ALL else ("LoRA", "CorDA")
OTHERS = [
    *((layer, method) for _, layer in KINDS.values() for method in MORE),
    # The LSTM's pair of states, and the missing bias, do not depend on the method.
    *((LSTM, method) for method in ("LoRA", "DoRA")),
]


@pytest.mark.parametrize(
    ("layer", "method"), OTHERS, ids=[f"{m}{layer.kind}-{layer.name}" for layer, m in OTHERS]
)
def test_other_methods_keep_what_the_kind_has_a_part_in(layer, method):
    check_kind(case(method, layer))


@pytest.mark.parametrize("method", SAME_BUT)
def test_nothing_but_one_member_is_different(method):
    sibling, member = SAME_BUT[method]
    different, alike = (getattr(jno_lora_zoo, name) for name in (method, sibling))
    assert different.__bases__ == alike.__bases__
    written = {name for name in vars(different) if not name.startswith(("__", "_abc_"))}
    # `takes_weights` follows from the members.
    assert written - {"takes_weights"} == {*("variant", "about", "method"), member}
