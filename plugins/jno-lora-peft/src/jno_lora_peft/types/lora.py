"""LoRA, AdaLoRA and OSF, and the starts that subtract a matrix from the layer's weight."""

import dataclasses
import re

import numpy as np

from ..errors import MisfitError
from ..names import PREFIX
from .type import METHODS, Adapter, Converted, Module, Modules, Setting, Tensors, Type, Written

# PEFT's name for the update of a bias, which it multiplies by the scale.
BIAS = "lora_B.bias"
MAGNITUDE = "lora_magnitude_vector"
# The variant of `ActivatedLoRA` in jno-lora-routed.
ACTIVATED = "activated-lora"


class LORA(Type):
    """LoRA, rsLoRA, DoRA or aLoRA; PiSSA or OLoRA if initialised so."""

    tensors = (
        r"lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]"
        r"|lora_magnitude_vector(?:\.weight)?|lora_velora_embed"
    )
    layers = None
    methods = ("lora", "rslora", "dora", ACTIVATED)
    rank = Setting("r", 8, "rank_pattern")
    alpha = Setting("lora_alpha", 8, "alpha_pattern")
    bias = "lora_only"

    def read(self, m: Module) -> Converted:
        variant = "rslora" if m.settings.get("use_rslora") else "lora"
        scale = METHODS[variant].scale_for(m.rank, m.alpha)
        is_dora = bool(m.settings.get("use_dora"))
        if m.rank % m.layout.groups:
            raise MisfitError(f"rank {m.rank} is not a multiple of the {m.layout.groups} groups")
        names = m.layout.pair("lora", m.rank)
        if is_dora:
            names["magnitude"] = (MAGNITUDE, m.layout.row)
        if m.settings.get("lora_bias"):
            names["bias"] = (BIAS, (m.layout.outputs,))
        tensors = m.take(dict(names.values()), ignored=("lora_velora_embed",))
        m.layout.check_update(dora=is_dora)
        arrays = dict(zip(names, tensors, strict=True))
        initial = initial_factors(m, scale)
        if m.settings.get("alora_invocation_tokens"):
            return _activated(m, arrays, initial, scale)
        if is_dora:
            variant = "dora"
        elif initial:
            variant = str(m.settings["init_lora_weights"]).lower().partition("_")[0]
        product = m.layout.to_matrices(arrays["lora_A"], arrays["lora_B"])
        adapter = m.low_rank(product, scale, variant).with_arrays(**initial)
        if is_dora:
            adapter = adapter.with_arrays(magnitude=arrays["magnitude"].reshape(-1))
        if "bias" in arrays:
            adapter = dataclasses.replace(adapter, bias_shift=scale * arrays["bias"])
        return adapter

    def write(self, adapter: Adapter) -> Written:
        layout, arrays, tokens = adapter.layout, dict(adapter.state), None
        if adapter.variant == ACTIVATED:
            tokens = arrays.pop("settings/tokens").tolist()
            arrays.pop("settings/active")
        is_dora = adapter.variant == "dora"
        if unknown := arrays.keys() - {"lora_A", "lora_B", "magnitude", "bias_update"}:
            raise MisfitError(f"PEFT's LoRA has nothing like its {', '.join(sorted(unknown))}")
        layout.check_update(dora=is_dora)
        arrays["lora_A"] = layout.for_all_groups(arrays["lora_A"])
        rank = len(arrays["lora_A"])
        names = layout.pair("lora", rank)
        if is_dora:
            names["magnitude"] = (MAGNITUDE, layout.row)
        tensors = {name: arrays[field].reshape(shape) for field, (name, shape) in names.items()}
        if "bias_update" in arrays:
            if adapter.scale == 0 or is_dora or layout.kind == "embedding":
                raise MisfitError("PEFT trains biases by LoRA of a scale other than 0")
            tensors[BIAS] = arrays["bias_update"] / np.float32(adapter.scale)
        settings = {"use_dora": is_dora, "alora_invocation_tokens": tokens}
        settings["init_lora_weights"] = True
        return adapter.written(tensors, settings, rank=rank)

    def common(self, modules: Modules) -> dict[str, bool]:
        return {"lora_bias": any(BIAS in written.tensors for written in modules.values())}

    def shares(self, modules: Modules) -> Tensors:
        """Zero updates for biases without an update, if any bias has an update."""
        if not self.common(modules)["lora_bias"]:
            return {}
        return {
            f"{PREFIX}{module}.{BIAS}": np.zeros(written.adapter.layout.outputs, np.float32)
            for module, written in modules.items()
            if BIAS not in written.tensors
        }


def _activated(m: Module, arrays: Tensors, initial: Tensors, scale: float) -> Converted:
    """aLoRA. PEFT's invocation is in the configuration."""
    if m.layout.kind != "linear" or arrays.keys() != {"lora_A", "lora_B"}:
        raise MisfitError("PEFT's aLoRA is plain LoRA on linear layers")
    if initial:
        raise MisfitError("PiSSA and OLoRA change the weight for tokens before the invocation too")
    tokens = np.asarray(m.settings["alora_invocation_tokens"], np.int32)
    state = {**arrays, "settings/tokens": tokens, "settings/active": np.zeros((), np.float32)}
    return Converted(ACTIVATED, m.rank, scale * m.rank, state)


# AdaLoRA: `s B diag(E) A`. Components that AdaLoRA pruned are not in the file.
class ADALORA(Type):
    """AdaLoRA, with the remaining components."""

    tensors = "lora_[ABE]"
    rank = Setting("init_r", 12)
    alpha = Setting("lora_alpha", 8)
    bias = "lora_only"

    def read(self, m: Module) -> Converted:
        left, _ = m.shape_of("lora_A", 2)
        outputs, inputs = m.layout.matrix
        scale = (m.alpha if m.alpha > 0 else m.rank) / (m.rank + 1e-5)
        shapes = {"lora_A": (left, inputs), "lora_B": (outputs, left), "lora_E": (left, 1)}
        A, B, E = m.take(shapes)
        if not 0 < left <= min(outputs, inputs):
            return m.low_rank((E * A, B), scale)
        state = {"lora_A": A, "lora_B": B, "lora_E": E[:, 0]}
        return Converted("adalora", left, scale * left, state)

    def write(self, adapter: Adapter) -> Written:
        """PEFT divides by the rank and 1e-5."""
        r = adapter.rank
        tensors = {name: adapter.state[name] for name in ("lora_A", "lora_B")}
        tensors["lora_E"] = adapter.state["lora_E"][:, None]
        schedule = {"target_r": r, "total_step": 1, "tinit": 0, "tfinal": 0}
        return adapter.written(tensors, schedule, alpha=adapter.alpha * (r + 1e-5) / r)


# OSF trains all singular triplets of the weight except the largest, like MiLoRA.
class OSF(Type):
    """MiLoRA."""

    tensors = r"osf_svd_params\.[USV]_low"
    layers = None

    def read(self, m: Module) -> Converted:
        names = [f"osf_svd_params.{letter}_low" for letter in "USV"]
        (outputs, inputs), (r,) = m.layout.matrix, m.shape_of(names[1], 1)
        U, S, V = m.take(dict(zip(names, ((outputs, r), (r,), (r, inputs)), strict=True)))
        frozen = min(outputs, inputs) - r
        if frozen < 1 or r < 1:
            raise MisfitError(f"it trains {r} of the {min(outputs, inputs)} triplets of its weight")
        Uh, Sh, Vh = largest_triplets(m, frozen)
        # The weight without the frozen triplets, as factors with the rank of the smaller side.
        rest_U, rest_S, rest_V = np.linalg.svd(m.W - (Uh * Sh[:frozen]) @ Vh, full_matrices=False)
        state = {
            "lora_A": S[:, None] * V,
            "lora_B": U,
            "initial_A": (rest_S[:r, None] * rest_V[:r]).astype(np.float32),
            "initial_B": rest_U[:, :r].astype(np.float32),
        }
        return Converted("milora", r, float(r), state)


# --- starts that subtract a matrix from the layer's weight: recomputed, as PEFT does when it loads

# The starts that leave the layer's weight alone.
PURE = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# The starts that can be recomputed: PiSSA, exact or by subspace iterations, and OLoRA.
_FOUND = re.compile("pissa(?:_niter_([0-9]+))?|olora")
_SAVE_AS_LORA = "Save it as LoRA by PEFT's `path_initial_model_for_weight_conversion`, if possible"
# Float32 rounding moves the truncated product by about 5e-8 / gap of the weight (measured).
_LEAST_GAP = 1e-3
# Rounding moves a QR decomposition by about 1e-7 times the condition number.
_LARGEST_CONDITION = 1e3
# How far the iterations of a random subspace may be from their limit.
_CONVERGED = 1e-6
_UNCLEAR = (
    f"are so close that rounding decides which matrix PEFT takes out of the weight. {_SAVE_AS_LORA}"
)


def refused_start(start: object) -> list[str]:
    """A line if the weight change by this `init_lora_weights` cannot be recomputed."""
    if start in PURE or _FOUND.fullmatch(str(start).lower()):
        return []
    takes = (
        "PEFT takes something out of the layer's weight at the start, and the file fits the rest"
    )
    return [f"init_lora_weights={start!r}: {takes}. {_SAVE_AS_LORA}"]


def initial_factors(m: Module, scale: float) -> dict[str, np.ndarray]:
    """The factors that a LoRA subtracted from the weight, if any. **Raises:** `MisfitError`."""
    start = m.settings.get("init_lora_weights")
    match = _FOUND.fullmatch(str(start).lower())
    if match is None:
        return {}
    if m.layout.kind != "linear" or m.settings.get("use_dora") or scale <= 0:
        raise MisfitError(f"{start!r} is read for LoRA of a scale above 0, on linear layers")
    if match[0] == "olora":
        Q, R = np.linalg.qr(m.W)
        if np.linalg.cond(m.W[:, : m.rank]) > _LARGEST_CONDITION:
            raise MisfitError(f"the first {m.rank} columns of its weight {_UNCLEAR}")
        return _initial(R[: m.rank], Q[:, : m.rank])
    U, S, Vt = largest_triplets(m, m.rank)
    if match[1] is not None and m.rank < len(S):
        ratio = (S[m.rank] / S[m.rank - 1]) ** (2 * int(match[1]) + 1)
        if ratio > _CONVERGED:
            raise MisfitError(f"{start!r} did not converge: PEFT finds another part each time")
    root = np.sqrt(S[: m.rank] / scale)
    return _initial(root[:, None] * Vt, U * root)


def largest_triplets(m: Module, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `r` largest singular triplets of the weight, with all singular values."""
    U, S, Vt = np.linalg.svd(m.W, full_matrices=False)
    if r < len(S) and S[r - 1] - S[r] < _LEAST_GAP * S[r - 1]:
        raise MisfitError(f"the singular values {r} and {r + 1} of its weight {_UNCLEAR}")
    return U[:, :r], S, Vt[:r]


def _initial(A: np.ndarray, B: np.ndarray) -> dict[str, np.ndarray]:
    return {"initial_A": A.astype(np.float32), "initial_B": B.astype(np.float32)}
