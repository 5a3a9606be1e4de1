"""PhysicsNeMo's side of `benchmarks.physicsnemo`: training, timing, reach."""

import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from physicsnemo.experimental.peft import LoRAConfig, apply_lora
from physicsnemo.models.dpot.dpot import DPOTNet
from physicsnemo.models.fno import FNO
from physicsnemo.models.mlp import FullyConnected
from physicsnemo.models.transolver import Transolver
from physicsnemo.models.unet import UNet

from ._timing import Subject, timed

# Defaults of the package, except for arguments that have none. Periodic fields need no padding.
OPERATORS: dict[str, Callable[[], Any]] = {
    "FNO": lambda: FNO(1, 1, dimension=2),
    "DPOT": DPOTNet,
    "transformer": lambda: Transolver(1, 1, embedding_dim=2, use_te=False),
    "UNet": lambda: UNet(1, 1),
    "MLP": FullyConnected,
}


def build(case: dict[str, Any], device: str) -> Subject:
    """The facts of fits or of reach, or the measures of a step."""
    torch.set_float32_matmul_precision("highest")
    match case["do"]:
        case "fit":
            return Subject(fits(case))
        case "reach":
            return Subject({name: reach(make()) for name, make in OPERATORS.items()})
    return steps(case)


def operator() -> FNO:
    """The operator of the task: two hidden layers in the decoder, the rest by default."""
    return FNO(1, 1, dimension=1, padding=0, decoder_layers=2)


def adapt(model: torch.nn.Module, rank: int, pattern: str = ".", extras: tuple[str, ...] = ()):
    """The result of `apply_lora` on all linear layers whose names contain the pattern."""
    config = LoRAConfig(rank, target_pattern=pattern, extras_trainable=list(extras))
    return apply_lora(model, config)


def reach(model: torch.nn.Module) -> dict[str, float]:
    """The parameters of the model, and the fraction of them in layers that get an adapter."""
    total = sum(p.numel() for p in model.parameters())
    try:
        adapt(model, 1)
    except ValueError:  # no layer is left
        return {"parameters": total, "reached": 0.0}
    bases = [m.base_layer for m in model.modules() if hasattr(m, "lora_A")]
    return {
        "parameters": total,
        "reached": sum(p.numel() for base in bases for p in base.parameters()) / total,
    }


def relative(predicted: torch.Tensor, solutions: torch.Tensor) -> torch.Tensor:
    """The mean relative error of a batch of fields."""
    return (torch.linalg.norm(predicted - solutions, dim=1) / solutions.norm(dim=1)).mean()


def fits(case: dict[str, Any]) -> dict[str, Any]:
    """For each seed and rate: losses, and the errors on new fields."""
    stored = dict(np.load(case["data"]))
    data = {name: torch.tensor(array) for name, array in stored.items()}
    runs, trainable = [], 0
    for seed, batches in enumerate(data["batches"]):
        for rate in case["rates"]:
            torch.manual_seed(seed)
            model = operator()
            model.load_state_dict({k[6:]: v for k, v in data.items() if k.startswith("state:")})
            trainable = adapt(model, case["rank"], case["pattern"], case["extras"]).n_trainable
            if case["given"]:
                with torch.no_grad():
                    for name, module in model.named_modules():
                        if hasattr(module, "lora_A"):
                            module.lora_A.copy_(data[f"A:{name}"].T)
            runs.append({"rate": rate, **fit(model, data, batches, rate)})
    return {"runs": runs, "trainable": trainable}


def fit(model: FNO, data: dict[str, torch.Tensor], batches: torch.Tensor, rate: float) -> Any:
    """Adam with a rate that decays as a cosine."""
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []

    def error(of: str) -> torch.Tensor:
        return relative(model(data[f"{of}_x"][:, None])[:, 0], data[f"{of}_y"])

    with torch.inference_mode():
        start = error("test").item()
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / len(batches)))
        optimiser.zero_grad(set_to_none=True)
        loss = relative(model(data["train_x"][batch][:, None])[:, 0], data["train_y"][batch])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.inference_mode():
        ends = {of: error(of).item() for of in ("validation", "test")}
    return {"start": start, "losses": losses, **ends}


def steps(case: dict[str, Any]) -> Subject:
    """A step of training and a forward pass, eager or compiled."""
    torch.manual_seed(0)
    if case["model"] == "fno":
        model, shape = operator(), (case["batch"], 1, case["points"])
    else:
        model, shape = FullyConnected(), (case["batch"], 512)
    count = adapt(model, case["rank"]).n_trainable
    x, y = torch.randn(shape), torch.randn(shape)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trainable, lr=1e-3, fused=True)
    forward_of = torch.compile(model) if case["compile"] else model

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(forward_of(x), y).backward()
        optimiser.step()

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return forward_of(x)

    step()  # compiles, and makes the optimiser's state
    calls = {"step": step, "forward": forward}
    measures = {
        name: timed(call, lambda _: None, queue=True, clock=time.process_time)
        for name, call in calls.items()
    }
    return Subject({"trainable": count, "temp": peak(step, optimiser)}, measures)


def peak(step: Callable[[], None], optimiser: torch.optim.Optimizer) -> int:
    """The most bytes that a step allocates beside the arrays that were there before."""
    step()
    # Else the step would free old gradients first, and its allocations would start below zero.
    optimiser.zero_grad(set_to_none=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    # The sort is stable: changes at one time stay in their order.
    changes.sort(key=lambda event: event["ts"])
    return int(np.cumsum([event["args"]["Bytes"] for event in changes]).max())
