"""Fused experts in Torch, in PEFT's three layouts, and adapters of PEFT for their arrays."""

from . import torch_side
from .torch_side import moved, nn, peft, quiet, torch

EXPERTS, IN, HIDDEN = 3, 4, 5
TARGETS = ["mlp.experts.up", "experts.down", "gate.weight"]


class Experts(nn.Module):
    """Arrays `(experts, out, in)`; `(experts, in, out)` if `inputs_first`: PEFT may be told so."""

    def __init__(self, inputs_first, is_transposed):
        super().__init__()
        self.inputs_first = inputs_first
        if is_transposed:
            self.is_transposed = True
        sizes = {"up": (2 * HIDDEN, IN), "down": (IN, HIDDEN)}
        for name, (out, into) in sizes.items():
            shape = (EXPERTS, into, out) if inputs_first else (EXPERTS, out, into)
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x):
        up, down = (w if self.inputs_first else w.mT for w in (self.up, self.down))
        gate, value = (x @ up).chunk(2, -1)
        return (gate.sigmoid() * value) @ down


LAYOUTS = {"outputs-first": (False, False), "transposed": (True, True), "as-outputs": (True, False)}


def model(layout):
    torch.manual_seed(0)
    experts = Experts(*LAYOUTS[layout])
    blocks = nn.ModuleDict({"experts": experts, "gate": nn.Linear(IN, EXPERTS, bias=False)})
    return nn.ModuleDict({"mlp": blocks}).eval()


def trained(layout, **options):
    settings = {"r": 2, "lora_alpha": 3, "target_modules": [], **options}
    with quiet():
        config = peft.LoraConfig(target_parameters=TARGETS, **settings)
        adapted = peft.get_peft_model(model(layout), config)
    moved(adapted)
    return adapted.eval()


def loaded(layout, directory):
    return torch_side.loaded(directory, model(layout))


@torch.no_grad()
def outputs(module, x):
    inner = module.base_model.model if isinstance(module, peft.PeftModel) else module
    with quiet():
        batch = torch.from_numpy(x)
        return [inner["mlp"][name](batch).numpy() for name in ("experts", "gate")]
