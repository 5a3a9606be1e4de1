"""The adapters keep every promise, as the kit checks it."""

import pytest

from jno.lora.testing import WrapperCase, parametrize_with_checks, run_checks, standard_layers
from jno_lora_routed import HydraLoRA, Lily, MoELoRA, Poly

R, IN, OUT, N = 2, 6, 4, 3
LINEAR, INPUTS = standard_layers()["Linear"]
OPTIONS = {
    HydraLoRA: {"experts": N},
    MoELoRA: {"experts": N, "top_k": 2},
    Lily: {"experts": N, "group": 1},
    Poly: {"tasks": 2, "skills": N, "splits": 2},
}
PARAMETERS = {
    HydraLoRA: R * IN + N * (R * OUT + IN),
    MoELoRA: N * (R * (IN + OUT) + IN),
    Lily: R * (IN + N) + N * R * OUT,
    Poly: N * (R * (IN + OUT) + 2 * 2),
}


def case_of(wrapper):
    return WrapperCase(
        wrapper,
        base=LINEAR,
        inputs=INPUTS,
        rank=R,
        options=OPTIONS[wrapper],
        parameters=PARAMETERS[wrapper],
    )


@parametrize_with_checks([case_of(MoELoRA)])
def test_conformance(check):
    check()


# The other checks see the same in every adapter of this base class. docs/routed.md runs all of
# them on a subclass of HydraLoRA.
CHECKS = (
    *("contract", "identity-at-init", "adapter-acts", "parameter-count", "trainable-fields"),
    *("state-round-trip", "gradients", "stacked-layers", "shared-arrays"),
)


@pytest.mark.parametrize("wrapper", [HydraLoRA, Lily, Poly])
def test_other_adapters(wrapper):
    for result in run_checks(case_of(wrapper), CHECKS):
        assert result.error is None, result.error
