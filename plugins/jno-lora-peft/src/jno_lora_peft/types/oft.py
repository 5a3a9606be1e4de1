"""OFT: rotations of blocks of inputs. PEFT's Cayley map has the opposite sign."""

import math

import numpy as np

from jno_lora_zoo import series_for

from ._shared import block_settings
from ._type import Adapter, Converted, MisfitError, Module, Modules, Type, Written


class OFT(Type):
    """OFT of the inputs (`oft-in`)."""

    tensors = r"oft_R\.weight"
    methods = ("oft-in",)
    settings = (
        "r oft_block_size coft eps block_share use_cayley_neumann num_cayley_neumann_terms "
        "module_dropout"
    )
    bias = "oft_only"

    def read(self, m: Module) -> Converted:
        inputs, (_, packed) = m.layout.inputs, m.shape_of("oft_R.weight", 2)
        size = round((1 + math.sqrt(1 + 8 * packed)) / 2)
        blocks = 1 if m.settings.get("block_share") else inputs // size
        (Q,) = m.take({"oft_R.weight": (blocks, size * (size - 1) // 2)})
        if inputs % size or size < 2:
            raise MisfitError(f"its blocks are of {size} inputs, and the layer has {inputs}")
        if m.settings.get("coft"):
            # No further from zero than `eps`. The packed arrays hold half the entries.
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
        return block_settings(modules, "oft_block_size", "r")
