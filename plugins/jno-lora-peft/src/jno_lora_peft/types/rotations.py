"""Types that rotate the inputs or the outputs of a layer."""

import dataclasses
import math

import numpy as np

from jno_lora_zoo import series_for

from ..errors import MisfitError
from .type import Adapter, Converted, Module, Modules, Setting, Type, Written


# OFT: rotations of blocks of inputs. PEFT's Cayley map has the opposite sign.
class OFT(Type):
    """OFT of the inputs (`oft-in`)."""

    tensors = r"oft_R\.weight"
    methods = ("oft-in",)
    bias = "oft_only"

    def read(self, m: Module) -> Converted:
        inputs, (_, packed) = m.layout.inputs, m.shape_of("oft_R.weight", 2)
        size = round((1 + math.sqrt(1 + 8 * packed)) / 2)
        blocks = 1 if m.settings.get("block_share") else inputs // size
        (Q,) = m.take({"oft_R.weight": (blocks, size * (size - 1) // 2)})
        if inputs % size or size < 2:
            raise MisfitError(f"its blocks are of {size} inputs, and the layer has {inputs}")
        if m.settings.get("coft"):
            # At most `eps` from zero. The packed arrays contain half of the entries.
            limit = m.settings.get("eps", 6e-5) / math.sqrt(len(Q))
            length = np.linalg.norm(Q, axis=1, keepdims=True) * math.sqrt(2)
            Q = np.where(length > limit, Q * (limit / np.maximum(length, 1e-30)), Q).astype(Q.dtype)
        if not m.settings.get("use_cayley_neumann", True):
            return Converted("oft-in", size, 1.0, {"Q_packed": -Q})
        terms = m.settings.get("num_cayley_neumann_terms", 5)
        state = {"Q_packed": Q, "series": np.asarray(series_for(terms))}
        return Converted("oft-in", size, 1.0, state)

    def write(self, adapter: Adapter) -> Written:
        Q, series = adapter.state["Q_packed"], adapter.state.get("series")
        inputs = adapter.layout.inputs
        if inputs % adapter.rank:
            raise MisfitError(f"PEFT's blocks divide the {inputs} inputs, unlike {adapter.rank}")
        settings = {
            "coft": False,
            "block_share": len(Q) == 1 and inputs > adapter.rank,
            "use_cayley_neumann": series is not None,
            "num_cayley_neumann_terms": 5 if series is None else len(series),
        }
        return adapter.written({"oft_R.weight": -Q if series is None else Q}, settings)

    def common(self, modules: Modules) -> dict[str, int]:
        return _block_settings(modules, "oft_block_size", "r")


# BOFT: butterfly factors. PEFT rotates by the transpose of each block.
class BOFT(Type):
    """BOFT."""

    tensors = "boft_[Rs]"
    bias = "boft_only"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        factors, _, _, size = m.shape_of("boft_R", 4)
        if inputs % size:
            raise MisfitError(f"its blocks are of {size} inputs, and the layer has {inputs}")
        blocks, s = m.take(
            {"boft_R": (factors, inputs // size, size, size), "boft_s": (outputs, 1)}
        )
        return Converted("boft", size, 1.0, {"Q_blocks": blocks.swapaxes(2, 3), "s": s[:, 0]})

    def write(self, adapter: Adapter) -> Written:
        blocks = adapter.state["Q_blocks"]
        factors, count, size, _ = blocks.shape
        if count * size != adapter.layout.inputs:
            inputs = adapter.layout.inputs
            raise MisfitError(f"{count} blocks of {size} are not the {inputs} inputs, as in PEFT")
        tensors = {"boft_R": blocks.swapaxes(2, 3), "boft_s": adapter.state["s"][:, None]}
        return adapter.written(tensors, {"boft_n_butterfly_factor": factors}, rank=size)

    def common(self, modules: Modules) -> dict[str, int]:
        return _block_settings(modules, "boft_block_size", "boft_block_num")


# HRA: Householder reflections.
class HRA(Type):
    """HRA."""

    tensors = "hra_u"
    rank = Setting("r", 8)
    bias = "hra_only"

    def read(self, m: Module) -> Converted:
        """An odd number of reflections gets one more, by zeros, which reflect nothing."""
        orthogonal = m.settings.get("apply_GS")
        (U,) = m.take({"hra_u": (m.layout.matrix[1], m.rank)})
        if m.rank % 2:
            if orthogonal:
                raise MisfitError(f"its rank {m.rank} is odd, and apply_GS is set")
            U = np.pad(U, ((0, 0), (0, 1)))
        even = dataclasses.replace(m, rank=U.shape[1], tensors={"hra_u": U})
        adapter = even.as_method("hra", {"U": ("hra_u", U.shape)})
        return adapter.with_arrays(gram_schmidt=np.ones((), U.dtype)) if orthogonal else adapter

    def write(self, adapter: Adapter) -> Written:
        U = adapter.state["U"]
        U = U[:, U.any(axis=0)]
        tensors, settings = {"hra_u": U}, {"apply_GS": "gram_schmidt" in adapter.state}
        return adapter.written(tensors, settings, rank=U.shape[1])


# RoAd: rotations of pairs of outputs that are half a group apart, including the bias.
class ROAD(Type):
    """RoAd, bias included."""

    tensors = "road_(?:theta|alpha)"

    def read(self, m: Module) -> Converted:
        kind, size = m.settings.get("variant", "road_1"), m.settings.get("group_size", 64)
        per_pair, outputs = int(kind.removeprefix("road_")), m.layout.outputs
        if size % 2 or outputs % size:
            raise MisfitError(f"group_size {size!r} do not fit {outputs} outputs")
        tensors = m.take(dict.fromkeys(("road_theta", "road_alpha"), (outputs // 2 * per_pair,)))
        theta, scale = (x.reshape(-1, per_pair, size // 2).swapaxes(0, 1) for x in tensors)
        return Converted("road", 1, 1.0, {"theta": theta, "scale": scale})

    def write(self, adapter: Adapter) -> Written:
        per_pair, _, half = adapter.state["theta"].shape
        if adapter.layout.outputs % (2 * half):
            raise MisfitError("PEFT's groups of outputs must divide them, and their number is odd")
        theta, scale = (
            adapter.state[name].swapaxes(0, 1).reshape(-1) for name in ("theta", "scale")
        )
        settings = {"variant": f"road_{per_pair}", "group_size": 2 * half}
        return adapter.written({"road_theta": theta, "road_alpha": scale}, settings, rank=1)


def _block_settings(modules: Modules, size_name: str, count_name: str) -> dict[str, int]:
    """The size and the number of blocks, one of which is 0. **Raises:** `MisfitError`."""
    adapters = [written.adapter for written in modules.values()]
    sizes = {adapter.rank for adapter in adapters}
    counts = {adapter.layout.inputs // adapter.rank for adapter in adapters}
    if len(sizes) == 1:
        return {size_name: sizes.pop(), count_name: 0}
    if len(counts) == 1:
        return {size_name: 0, count_name: counts.pop()}
    raise MisfitError(f"PEFT has blocks of one size or number, and these have {sorted(sizes)}")
