"""SHiRA: trained values at entries of the weight that the file names."""

import numpy as np

from ._positions import from_digits, to_digits
from ._type import Adapter, Converted, MisfitError, Module, Setting, Type, Written


class SHIRA(Type):
    """SHiRA."""

    tensors = "shira_(?:weight|indices)"
    rank = Setting("r", 32)
    settings = "mask_type random_seed"

    def read(self, m: Module) -> Converted:
        outputs, inputs = m.layout.matrix
        count = m.rank * (outputs + inputs)
        values, indices = m.take({"shira_weight": (count,), "shira_indices": (2, count)})
        rows, columns = indices.astype(np.int64)
        positions = to_digits(m, rows * inputs + columns)
        return Converted("shira", m.rank, 1.0, {"values": values, "positions": positions})

    def write(self, adapter: Adapter) -> Written:
        outputs, inputs = adapter.layout.matrix
        values, flat = adapter.state["values"], from_digits(adapter.state["positions"])
        if len(values) != adapter.rank * (outputs + inputs):
            raise MisfitError(f"PEFT's SHiRA of rank {adapter.rank} has more values")
        indices = np.stack([flat // inputs, flat % inputs]).astype(np.int32)
        return adapter.written({"shira_weight": values, "shira_indices": indices}, {})
