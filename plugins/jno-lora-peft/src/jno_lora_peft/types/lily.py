"""Lily: layers that share the second factors, mixed by the input, as `Lily` of jno-lora-routed."""

import itertools
import re
from typing import Any

import numpy as np

from .._names import PREFIX
from ._type import Adapter, Converted, MisfitError, Module, Modules, Setting, Type, Written

_B = "lily_B.weight"


class LILY(Type):
    """Lily, each layer with an `A` of its own; PEFT's weights are means over a batch
    (`average_over`)."""

    tensors = r"lily_A\.weight|lily_router\.weight"
    rank = Setting("r", 32)
    alpha = Setting("scaling", 1.0)
    shared = r"base_model\.model\..*lily_B\.weight"
    settings = "num_B stride_A"

    def read(self, m: Module) -> Converted:
        """PEFT writes the shared factors for each layer: factors of a group are one array here."""
        outputs, inputs = m.layout.matrix
        shared = m.shared.get(f"{PREFIX}{m.name}.{_B}", np.zeros((0, 0)))
        experts = len(shared) // m.rank
        if shared.shape != (experts * m.rank, outputs):
            raise MisfitError(f"{_B}: expected ({m.rank} times n, {outputs}), got {shared.shape}")
        A, gate = m.take(
            {"lily_A.weight": (m.rank, inputs), "lily_router.weight": (experts, m.rank)}
        )
        group = _group(m, shared)
        B = shared.reshape(len(gate), m.rank, outputs).swapaxes(1, 2)
        name = f"lily-B-{len(gate)}x{outputs}x{m.rank}-of-{inputs}-{group}"
        sizes = np.zeros((group + 1, len(gate)), np.int8)
        state = {"lora_A": A, "router/weight": gate, "sizes": sizes}
        return Converted("lily", m.rank, m.alpha * m.rank, state, shared={name: B})

    def write(self, adapter: Adapter) -> Written:
        B, gate = adapter.shared["lora_B"], adapter.state["router/weight"]
        if len(gate) < 2:
            raise MisfitError("PEFT mixes at least 2 factors, and this has 1")
        tensors = {
            "lily_A.weight": adapter.state["lora_A"],
            _B: B.swapaxes(1, 2).reshape(-1, B.shape[1]),
            "lily_router.weight": gate,
        }
        settings = {"num_B": len(gate), "stride_A": 1}
        return adapter.written(tensors, settings, alpha=adapter.alpha / adapter.rank)

    def common(self, modules: Modules) -> dict[str, Any]:
        """**Raises:** `MisfitError` if PEFT would give layers one factor that have several here."""
        for (a, first), (b, second) in itertools.permutations(modules.items(), 2):
            x, y = first.tensors[_B], second.tensors[_B]
            if a.endswith(b) and x.shape == y.shape and not np.array_equal(x, y):
                raise MisfitError(f"PEFT lets {a!r} and {b!r} share their factors. Use `rename`")
        return {}


def _group(m: Module, B: np.ndarray) -> int:
    """The first of the equal factors `B`: zeros are equal at the start, so names decide there."""

    def target(name: str) -> str:
        module, targets = name.removesuffix(f".{_B}"), m.settings.get("target_modules")
        if isinstance(targets, str):
            return targets
        ends = [end for end in targets or () if module.endswith(end)]
        longest = max(ends, key=len, default=module)
        # Layers of a stack cannot have several groups.
        return re.sub(r"\d+", "#", longest) if m.index else longest

    same = target(f"{PREFIX}{m.name}.{_B}")
    alike = [(name, x) for name, x in sorted(m.shared.items()) if x.shape == B.shape]
    equal = (np.array_equal(x, B) and (B.any() or target(name) == same) for name, x in alike)
    return list(equal).index(True)
