"""MiSS: one matrix for all inputs that lie `r` apart, in three shapes."""

from ._type import Adapter, Converted, MisfitError, Module, Setting, Type, Written


class MISS(Type):
    """MiSS."""

    tensors = "miss_block"
    rank = Setting("r", 64)
    settings = "mini_r miss_dropout"
    bias = "miss_only"

    def read(self, m: Module) -> Converted:
        start = m.settings.get("init_weights", True)
        if start == "bat":
            (D,) = m.take({"miss_block": (m.layout.outputs // m.rank, m.rank, m.rank)})
            if m.layout.outputs % m.rank or m.layout.inputs % m.rank:
                raise MisfitError(f"its blocks of {m.rank} do not divide the layer's weight")
        else:
            columns = m.settings.get("mini_r", 1) if start == "mini" else m.layout.outputs
            (D,) = m.take({"miss_block": (m.rank, columns)})
            if m.rank > m.layout.inputs or m.layout.outputs % columns:
                raise MisfitError(f"its matrix ({m.rank}, {columns}) does not fit the weight")
        return Converted("miss", m.rank, 1.0, {"D": D})

    def write(self, adapter: Adapter) -> Written:
        D = adapter.state["D"]
        is_mini = D.ndim == 2 and D.shape[1] != adapter.layout.outputs
        start = "bat" if D.ndim == 3 else "mini" if is_mini else True
        settings = {"init_weights": start, "mini_r": D.shape[1] if is_mini else 1}
        return adapter.written({"miss_block": D}, settings)
