"""The adapters keep every promise, as the kit checks it."""

from jno.lora.testing import WrapperCase, parametrize_with_checks, standard_layers
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


@parametrize_with_checks([case_of(wrapper) for wrapper in OPTIONS])
def test_conformance(check):
    check()
