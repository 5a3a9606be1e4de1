"""Adapters on quantised layers keep every promise, as the kit checks it."""

import equinox as eqx
import jax
import pytest
from tests.pairs import ALL, methods_on
from zoo_cases import ALL_METHODS, OPTIONS, WHOLE_KIT, check_kind, parameter_count

import jno_lora_zoo
from jno.lora import WrapperError
from jno_lora_quantized import quantize
from jno_lora_testing import WrapperCase, parametrize_with_checks

RANK = 3
# They start by taking a part out of the weight, which a quantised one refuses.
REFUSED = ("PiSSA", "MiLoRA", "OLoRA", "CorDA", "LoRAGA", "LoRAOne", "LoRANull")
OTHERS = [method for method in ALL_METHODS if method not in (*REFUSED, *WHOLE_KIT)]


def linear_case(method, scheme="nf4"):
    return WrapperCase(
        getattr(jno_lora_zoo, f"{method}Linear"),
        base=lambda key: quantize(eqx.nn.Linear(7, 5, key=key), scheme),
        inputs=lambda key: (jax.random.normal(key, (7,)),),
        rank=RANK,
        options=OPTIONS.get(method, {}),
        parameters=parameter_count(method, RANK, 5, 7),
        name=f"{method}-{scheme}",
    )


@pytest.mark.slow
@parametrize_with_checks([linear_case(method) for method in WHOLE_KIT if method not in REFUSED])
def test_conformance(check):
    check()


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=[] if name == "LoRA" else pytest.mark.slow)
        for name in methods_on("Quantized", OTHERS)
    ],
)
def test_other_methods(method):
    check_kind(linear_case(method, "int8" if len(method) % 2 else "nf4"))


@pytest.mark.parametrize("method", REFUSED if ALL else ("CorDA", "LoRANull"))
def test_refused(method):
    case = linear_case(method)
    with pytest.raises(WrapperError, match=r"quantize\(apply_lora"):
        case.make()
