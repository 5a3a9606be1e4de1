"""RoAd: rotations of pairs of outputs half a group apart, the bias among them."""

from ._type import Adapter, Converted, MisfitError, Module, Type, Written


class ROAD(Type):
    """RoAd, the bias with it."""

    tensors = "road_(?:theta|alpha)"
    settings = "variant group_size"

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
