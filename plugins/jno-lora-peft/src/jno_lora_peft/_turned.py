"""Rotations, reflections and projections: OFT, BOFT, HRA, RoAd and DEFT."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jno_lora_zoo import series_for

from ._module import Converted, Module
from ._same import Adapter, File, Same, Tensor, check_kind
from ._updates import MisfitError


def oft(m: Module) -> Converted:
    """Rotations of the inputs: by a series, or by the Cayley map, where PEFT has the other sign."""
    check_kind(m.layout)
    inputs, packed = m.layout.inputs, m.parts.get("oft_R.weight")
    n = packed.shape[1] if packed is not None and packed.ndim == 2 else 0
    size = round((1 + math.sqrt(1 + 8 * n)) / 2)
    shared = bool(m.values.get("block_share"))
    blocks = 1 if shared else inputs // size
    m.check({"oft_R.weight": (blocks, size * (size - 1) // 2)})
    if inputs % size or size < 2:
        raise MisfitError(f"its blocks are of {size} inputs, and the layer has {inputs}")
    Q = m.parts["oft_R.weight"]
    if m.values.get("coft"):  # no further from the identity than this; half of the entries are here
        limit = m.values.get("eps", 6e-5) / math.sqrt(len(Q))
        length = np.linalg.norm(Q, axis=1, keepdims=True) * math.sqrt(2)
        Q = np.where(length > limit, Q * (limit / np.maximum(length, 1e-30)), Q).astype(Q.dtype)
    state = {"Q_packed": -Q}
    if m.values.get("use_cayley_neumann", True):
        terms = m.values.get("num_cayley_neumann_terms", 5)
        if not isinstance(terms, int) or terms < 2:
            raise MisfitError(f"num_cayley_neumann_terms is {terms!r}, and a series has 2 or more")
        state = {"Q_packed": Q, "series": np.asarray(series_for(terms))}
    return Converted("oft-in", size, 1.0, state)


def to_oft(adapter: Adapter) -> File:
    """An adapter of the variant `"oft-in"` for PEFT."""
    check_kind(adapter.layout)
    Q, series = adapter.state["Q_packed"], adapter.state.get("series")
    if adapter.layout.inputs % adapter.rank:
        raise MisfitError(
            f"PEFT's blocks divide the {adapter.layout.inputs} inputs, and {adapter.rank} does not"
        )
    settings = {
        "coft": False,
        "block_share": len(Q) == 1 and adapter.layout.inputs > adapter.rank,
        "use_cayley_neumann": series is not None,
        "num_cayley_neumann_terms": 5 if series is None else len(series),
    }
    return File(adapter.rank, {"oft_R.weight": -Q if series is None else Q}, settings)


def boft(m: Module) -> Converted:
    """Butterfly factors. PEFT rotates by the transpose of each block."""
    check_kind(m.layout)
    R = m.parts.get("boft_R")
    size = R.shape[-1] if R is not None and R.ndim == 4 else 0
    if size < 1 or m.layout.inputs % size:
        raise MisfitError(f"its blocks are of {size} inputs, and the layer has {m.layout.inputs}")
    m.check(
        {
            "boft_R": (len(m.parts["boft_R"]), m.layout.inputs // size, size, size),
            "boft_s": (m.layout.outputs, 1),
        }
    )
    blocks, s = m.parts["boft_R"], m.parts["boft_s"]
    return Converted("boft", size, 1.0, {"Q_blocks": blocks.swapaxes(2, 3), "s": s[:, 0]})


def to_boft(adapter: Adapter) -> File:
    """An adapter of the variant `"boft"` for PEFT."""
    check_kind(adapter.layout)
    blocks = adapter.state["Q_blocks"]
    factors, count, size, _ = blocks.shape
    if count * size != adapter.layout.inputs:
        raise MisfitError(
            f"PEFT's blocks must divide the {adapter.layout.inputs} inputs, and these are {count} "
            f"of {size}"
        )
    tensors = {"boft_R": blocks.swapaxes(2, 3), "boft_s": adapter.state["s"][:, None]}
    return File(size, tensors, {"boft_n_butterfly_factor": factors})


def oft_blocks(modules: Mapping[str, Any]) -> dict[str, Any]:
    """OFT's settings for the size or the number of blocks."""
    return _blocks(modules, "oft_block_size", "r")


def boft_blocks(modules: Mapping[str, Any]) -> dict[str, Any]:
    """BOFT's settings for the size or the number of blocks."""
    return _blocks(modules, "boft_block_size", "boft_block_num")


def _blocks(modules: Mapping[str, Any], size: str, count: str) -> dict[str, Any]:
    sizes = {one.rank for one in modules.values()}
    counts = {one.layout.inputs // one.rank for one in modules.values()}
    if len(sizes) > 1 and len(counts) > 1:
        raise MisfitError(
            f"PEFT has one size or one number of blocks for all layers, and these have the sizes "
            f"{sorted(sizes)}"
        )
    return {size: 0, count: counts.pop()} if len(sizes) > 1 else {size: sizes.pop(), count: 0}


_HRA = Same("hra", {"U": Tensor("hra_u", "in r")}, alpha=lambda m: 1.0)


def hra(m: Module) -> Converted:
    """Reflections. An odd number gets one more, by a vector of zeros, which reflects nothing."""
    m.check({"hra_u": (m.layout.matrix[1], m.rank)})
    U, orthogonal = m.parts["hra_u"], m.values.get("apply_GS")
    if m.rank % 2:
        if orthogonal:
            raise MisfitError(f"its rank {m.rank} is odd, and apply_GS is set")
        U = np.pad(U, ((0, 0), (0, 1)))
    even = dataclasses.replace(m, rank=U.shape[1], parts={"hra_u": U})
    found = _HRA.read(even)
    extra = {"gram_schmidt": np.ones((), U.dtype)} if orthogonal else {}
    return dataclasses.replace(found, state={**found.state, **extra})


def to_hra(adapter: Adapter) -> File:
    """An adapter of the variant `"hra"` for PEFT."""
    if not adapter.state["U"].any(axis=0).all():
        U = adapter.state["U"][:, adapter.state["U"].any(axis=0)]
        adapter = adapter._replace(state={**adapter.state, "U": U}, rank=U.shape[1])
    file = _HRA.write(adapter)
    return file._replace(settings={"apply_GS": "gram_schmidt" in adapter.state})


def road(m: Module) -> Converted:
    """Pairs of outputs half a group apart, the bias among them."""
    check_kind(m.layout)
    variant, size = m.values.get("variant", "road_1"), m.values.get("group_size", 64)
    per_pair = {"road_1": 1, "road_2": 2, "road_4": 4}.get(str(variant))
    outputs = m.layout.outputs
    if per_pair is None or not isinstance(size, int) or size < 2 or size % 2 or outputs % size:
        raise MisfitError(
            f"variant {variant!r} and group_size {size!r} do not fit {outputs} outputs"
        )
    m.check(dict.fromkeys(("road_theta", "road_alpha"), (outputs // 2 * per_pair,)))
    theta, scale = (
        m.parts[name].reshape(-1, per_pair, size // 2).swapaxes(0, 1)
        for name in ("road_theta", "road_alpha")
    )
    return Converted("road", 1, 1.0, {"theta": theta, "scale": scale})


def to_road(adapter: Adapter) -> File:
    """An adapter of the variant `"road"` for PEFT."""
    check_kind(adapter.layout)
    per_pair, _, half = adapter.state["theta"].shape
    if adapter.layout.outputs % (2 * half):
        raise MisfitError("PEFT's groups of outputs must divide them, and their number is odd")
    names = {"theta": "road_theta", "scale": "road_alpha"}
    tensors = {
        name: adapter.state[field].swapaxes(0, 1).reshape(-1) for field, name in names.items()
    }
    return File(1, tensors, {"variant": f"road_{per_pair}", "group_size": 2 * half})


_P, _R = Tensor("deft_P", "out r"), Tensor("deft_R", "r in")


def deft(m: Module) -> Converted:
    """A projection, and what is put in its place; orthonormal columns may have the other sign."""
    r = min(m.rank, m.layout.outputs)
    para, method = bool(m.values.get("para")), m.values.get("decomposition_method", "relu")
    if method not in ("relu", "qr"):
        raise MisfitError(f"decomposition_method is {method!r}, and PEFT knows 'relu' and 'qr'")
    same = Same("deft", {"P": _P} if para else {"P": _P, "R": _R}, alpha=lambda m: 1.0)
    found = same.read(dataclasses.replace(m, rank=r))
    state: Mapping[str, np.ndarray] = found.state
    if not para:
        scale = m.values["alpha"] / r if m.values.get("alpha") else 1.0
        state = {**state, "R": _signs(state["P"], method) * state["R"] * np.float32(scale)}
    if method == "qr":
        state = {**state, "orthogonal": np.ones((), np.float32)}
    return dataclasses.replace(found, state=state)


def to_deft(adapter: Adapter) -> File:
    """An adapter of the variant `"deft"` for PEFT."""
    check_kind(adapter.layout)
    state, method = adapter.state, "qr" if "orthogonal" in adapter.state else "relu"
    tensors = {"deft_P": state["P"]}
    if "R" in state:
        tensors["deft_R"] = _signs(state["P"], method) * state["R"]
    settings = {"decomposition_method": method, "para": "R" not in state, "alpha": None}
    return File(adapter.rank, tensors, settings)


def _signs(P: np.ndarray, method: str) -> np.ndarray:
    """The sign of each column of LAPACK's `Q`, where Gram and Schmidt's has none."""
    if method != "qr":
        return np.ones((1, 1), P.dtype)
    return np.sign(np.diag(np.linalg.qr(P)[1]))[:, None].astype(P.dtype)
