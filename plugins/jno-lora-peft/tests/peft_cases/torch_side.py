"""The model of `twins.py` in Torch, and adapters that PEFT makes for it."""

import contextlib
import tempfile
import warnings
from pathlib import Path

import peft
import torch
from peft.tuners.lora.variants import calculate_alora_offsets
from torch import nn

from .twins import inputs

LINEAR = ["fc", "block.out", "layers.0.fc", "layers.1.fc"]
CONV = ["conv1", "conv2"]
ALL = [*LINEAR, *CONV, "embed"]
EVEN = ["wide", "deep"]


class Model(nn.Module):
    prepare_inputs_for_generation = None  # which PEFT looks up for the task CAUSAL_LM of aLoRA

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleDict(
            {"fc": nn.Linear(5, 4), "out": nn.Linear(4, 3, bias=False)},
        )
        self.fc = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.ModuleDict({"fc": nn.Linear(4, 4)}) for _ in range(2))
        self.conv1 = nn.Conv1d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(2, 4, (3, 2), stride=2)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.embed = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.wide = nn.Linear(8, 6)
        self.deep = nn.Linear(6, 8, bias=False)

    def forward(self, x):
        return self.head(self.norm(self.embed(x)))


def lora(targets=ALL, **options):
    return peft.LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": targets, **options})


# A configuration for each thing that is read, by a name for it.
CASES = {
    "lora": lambda: lora(
        lora_dropout=0.1,
        rank_pattern={"fc": 3, "block.out": 1},
        alpha_pattern={"^layers.0.fc": 5, "conv2": 1},
    ),
    "rslora": lambda: lora(use_rslora=True, rank_pattern={"conv1": 4}),
    "dora": lambda: lora(use_dora=True),
    "dora-rslora": lambda: lora(["block.fc"], use_dora=True, use_rslora=True),
    "bias": lambda: lora(["block.fc", "conv2"], lora_bias=True),
    "all-biases": lambda: lora([*LINEAR, "head"], bias="all"),
    "own-biases": lambda: lora(["block.fc", "conv1"], bias="lora_only"),
    "modules": lambda: lora(["fc"], modules_to_save=["head", "norm", "layers.1.fc"]),
    "regex": lambda: lora(r"(block|layers\.\d)\..*", exclude_modules=["out"]),
    "some-layers": lambda: lora(["fc"], layers_to_transform=[1], layers_pattern="layers"),
    "large-rank": lambda: lora(["block.fc", "embed"], r=16),
    "mica": lambda: lora(LINEAR, init_lora_weights="mica"),
    "vera": lambda: peft.VeraConfig(r=6, target_modules=LINEAR, save_projection=True),
    "ia3": lambda: peft.IA3Config(target_modules=["out", "conv2"], feedforward_modules=[]),
    "ia3-bias": lambda: peft.IA3Config(target_modules=["fc", "conv2"], feedforward_modules=[]),
    "adalora": lambda: peft.AdaLoraConfig(
        init_r=3, target_r=1, lora_alpha=5, total_step=10, target_modules=LINEAR
    ),
    "loha": lambda: peft.LoHaConfig(r=2, alpha=3, target_modules=[*LINEAR, *CONV, "grouped"]),
    "loha-small": lambda: peft.LoHaConfig(
        r=1, alpha=3, target_modules=[*LINEAR, *CONV, "grouped"], use_effective_conv2d=True
    ),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=3, target_modules=[*LINEAR, *CONV, "grouped"]),
    "lokr-small": lambda: peft.LoKrConfig(
        r=1, target_modules=[*LINEAR, *CONV], decompose_both=True, decompose_factor=2
    ),
    "lokr-core": lambda: peft.LoKrConfig(
        r=1, target_modules=CONV, use_effective_conv2d=True, decompose_factor=1
    ),
    "norms": lambda: peft.LNTuningConfig(target_modules=["norm"]),
    "tokens": lambda: peft.TrainableTokensConfig(target_modules=["embed"], token_indices=[1, 3]),
    "lora-tokens": lambda: lora(["fc"], trainable_token_indices={"embed": [1, 3]}),
    "beft": lambda: peft.BeftConfig(target_modules=["wide", "block.fc"]),
    "ia3-inputs": lambda: peft.IA3Config(
        target_modules=[*EVEN, "conv2"], feedforward_modules=["wide", "conv2"]
    ),
    "pissa": lambda: lora(EVEN, init_lora_weights="pissa"),
    "pissa-rslora": lambda: lora(EVEN, init_lora_weights="pissa", use_rslora=True),
    "pissa-niter": lambda: lora(EVEN, init_lora_weights="pissa_niter_99"),
    "olora": lambda: lora(EVEN, init_lora_weights="olora"),
    "osf": lambda: peft.OSFConfig(effective_rank=2, target_modules=EVEN),
    "pvera": lambda: peft.PveraConfig(r=2, target_modules=EVEN),
    "vblora": lambda: peft.VBLoRAConfig(
        r=2, num_vectors=5, vector_length=2, topk=2, target_modules=EVEN
    ),
    "vblora-topk": lambda: peft.VBLoRAConfig(
        r=2,
        num_vectors=5,
        vector_length=2,
        topk=3,
        target_modules=EVEN,
        save_only_topk_weights=True,
    ),
    "unilora": lambda: peft.UniLoraConfig(
        r=2, theta_d_length=5, save_indices=True, target_modules=EVEN
    ),
    "glora": lambda: peft.GloraConfig(r=2, target_modules=EVEN),
    "glora-vectors": lambda: peft.GloraConfig(
        config_A_B="vector", config_C="vector", config_D_E="vector", target_modules=EVEN
    ),
    "glora-constants": lambda: peft.GloraConfig(
        config_A_B="constant", config_C="none", target_modules=EVEN
    ),
    "hira": lambda: peft.HiraConfig(r=2, target_modules=[*EVEN, *CONV, "embed"]),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=EVEN),
    "hra-odd": lambda: peft.HRAConfig(r=3, target_modules=EVEN),
    "hra-orthogonal": lambda: peft.HRAConfig(r=4, apply_GS=True, target_modules=EVEN),
    "miss": lambda: peft.MissConfig(r=3, target_modules=EVEN),
    "miss-bat": lambda: peft.MissConfig(r=2, init_weights="bat", target_modules=EVEN),
    "miss-mini": lambda: peft.MissConfig(r=3, init_weights="mini", mini_r=2, target_modules=EVEN),
    "gralora": lambda: peft.GraloraConfig(r=4, alpha=3, gralora_k=2, target_modules=EVEN),
    "gralora-hybrid": lambda: peft.GraloraConfig(
        r=4, alpha=3, gralora_k=2, hybrid_r=1, target_modules=EVEN
    ),
    "delora": lambda: peft.DeloraConfig(r=2, rank_pattern={"wide": 3}, target_modules=EVEN),
    "road": lambda: peft.RoadConfig(group_size=2, target_modules=EVEN),
    "road-2": lambda: peft.RoadConfig(variant="road_2", group_size=2, target_modules=EVEN),
    "road-4": lambda: peft.RoadConfig(variant="road_4", group_size=2, target_modules=EVEN),
    "oft": lambda: peft.OFTConfig(oft_block_size=2, target_modules=EVEN),
    "oft-cayley": lambda: peft.OFTConfig(
        oft_block_size=2, use_cayley_neumann=False, bias="oft_only", target_modules=EVEN
    ),
    "oft-shared": lambda: peft.OFTConfig(oft_block_size=2, block_share=True, target_modules=EVEN),
    "oft-two-terms": lambda: peft.OFTConfig(
        r=2, oft_block_size=0, num_cayley_neumann_terms=2, target_modules=EVEN
    ),
    "coft": lambda: peft.OFTConfig(oft_block_size=2, coft=True, eps=0.3, target_modules=EVEN),
    "boft": lambda: peft.BOFTConfig(boft_block_size=2, target_modules=EVEN),
    "deft": lambda: peft.DeftConfig(r=2, alpha=3, target_modules=EVEN),
    "deft-qr": lambda: peft.DeftConfig(r=2, decomposition_method="qr", target_modules=EVEN),
    "para": lambda: peft.DeftConfig(r=2, para=True, target_modules=EVEN),
    "shira": lambda: peft.ShiraConfig(r=1, random_seed=1, target_modules=EVEN),
    "supertuning": lambda: peft.SupertuningConfig(sparsity=0.8, target_modules=EVEN),
    "supertuning-found": lambda: peft.SupertuningConfig(
        sparsity=0.8, save_precomputed_indices=False, target_modules=EVEN
    ),
    "supertuning-lora": lambda: peft.SupertuningConfig(
        sparsity=0.8, r=2, lora_alpha=3, target_modules=EVEN
    ),
    "fourierft": lambda: peft.FourierFTConfig(
        n_frequency=6, n_frequency_pattern={"wide": 9}, target_modules=EVEN
    ),
    "waveft": lambda: peft.WaveFTConfig(n_frequency=6, target_modules=EVEN),
    "waveft-db2": lambda: peft.WaveFTConfig(
        n_frequency=6, wavelet_family="db2", target_modules=EVEN
    ),
    "waveft-entries": lambda: peft.WaveFTConfig(n_frequency=6, use_idwt=False, target_modules=EVEN),
    "lokr-square": lambda: peft.LoKrConfig(r=8, alpha=3, decompose_factor=2, target_modules=EVEN),
    "c3a": lambda: peft.C3AConfig(
        block_size=2, block_size_pattern={"wide": 1}, target_modules=EVEN
    ),
    "randlora": lambda: peft.RandLoraConfig(r=2, randlora_alpha=5, target_modules=EVEN),
    "tinylora": lambda: peft.TinyLoraConfig(r=2, u=8, target_modules=EVEN),
    "tinylora-tied": lambda: peft.TinyLoraConfig(r=2, u=3, weight_tying=1.0, target_modules=EVEN),
    "peanut": lambda: peft.PeanutConfig(r=2, depth=2, act_fn="silu", target_modules=EVEN),
    "peanut-flat": lambda: peft.PeanutConfig(r=3, scaling=0.7, target_modules=EVEN),
    "lily": lambda: peft.LilyConfig(
        r=2, num_B=3, scaling=0.7, stride_A=2, target_modules=["layers.0.fc", "layers.1.fc", "wide"]
    ),
    "frod": lambda: peft.FrodConfig(
        sparse_rate=0.3, progressbar=False, target_modules=["layers.0.fc", "layers.1.fc"]
    ),
}

# Configurations of adapters that depend on a task or on the tokens.
ROUTED = {
    "poly": lambda: peft.PolyConfig(r=2, n_tasks=3, n_skills=3, n_splits=2, target_modules=EVEN),
    "alora": lambda: lora(EVEN, alora_invocation_tokens=[7, 3], task_type="CAUSAL_LM"),
}

# Configurations of files that are refused, and the reason.
REFUSED = {
    "groups": (lambda: lora(["grouped"]), "its update mixes the 2 groups"),
    "pissa-random": (
        lambda: lora(EVEN, init_lora_weights="pissa_niter_1"),
        "did not converge",
    ),
    "vera-drawn": (
        lambda: peft.VeraConfig(r=2, target_modules=["fc"], save_projection=False),
        "save_projection=True",
    ),
    "randlora-drawn": (
        lambda: peft.RandLoraConfig(r=2, target_modules=EVEN, save_projection=False),
        "save_projection=True",
    ),
    "unilora-drawn": (
        lambda: peft.UniLoraConfig(r=2, theta_d_length=5, target_modules=EVEN),
        "save_indices=True",
    ),
    "tinylora-few": (
        lambda: peft.TinyLoraConfig(r=2, u=3, target_modules=EVEN),
        "which of the trained vectors",
    ),
    "lora-bias": (lambda: lora(["out"], lora_bias=True), "the file adds to its bias"),
    "ia3-groups": (
        lambda: peft.IA3Config(target_modules=["grouped"], feedforward_modules=["grouped"]),
        "scales the inputs of each group differently",
    ),
    "oft-convolution": (
        lambda: peft.OFTConfig(oft_block_size=2, target_modules=["conv2"]),
        "PEFT has adapters of this type for linear",
    ),
    "waveft-family": (
        lambda: peft.WaveFTConfig(n_frequency=6, wavelet_family="sym2", target_modules=EVEN),
        "wavelet_family is 'sym2'",
    ),
    "psoft": (lambda: peft.PsoftConfig(r=2, psoft_alpha=2, target_modules=EVEN), "whose signs"),
    "adamss": (
        lambda: peft.AdamssConfig(r=4, num_subspaces=2, target_modules=EVEN),
        "which rows of the weight form a group",
    ),
}


@contextlib.contextmanager
def quiet():
    """PEFT and Torch warn of much that is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def configurations():
    """The class of the configuration of each type, by the name of the type."""
    return {kind.value: cls for kind, cls in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def model():
    torch.manual_seed(0)
    return Model().eval()


def weights(module):
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def trained(config):
    """A model with the adapter of PEFT that `config()` describes, all its parameters moved."""
    with quiet():
        settings = config()
        settings.task_type = None  # the model has no logits
        adapted = peft.get_peft_model(model(), settings)
    moved(adapted)
    return adapted.eval()


def moved(module):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape)


def converted_pissa(directory):
    """Save a trained PiSSA adapter, converted to LoRA. The model is not changed by that."""
    with quiet(), tempfile.TemporaryDirectory() as folder:
        adapted = peft.get_peft_model(model(), lora(LINEAR, init_lora_weights="pissa"))
        start = Path(folder) / "start"
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(start)
        moved(adapted)
        adapted.save_pretrained(directory, path_initial_model_for_weight_conversion=str(start))
    return adapted.eval()


def loaded(directory):
    """A fresh model with the adapter in `directory`, and what PEFT warned of meanwhile."""
    return loaded_into(model(), directory)


def loaded_into(module, directory):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(module, directory)
    return adapted.eval(), [str(warning.message) for warning in caught]


@torch.no_grad()
def outputs(module):
    """The outputs of each layer for its batch, also of layers inside adapters."""
    inner = module.base_model.model if isinstance(module, peft.PeftModel) else module
    with quiet():
        return {
            name: inner.get_submodule(name)(torch.from_numpy(x)).numpy()
            for name, x in inputs().items()
        }


@torch.no_grad()
def routed_outputs(adapted, kind, batches, tasks, tokens):
    """The outputs of layers that are told the task, or the invocation's place, of each row."""
    how: dict[str, object] = {"task_ids": torch.tensor(tasks)}
    if kind == "alora":
        offsets = calculate_alora_offsets(adapted.peft_config, "default", torch.tensor(tokens))
        how = {"alora_offsets": offsets}
    layers = adapted.base_model.model
    return {
        name: layers.get_submodule(name)(torch.from_numpy(x), **how).numpy()
        for name, x in batches.items()
    }


def two_adapters():
    """A linear layer (20 -> 24) with two adapters of rank 4, all of whose factors are random."""
    torch.manual_seed(0)
    ours = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"])
    adapted = peft.get_peft_model(nn.Sequential(nn.Linear(20, 24)), ours, "first")
    adapted.add_adapter("second", peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return adapted


def linear_of(adapted):
    """The weight and bias of the layer of `two_adapters`."""
    layer = adapted.base_model.model[0].base_layer
    return layer.weight.detach().numpy(), layer.bias.detach().numpy()


def combined_update(adapted, weights, method, **settings):
    """The update of `add_weighted_adapter`, as an array."""
    names = ["first", "second"]
    adapted.add_weighted_adapter(names, weights, "both", combination_type=method, **settings)
    update = adapted.base_model.model[0].get_delta_weight("both").detach().numpy()
    adapted.delete_adapter("both")
    return update
