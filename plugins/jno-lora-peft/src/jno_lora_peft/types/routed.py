"""Types whose update depends on the input or on a task, as in jno-lora-routed."""

import itertools
import re

import numpy as np

from ..errors import MisfitError
from ..names import PREFIX
from .type import Adapter, Converted, Module, Modules, Setting, Type, Written

# Lily: layers that share the second factors, mixed by the input, as `Lily` of jno-lora-routed.
_B = "lily_B.weight"


class LILY(Type):
    """Lily, each layer with an `A` of its own; PEFT's weights are means over a batch
    (`average_over`)."""

    tensors = r"lily_A\.weight|lily_router\.weight"
    rank = Setting("r", 32)
    alpha = Setting("scaling", 1.0)
    shared = r"base_model\.model\..*lily_B\.weight"

    def read(self, m: Module) -> Converted:
        """PEFT writes the shared factors for each layer; here, a group has one array of factors."""
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

    def common(self, modules: Modules) -> dict[str, object]:
        """**Raises:** `MisfitError` if layers would share a factor in PEFT but not here."""
        for (a, first), (b, second) in itertools.permutations(modules.items(), 2):
            x, y = first.tensors[_B], second.tensors[_B]
            if a.endswith(b) and x.shape == y.shape and not np.array_equal(x, y):
                raise MisfitError(f"PEFT lets {a!r} and {b!r} share their factors. Use `rename`")
        return {}


def _group(m: Module, B: np.ndarray) -> int:
    """The first of the equal factors `B`; for zeros at the start, names decide."""

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


# PEANuT: an update that a network computes from the weight, as `PEANuT` of jno-lora-routed.
# In the order of jno-lora-routed, whose adapters store the index.
_ACTIVATIONS = (
    *("relu", "relu2", "relu6", "leaky_relu", "gelu", "gelu_new", "gelu_pytorch_tanh"),
    *("quick_gelu", "silu", "swish", "mish", "sigmoid", "tanh", "linear"),
)
_SIDES = ("encoders", "decoders")


class PEANUT(Type):
    """PEANuT."""

    tensors = r"peanut_[AB]\.weight|peanut_(?:encoders|decoders)\.\d+\.weight"
    rank = Setting("r", 32)
    alpha = Setting("scaling", 1.0)

    def read(self, m: Module) -> Converted:
        outputs, r = m.layout.outputs, m.rank
        depth, name = m.settings.get("depth") or 0, m.settings.get("act_fn") or "relu"
        if name not in _ACTIVATIONS:
            raise MisfitError(f"act_fn is {name!r}, and not one of {', '.join(_ACTIVATIONS)}")
        names = {"peanut_A.weight": (r, outputs), "peanut_B.weight": (outputs, r)}
        names |= {f"peanut_{side}.{n}.weight": (r, r) for side in _SIDES for n in range(depth)}
        A, B, *layers = m.take(names)
        state = {"A": A, "B": B, "activation": np.zeros(_ACTIVATIONS.index(name) + 1, np.int8)}
        for side, part in zip(_SIDES, (layers[:depth], layers[depth:]), strict=True):
            state[side] = np.stack(part) if part else np.zeros((0, r, r), A.dtype)
        return Converted("peanut", r, m.alpha * r, state)

    def write(self, adapter: Adapter) -> Written:
        state = adapter.state
        tensors = {f"peanut_{name}.weight": state[name] for name in "AB"}
        for side in _SIDES:
            tensors |= {f"peanut_{side}.{n}.weight": x for n, x in enumerate(state[side])}
        name = _ACTIVATIONS[len(state["activation"]) - 1]
        settings = {"depth": len(state["encoders"]), "act_fn": name}
        return adapter.written(tensors, settings, alpha=adapter.alpha / adapter.rank)


# Poly: skills mixed by the weights of a task, as `Poly` of jno-lora-routed.
_LOGITS = "poly_router.module_logits"


class POLY(Type):
    """Poly; `with_task` chooses the task."""

    tensors = r"poly_lora_[AB]|poly_router\.module_logits"
    rank = Setting("r", 8)
    only = (("poly_type", "poly", "PEFT has no other type"),)

    def read(self, m: Module) -> Converted:
        """PEFT's factors are transposed, and its scale is `1 / r`."""
        splits, skills, *_ = m.shape_of("poly_lora_A", 4)
        tasks, _ = m.shape_of(_LOGITS, 2)
        (outputs, inputs), rank = m.layout.matrix, m.rank
        A, B, logits = m.take(
            {
                "poly_lora_A": (splits, skills, inputs // splits, rank),
                "poly_lora_B": (splits, skills, rank, outputs // splits),
                _LOGITS: (tasks, splits * skills),
            }
        )
        state = {"lora_A": A.swapaxes(2, 3), "lora_B": B.swapaxes(2, 3), "router/logits": logits}
        state["settings/task"] = np.zeros((), np.int32)
        return Converted("poly", rank, 1.0, state)

    def write(self, adapter: Adapter) -> Written:
        A, B, logits = (adapter.state[name] for name in ("lora_A", "lora_B", "router/logits"))
        splits, skills, rank, _ = A.shape
        tensors = {
            "poly_lora_A": A.swapaxes(2, 3),
            "poly_lora_B": (np.float32(adapter.alpha) * B).swapaxes(2, 3),
            _LOGITS: logits,
        }
        settings = {"n_tasks": len(logits), "n_skills": skills, "n_splits": splits}
        return adapter.written(tensors, {**settings, "poly_type": "poly"}, rank=rank)
