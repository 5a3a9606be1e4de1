"""The cases about a parameter: conditional adapters, derivatives by the parameter, physics.

All sides of these cases are in our environment: jNO and PEFT have nothing like them.
"""

from collections.abc import Iterator
from typing import Any

Case = dict[str, Any]

# By name: the model, its batch, the rank, and the adapters of each method.
MODELS: dict[str, Case] = {
    "MLP": {"model": {"kind": "mlp", "width": 1024, "layers": 4}, "batch": 256, "rank": 16},
    "convolutions": {
        "model": {"kind": "conv", "channels": 64, "image": (32, 32), "layers": 2},
        "batch": 16,
        "rank": 8,
    },
    "FNO": {
        "model": {"kind": "fno", "channels": 64, "points": 256, "modes": 16, "layers": 3},
        "batch": 16,
        "rank": 4,
    },
}
METHODS = {
    ("MLP", "LoRA"): ["LoRALinear"],
    ("MLP", "AdaLoRA"): ["AdaLoRALinear"],
    ("MLP", "DoRA"): ["DoRALinear"],
    ("convolutions", "LoRA"): ["LoRAConv"],
    ("FNO", "CP"): ["CPSpectral", "LoRAConv"],
    ("FNO", "LoRA"): ["LoRASpectral", "LoRAConv"],
}
# The method that is measured in every form.
FIRST = (("MLP", "LoRA"), ("convolutions", "LoRA"), ("FNO", "CP"))
VALUES = {"one": "one value", "each": "a value for each example"}
# A value for each example over a plain adapter, which knows none: time and temporary memory.
MOST_TIME, MOST_MEMORY = 1.15, 1.1


def side(**settings: Any) -> Case:
    """A side of our environment."""
    return {"env": "ours", **settings}


FLOOR = side(kind="train", adapter="bias")
FULL = side(kind="train", adapter="all")


def parameter_cases() -> list[Case]:
    """All cases of this module."""
    return [*conditional_steps(), *film_steps(), *ensemble_steps(), *slopes(), *gauss_newton()]


def adapted(model: str, method: str, values: str) -> Case:
    """A conditional adapter on a model, with a value for the batch or for each example."""
    return {
        "label": f"{model}, {method}, {VALUES[values]}",
        **MODELS[model],
        "wrappers": METHODS[model, method],
        "values": values,
    }


def conditional_steps() -> Iterator[Case]:
    """A training step of a conditional adapter, over the step of a plain adapter of its rank."""
    for model, method in FIRST:
        yield conditional(model, method, "one", [])
    targets = [("step", "plain", MOST_TIME), ("forward", "plain", MOST_TIME)]
    targets.append(("temp", "plain", MOST_MEMORY))
    for model, method in METHODS:
        yield conditional(model, method, "each", targets)
    case = conditional("MLP", "LoRA", "each", targets)
    label = case["label"].replace("LoRA", "LoRA of two directions")
    yield case | {"name": "conditional/MLP/LoRA/each, degree 2", "label": label, "degree": 2}


def film_steps() -> Iterator[Case]:
    """A training step with scales and shifts beside the adapters, over the step without them."""
    for model, method in FIRST:
        for values in VALUES:
            case = conditional(model, method, values, [("step", "without", 1.15)])
            sides = {"ours": side(form="film"), "without": side(form="conditional")}
            if model != "FNO":
                sides["by hand"] = side(form="by_hand")
                case["targets"].append(("step", "by hand", 1.0))
            yield case | {
                "name": f"conditional/{model}/{method}/{values}, film",
                "label": f"{case['label']}, scales and shifts",
                "sides": {**sides, "floor": FLOOR, "full": FULL},
                "measures": ("step",),
            }


def conditional(model: str, method: str, values: str, targets: list[Any]) -> Case:
    """A row of `conditional_steps`."""
    copies = {"copies": side(form="copies")} if values == "each" else {}
    sides = {"ours": side(form="conditional"), "plain": side(form="plain"), **copies}
    return {
        **adapted(model, method, values),
        "name": f"conditional/{model}/{method}/{values}",
        "group": "conditional",
        "kind": "conditional",
        "sides": {**sides, "floor": FLOOR, "full": FULL},
        "measures": ("step", "forward"),
        "targets": targets,
    }


def ensemble_steps() -> Iterator[Case]:
    """A training step of five adapters of one base, over a step of one, and over plain JAX."""
    image = {"kind": "conv", "image": (32, 32), "layers": 3}
    operator = {"kind": "fno", "channels": 32, "points": 64, "modes": 12, "layers": 3}
    operator |= {"linear_conv": False}
    models = [
        ("FNO", {"model": operator, "rank": 4, "wrappers": ["CPSpectral", "LoRAConv"]}, 2.5),
        ("MLP", MODELS["MLP"] | {"batch": 64}, 2.0),
        *(
            (f"convolutions, {c} channels", {"model": image | {"channels": c}, "rank": c // 8}, 2.5)
            for c in (8, 16, 64)
        ),
    ]
    for label, settings, most in models:
        yield {
            "batch": 8,
            **settings,
            "name": f"ensemble/{label}",
            "label": label,
            "group": "ensemble",
            "kind": "ensemble",
            "members": 5,
            "sides": {
                "ours": side(form="ensemble"),
                "one": side(form="one"),
                "floor": side(form="by_hand"),
            },
            "measures": ("step", "forward"),
            "targets": [("step", "one", most), ("step", "floor", 1.1)],
        }


def slopes() -> Iterator[Case]:
    """The derivative of a loss by the parameter: forward mode over other ways, and over none."""
    ways = {
        "ours": "forward_mode",
        "no derivative": "no_derivative",
        "difference": "difference",
        "reverse": "reverse_mode",
    }
    for model, method in FIRST:
        for values in VALUES:
            yield {
                **adapted(model, method, values),
                "name": f"slope/{model}/{values}",
                "group": "slope",
                "kind": "slope",
                # XLA makes one fusion of the MLP's loss, and counts no memory inside a fusion: the
                # memory of no way on the MLP is compared.
                "has_memory": model != "MLP",
                "sides": {name: side(way=way) for name, way in ways.items()},
                "measures": ("derivative",),
                "targets": [],
            }


def gauss_newton() -> Iterator[Case]:
    """Steps of second order with adapters, over all parameters, and over steps of first order."""
    # The study's goals for a range of values; for one value, a goal from its measured ratios.
    families = ("conditional lora 2", "full, an input more", [("step", 0.5), ("temp", 0.5)])
    instances = ("lora 2 for each value", "full for each value", [("step", 0.25)])
    labels = ("conditional LoRA, a range of values", "LoRA, one value")
    for label, (ours, full, most) in zip(labels, (families, instances), strict=True):
        yield {
            "name": f"gauss-newton/{ours.split()[0]}",
            "group": "gauss-newton",
            "label": label,
            "kind": "gauss_newton",
            "equation": "poisson",
            "points": 600,
            "steps": 10,
            "solver": "gauss-newton",
            "sides": {
                "ours": side(way=ours),
                "full": side(way=full),
                "adam": side(way=ours, solver="adam"),
            },
            "measures": ("step",),
            "targets": [(measure, "full", value) for measure, value in most],
        }
