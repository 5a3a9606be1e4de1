"""The cases that are compared, each as a plain dict with its targets.

A case has a `name`, the `group` of its table, a `label` for its row, the settings from which the
worker builds the case, the `sides` (each with its environment and its settings), the `measures` to
time, and `targets`: `(measure, over, most)`, the largest ratio of ours to `over`, or our largest
value if `over` is `None`.

All cases together take about 50 minutes on a quiet machine of two cores.
"""

from collections.abc import Iterator
from typing import Any

from ._parameter_cases import parameter_cases

Case = dict[str, Any]

OURS, JNO, PEFT = {"env": "ours"}, {"env": "jno"}, {"env": "peft"}
FLOOR = {"env": "ours", "adapter": "bias"}
FULL = {"env": "ours", "adapter": "all"}

METHODS = {
    "LoRA": "LoRA",
    "rsLoRA": "rsLoRA",
    "LoRAFA": "LoRA-FA",
    "PiSSA": "PiSSA",
    "MiLoRA": "MiLoRA",
    "LoRAXS": "LoRA-XS",
    "DoRA": "DoRA",
    "LoKr": "LoKr",
    "VeRA": "VeRA",
    "OFT": "OFT",
    "IA3": "IA3",
}

# The methods that jNO lacks, with their rank (or the size of their blocks), by class.
LATER = {
    "AdaLoRA": 16,
    "BOFT": 16,
    "C3A": 32,
    "DEFT": 16,
    "DeLoRA": 16,
    "FourierFT": 16,
    "GraLoRA": 16,
    "HiRA": 16,
    "HRA": 16,
    "IA3In": 16,
    "LoHa": 16,
    "MiSS": 16,
    "OFTIn": 16,
    "OLoRA": 16,
    "PSOFT": 16,
    "RandLoRA": 32,
    "RoAd": 16,
    "SHiRA": 16,
    "SuperTuning": 16,
    "TinyLoRA": 16,
    "WaveFT": 16,
    # From data, and with shared arrays.
    "CorDA": 16,
    "EVA": 16,
    "LoRAGA": 16,
    "LoRANull": 16,
    "LoRAOne": 16,
    "TiedLoRA": 16,
    "VBLoRA": 4,
    "VeRAShared": 256,
}

# step and forward and temporary memory over jNO, step over the floor, step over PEFT
LOW_RANK = (1.02, 1.02, 1.0, 1.15, 0.85)
TARGETS = {
    **dict.fromkeys(("LoRA", "rsLoRA", "LoRAFA", "PiSSA", "MiLoRA", "LoRAXS"), LOW_RANK),
    "DoRA": (0.48, 0.97, 0.18, 1.30, 0.45),
    "LoKr": (0.38, 0.56, 0.25, 1.30, 0.40),
    "VeRA": (0.82, 0.75, 0.90, 1.60, 0.90),
    "OFT": (0.15, 0.22, 0.45, 1.30, 0.90),
    "IA3": (1.05, 1.05, 1.0, 1.05, 0.95),
}

STAND_IN = "PEFT has no such method: its LoRA stands in."
SAME_STEP = "PEFT's step is the step of its LoRA, with another start: its LoRA stands in."
FROM_DATA = ("CorDA", "EVA", "LoRAGA", "LoRANull", "LoRAOne")
ALL_MEASURES = (
    *("step", "forward", "compile", "apply", "init", "merge", "merge jitted"),
    *("save", "load"),
)


def cases(device: str = "cpu") -> list[Case]:
    """All cases, in the order of the tables. Some are too large for anything but a GPU."""
    everywhere = [
        *linear(),
        *later(),
        *batches(),
        *laplacians(),
        *deep_oft(),
        *convs(),
        *dispatch(),
        *inits(),
        *spectral(),
        *parameter_cases(),
    ]
    return [*everywhere, *transformer_sized()] if device == "gpu" else everywhere


def mlp(adapter: str, *, batch: int = 256, layers: int = 4) -> Case:
    """The MLP of `layers` times `Linear(1024, 1024)` that all linear cases train."""
    return {
        "name": f"mlp/{adapter}/{layers}-layers/batch-{batch}",
        "label": METHODS.get(adapter, adapter),
        "kind": "train",
        "model": {"kind": "mlp", "width": 1024, "layers": layers},
        "adapter": f"{adapter}Linear",
        "rank": 256 if adapter == "VeRA" else LATER.get(adapter, 16),
        "batch": batch,
        "sides": {"ours": OURS, "jno": JNO, "peft": PEFT, "floor": FLOOR, "full": FULL},
    }


def linear() -> Iterator[Case]:
    """Each method on the MLP. OFT has one layer: with several layers, jNO's may never finish."""
    for adapter, (step, forward, temp, floor, peft) in TARGETS.items():
        case = mlp(adapter, layers=1 if adapter == "OFT" else 4)
        targets = [
            ("step", "jno", step),
            ("forward", "jno", forward),
            ("temp", "jno", temp),
            ("step", "floor", floor),
            ("step", "peft", peft),
        ]
        if adapter == "VeRA":
            targets.append(("traces", None, 1))
        case |= {"group": "linear", "measures": ALL_MEASURES, "targets": targets}
        if adapter == "OFT":
            case["label"] = "OFT (1 layer)"
        yield case | ({"note": STAND_IN} if adapter in ("MiLoRA", "LoRAXS") else {})


def later() -> Iterator[Case]:
    """The methods that jNO lacks, on the same MLP, and LoRA as a reference."""
    for adapter in ("LoRA", *LATER):
        case = mlp(adapter)
        peft = {} if adapter == "TiedLoRA" else {"peft": PEFT}  # PEFT lacks TiedLoRA
        yield case | {
            "name": f"later/{adapter}",
            "group": "later",
            "sides": {"ours": OURS, **peft, "floor": FLOOR, "full": FULL},
            "measures": ("step", "forward", "apply", "merge"),
            "targets": [],
            **({"note": SAME_STEP} if adapter in FROM_DATA else {}),
        }


def batches() -> Iterator[Case]:
    """Smaller batches, where costs that do not grow with the batch weigh more."""
    aims = {("DoRA", 32): 0.30, ("DoRA", 1): 0.25, ("LoKr", 32): 0.20}
    for adapter in ("LoRA", "DoRA", "LoKr", "VeRA"):
        for batch in (32, 1):
            case = mlp(adapter, batch=batch)
            case["label"] = f"{METHODS[adapter]}, batch {batch}"
            aim = aims.get((adapter, batch))
            targets = [] if aim is None else [("step", "jno", aim)]
            yield case | {"group": "batch", "measures": ("step", "forward"), "targets": targets}


def laplacians() -> Iterator[Case]:
    """A physics-informed loss, whose steps differentiate the model twice by its input."""
    for adapter in TARGETS:
        yield {
            **mlp(adapter, batch=1024),
            "name": f"laplacian/{adapter}",
            "group": "laplacian",
            "loss": "laplacian",
            "model": {
                "kind": "mlp",
                "inputs": 2,
                "outputs": 1,
                "width": 256,
                "layers": 5,
                "activation": "tanh",
            },
            "rank": 4,
            "sides": {"ours": OURS, "floor": FLOOR, "full": FULL},
            "measures": ("step",),
            "targets": [("step", "floor", 1.2 if TARGETS[adapter] is LOW_RANK else 1.5)],
        }


def deep_oft() -> Iterator[Case]:
    """OFT in several layers. It must finish on two cores."""
    for layers in (4, 8):
        case = mlp("OFT", layers=layers)
        case |= {"label": f"OFT, {layers} layers", "timeout": 30}
        yield case | {"group": "deep", "measures": ("step", "forward"), "targets": []}


def transformer_sized() -> Iterator[Case]:
    """Two layers of a 7B model in bfloat16, from its attention or its feed-forward block."""
    for inner in (4096, 11008):
        for adapter in ("LoRA", "LoRAFA", "LoRAXS", "DoRA", "LoKr", "VeRA", "OFT", "IA3"):
            yield {
                **mlp(adapter, batch=4096, layers=2),
                "name": f"large/{adapter}/4096x{inner}",
                "group": "large",
                "label": f"{METHODS[adapter]}, 4096x{inner}",
                "model": {
                    "kind": "mlp",
                    "width": 4096,
                    "inner": inner,
                    "layers": 2,
                    "dtype": "bfloat16",
                },
                "sides": {"ours": OURS, "peft": PEFT, "floor": FLOOR, "full": FULL},
                "measures": ("step", "forward", "apply", "merge jitted"),
                # A slower step needs a profile that says why.
                "targets": [("step", "floor", 1.15)],
                **({"note": STAND_IN} if adapter == "LoRAXS" else {}),
            }


def conv(label: str, adapter: str, step: float, batch: int, **model: Any) -> Case:
    """A stack of `Conv2d` with 3x3 kernels."""
    rank = 16 if model["channels"] > 64 else 8
    size = model["channels"]
    return {
        "name": f"conv/{adapter}/{label}",
        "group": "conv",
        "label": f"{METHODS[adapter]}, {label}",
        "kind": "train",
        "model": {"kind": "conv", "image": (32, 32), "layers": 2, **model},
        "adapter": f"{adapter}Conv",
        "rank": 4 * size if adapter == "VeRA" else rank,
        "batch": batch,
        "sides": {"ours": OURS, "jno": JNO, "floor": FLOOR, "full": FULL},
        "measures": ("step", "forward", "compile", "merge"),
        "targets": [("step", "jno", step), ("forward", "jno", 1.03), ("temp", "jno", 1.10)],
    }


def convs() -> Iterator[Case]:
    """LoRA on convolutions of several forms, and every method on the first form."""
    yield conv("64 channels", "LoRA", 0.95, 16, channels=64)
    yield conv("256 channels", "LoRA", 0.75, 4, channels=256)
    yield conv("64 channels, 4 groups", "LoRA", 1.05, 16, channels=64, groups=4)
    yield conv("64 channels, stride 2", "LoRA", 1.05, 16, channels=64, stride=2)
    yield conv("64 channels, dilation 2", "LoRA", 1.05, 16, channels=64, dilation=2)
    for adapter in TARGETS:
        if adapter != "LoRA":
            yield conv("64 channels", adapter, 1.05, 16, channels=64)


def small_layers(label: str, layers: int, measures: tuple[str, ...], **more: Any) -> Case:
    """`layers` times `Linear(8, 8)` under the default adapter."""
    return {
        "name": f"dispatch/{label}",
        "group": "dispatch",
        "label": label,
        "kind": "dispatch",
        "layers": layers,
        "width": 8,
        "rank": 4,
        "sides": {"ours": OURS, "jno": JNO},
        "measures": measures,
        "targets": [],
        **more,
    }


def dispatch() -> Iterator[Case]:
    """The cost of the dispatcher with many layers, and its growth."""
    warm = [("apply", "jno", 0.2), ("filter", "jno", 0.5), ("merge", "jno", 1.0)]
    for layers in (2_000, 10_000):
        yield small_layers(f"{layers:,} layers", layers, ("apply", "filter", "merge"), targets=warm)
    yield small_layers("200 layers", 200, ("merge jitted",), targets=[("merge jitted", "jno", 1.0)])
    yield small_layers(
        "2,000 layers, first call",
        2_000,
        ("apply",),
        targets=[("apply", "jno", 0.85)],
        fresh=True,
    )
    # Five times as many layers may take at most a tenth more per layer.
    yield small_layers(
        "10,000 layers over 2,000",
        10_000,
        ("apply",),
        sides={"ours": OURS, "small": {"env": "ours", "layers": 2_000}},
        targets=[("apply", "small", 5.5)],
    )


def inits() -> Iterator[Case]:
    """Initialisers that need singular vectors, against the full decomposition."""
    for adapter in ("PiSSA", "LoRAXS"):
        for size, most in ((1024, 1 / 30), (2048, 1 / 50)):
            svd = {"env": "ours", "adapter": "svd"}
            # jNO decomposes too. Its full SVD of the larger size would only repeat the SVD side.
            sides = {"ours": OURS, **({"jno": JNO} if size == 1024 else {}), "svd": svd}
            for spectrum in ("decaying", "gaussian"):
                label = f"{METHODS[adapter]}, {size}x{size}, {spectrum}"
                yield {
                    "name": f"init/{adapter}/{size}/{spectrum}",
                    "group": "init",
                    "label": label,
                    "kind": "init",
                    "adapter": f"{adapter}Linear",
                    "size": size,
                    "rank": 16,
                    "spectrum": spectrum,
                    "sides": sides,
                    "measures": ("init",),
                    "targets": [("init", "svd", round(most, 4))],
                }


def spectral() -> Iterator[Case]:
    """CP of spectral weights beside full fine-tuning: foundax's layers, and a user's own."""
    # The operator of the studies: see `studies/_families.py`.
    fno = {"channels": 32, "points": 64, "modes": 12, "layers": 3, "linear_conv": False}
    for model, is_complex in (("FNO", False), ("FNO with complex64 layers of a user", True)):
        # The ranks of CP, and of LoRA on all other layers; 0 for none.
        for label, rank, elsewhere in (
            ("CP", 4, 0),
            ("CP, LoRA elsewhere", 4, 1),
            ("LoRA elsewhere", 0, 1),
        ):
            form = "complex" if is_complex else "pairs"
            yield {
                "name": f"spectral/{form}/{label}",
                "group": "spectral",
                "label": f"{model}, {label}",
                "kind": "spectral",
                "model": {"kind": "fno", **fno},
                "complex": is_complex,
                "batch": 8,
                "rank": rank,
                "elsewhere": elsewhere,
                "sides": {"ours": {**OURS, "adapter": "CPSpectral"}, "full": FULL},
                "measures": ("step", "forward", "compile"),
                "targets": [(m, "full", 1.1) for m in ("step", "compile")] if rank else [],
            }
