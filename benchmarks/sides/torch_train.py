"""Training an adapted MLP with PEFT on PyTorch, run eagerly, as PEFT's users do."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import peft
import torch

from ._timing import Subject, timed

NAMES = "layer"


def build(case: dict[str, Any], device: str) -> Subject:
    """The MLP of the JAX sides: the same shapes, data, loss and optimiser."""
    torch.manual_seed(0)
    # XLA has the same default for float32 products on a GPU.
    torch.set_float32_matmul_precision("high" if device == "gpu" else "highest")
    where = torch.device("cuda" if device == "gpu" else "cpu")
    spec = case["model"]
    width, layers = spec["width"], spec["layers"]
    dtype = getattr(torch, spec.get("dtype", "float32"))
    sizes = [width, *[spec.get("inner", width)] * (layers - 1), width]
    modules: OrderedDict[str, torch.nn.Module] = OrderedDict()
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        if index:
            modules[f"relu{index}"] = torch.nn.ReLU()
        modules[f"{NAMES}{index}"] = torch.nn.Linear(inputs, outputs, dtype=dtype)
    plain = torch.nn.Sequential(modules)
    targets = [name for name in modules if name.startswith(NAMES)]
    model = peft.get_peft_model(plain, config_of(case["adapter"], case["rank"], targets))
    if case["adapter"] == "LoRAFALinear":
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)
    model = model.to(where)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trainable, lr=1e-3, fused=True)
    x = torch.randn(case["batch"], width, device=where, dtype=dtype)
    y = torch.randn(case["batch"], width, device=where, dtype=dtype)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimiser.step()

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(x)

    def wait(_: Any) -> None:
        if device == "gpu":
            torch.cuda.synchronize()

    return Subject(
        {"trainable": sum(p.numel() for p in trainable)},
        {
            "step": timed(step, wait, queue=True),
            "forward": timed(forward, wait, queue=True),
        },
    )


# PEFT's configuration of each method that jNO lacks, for our rank or size of a block.
LATER: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "AdaLoRALinear": ("AdaLoraConfig", lambda r: {"init_r": r, "total_step": 10_000}),
    "BOFTLinear": ("BOFTConfig", lambda r: {"boft_block_size": r, "boft_n_butterfly_factor": 2}),
    "C3ALinear": ("C3AConfig", lambda r: {"block_size": r}),
    "DEFTLinear": ("DeftConfig", lambda r: {"r": r}),
    "DeLoRALinear": ("DeloraConfig", lambda r: {"r": r}),
    "FourierFTLinear": ("FourierFTConfig", lambda r: {"n_frequency": 2 * 1024 * r}),
    "GraLoRALinear": ("GraloraConfig", lambda r: {"r": r, "alpha": r}),
    "HiRALinear": ("HiraConfig", lambda r: {"r": r}),
    "HRALinear": ("HRAConfig", lambda r: {"r": r}),
    "IA3InLinear": ("IA3Config", lambda r: {"feedforward_modules": r"layer\d+"}),
    "LoHaLinear": ("LoHaConfig", lambda r: {"r": r, "alpha": r}),
    "MiSSLinear": ("MissConfig", lambda r: {"r": r}),
    "OFTInLinear": ("OFTConfig", lambda r: {"r": 0, "oft_block_size": r}),
    "OLoRALinear": ("LoraConfig", lambda r: {"r": r, "init_lora_weights": "olora"}),
    "PSOFTLinear": ("PsoftConfig", lambda r: {"r": r}),
    "RandLoRALinear": ("RandLoraConfig", lambda r: {"r": r}),
    "RoAdLinear": ("RoadConfig", lambda r: {"group_size": r}),
    "SHiRALinear": ("ShiraConfig", lambda r: {"r": r}),
    "SuperTuningLinear": ("SupertuningConfig", lambda r: {"r": r}),
    "TinyLoRALinear": ("TinyLoraConfig", lambda r: {"r": r}),
    "VBLoRALinear": ("VBLoRAConfig", lambda r: {"r": r, "num_vectors": 256, "vector_length": 256}),
    "VeRASharedLinear": ("VeraConfig", lambda r: {"r": r}),
    "WaveFTLinear": ("WaveFTConfig", lambda r: {"n_frequency": 2 * 1024 * r}),
}


def config_of(adapter: str, rank: int, targets: list[str]) -> Any:
    """PEFT's nearest relative of an adapter, with the same number of parameters if possible."""

    def lora(**more: Any) -> Any:
        return peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, **more)

    match adapter:
        case "rsLoRALinear":
            return lora(use_rslora=True)
        case "DoRALinear":
            return lora(use_dora=True)
        case "PiSSALinear":
            return lora(init_lora_weights="pissa")
        case "LoKrLinear":
            # A dense second factor: `(r, r)` times `(out/r, in/r)`, as ours.
            return peft.LoKrConfig(
                r=1 << 16, alpha=1 << 16, decompose_factor=rank, target_modules=targets
            )
        case "VeRALinear":
            return peft.VeraConfig(r=rank, target_modules=targets)
        case "OFTLinear":
            return peft.OFTConfig(r=0, oft_block_size=rank, target_modules=targets)
        case "IA3Linear":
            return peft.IA3Config(target_modules=targets, feedforward_modules=[])
        case _ if adapter in LATER:
            name, settings = LATER[adapter]
            return getattr(peft, name)(target_modules=targets, **settings(rank))
        case _:
            # LoRA and LoRA-FA; also MiLoRA and LoRA-XS, which PEFT lacks.
            return lora()
