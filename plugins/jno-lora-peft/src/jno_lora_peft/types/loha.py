"""LoHa: `(B1 A1) * (B2 A2)`, number by number."""

import numpy as np

from ._methods import check_layer, refuse_layer, tucker_kernel
from ._type import ALPHA_PATTERN, R_PATTERN, Adapter, Converted, Module, Type, Written

_LAYERS = ("linear", "conv1d", "conv2d")
_NAMES = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}


class LOHA(Type):
    """LoHa; LoRA if kernels have cores, or the rank is above the layer's."""

    tensors = "hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2)"
    layers = None
    rank = R_PATTERN
    alpha = ALPHA_PATTERN
    settings = "rank_dropout module_dropout use_effective_conv2d"

    def read(self, m: Module) -> Converted:
        has_cores = m.settings.get("use_effective_conv2d") or "hada_t1" in m.tensors
        if has_cores or m.rank > min(m.layout.matrix) or m.layout.odd:
            return _read_as_lora(m)
        check_layer(m.layout, _LAYERS, groups=True)
        outputs, inputs = m.layout.matrix
        shapes = {"A": (m.rank, inputs), "B": (outputs, m.rank)}
        names = {field: (name, shapes[field[0]]) for field, name in _NAMES.items()}
        return m.as_method("loha", names)

    def write(self, adapter: Adapter) -> Written:
        check_layer(adapter.layout, _LAYERS, groups=True)
        tensors = {name: adapter.state[field] for field, name in _NAMES.items()}
        return adapter.written(tensors, {"use_effective_conv2d": False})


def _read_as_lora(m: Module) -> Converted:
    """The product of two low-rank matrices is a sum over all pairs of their components."""
    refuse_layer(m.layout, dilated=True)
    outputs, inputs = m.layout.matrix
    has_cores, scale = "hada_t1" in m.tensors, m.alpha / m.rank
    a, b, core_shapes = (outputs, m.rank), (m.rank, inputs), {}
    if has_cores:
        a, b = (m.rank, outputs), (m.rank, m.layout.inputs // m.layout.groups)
        core = (m.rank, m.rank, *(*m.layout.kernel, 1)[:2])
        core_shapes = {"hada_t1": core, "hada_t2": core}
    shapes = dict(zip(_NAMES.values(), (a, b, a, b), strict=True))
    b1, a1, b2, a2, *cores = m.take(shapes | core_shapes)
    if has_cores:
        return m.update(tucker_kernel(cores[0], b1, a1) * tucker_kernel(cores[1], b2, a2), scale)
    if m.rank * m.rank >= min(outputs, inputs):
        return m.update((b1 @ a1) * (b2 @ a2), scale)
    A = np.einsum("ix,jx->ijx", a1, a2).reshape(-1, inputs)
    return m.low_rank((A, np.einsum("oi,oj->oij", b1, b2).reshape(outputs, -1)), scale)
