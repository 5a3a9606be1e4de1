"""The model of `twins.py` in Torch, and adapters that PEFT makes for it."""

import contextlib
import importlib.util
import os
import tempfile
import warnings
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

if importlib.util.find_spec("peft") is None:
    message = "needs torch and peft, which `make test-peft` installs"
    if os.environ.get("JNO_LORA_TEST_PEFT"):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

import peft
import peft.optimizers
import torch
from peft.tuners.lora.variants import calculate_alora_offsets
from torch import nn

from .twins import inputs

BLOCKS = ["layers.0.fc", "layers.1.fc"]
LINEAR = ["fc", "block.out", *BLOCKS]
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


def of(name, targets=EVEN, **options):
    """A function that makes the configuration of this name."""
    return lambda: getattr(peft, f"{name}Config")(target_modules=targets, **options)


FACTORED = [*LINEAR, *CONV, "grouped"]
VBLORA = {"r": 2, "num_vectors": 5, "vector_length": 2}
GRALORA = {"r": 4, "alpha": 3, "gralora_k": 2}
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
    "pissa": lambda: lora(EVEN, init_lora_weights="pissa"),
    "pissa-rslora": lambda: lora(EVEN, init_lora_weights="pissa", use_rslora=True),
    "pissa-niter": lambda: lora(EVEN, init_lora_weights="pissa_niter_99"),
    "olora": lambda: lora(EVEN, init_lora_weights="olora"),
    "lora-tokens": lambda: lora(["fc"], trainable_token_indices={"embed": [1, 3]}),
    "vera": of("Vera", LINEAR, r=6, save_projection=True),
    "ia3": of("IA3", ["out", "conv2"], feedforward_modules=[]),
    "ia3-bias": of("IA3", ["fc", "conv2"], feedforward_modules=[]),
    "ia3-inputs": of("IA3", [*EVEN, "conv2"], feedforward_modules=["wide", "conv2"]),
    "adalora": of("AdaLora", LINEAR, init_r=3, target_r=1, lora_alpha=5, total_step=10),
    "loha": of("LoHa", FACTORED, r=2, alpha=3),
    "loha-small": of("LoHa", FACTORED, r=1, alpha=3, use_effective_conv2d=True),
    "lokr": of("LoKr", FACTORED, r=2, alpha=3),
    "lokr-small": of("LoKr", [*LINEAR, *CONV], r=1, decompose_both=True, decompose_factor=2),
    "lokr-core": of("LoKr", CONV, r=1, use_effective_conv2d=True, decompose_factor=1),
    "lokr-square": of("LoKr", r=8, alpha=3, decompose_factor=2),
    "norms": of("LNTuning", ["norm"]),
    "tokens": of("TrainableTokens", ["embed"], token_indices=[1, 3]),
    "beft": of("Beft", ["wide", "block.fc"]),
    "osf": of("OSF", effective_rank=2),
    "pvera": of("Pvera", r=2),
    "vblora": of("VBLoRA", **VBLORA, topk=2),
    "vblora-topk": of("VBLoRA", **VBLORA, topk=3, save_only_topk_weights=True),
    "unilora": of("UniLora", r=2, theta_d_length=5, save_indices=True),
    "glora": of("Glora", r=2),
    "glora-vectors": of("Glora", config_A_B="vector", config_C="vector", config_D_E="vector"),
    "glora-constants": of("Glora", config_A_B="constant", config_C="none"),
    "hira": of("Hira", [*EVEN, *CONV, "embed"], r=2),
    "hra": of("HRA", r=4),
    "hra-odd": of("HRA", r=3),
    "hra-orthogonal": of("HRA", r=4, apply_GS=True),
    "miss": of("Miss", r=3),
    "miss-bat": of("Miss", r=2, init_weights="bat"),
    "miss-mini": of("Miss", r=3, init_weights="mini", mini_r=2),
    "gralora": of("Gralora", **GRALORA),
    "gralora-hybrid": of("Gralora", **GRALORA, hybrid_r=1),
    "delora": of("Delora", r=2, rank_pattern={"wide": 3}),
    "road": of("Road", group_size=2),
    "road-2": of("Road", variant="road_2", group_size=2),
    "road-4": of("Road", variant="road_4", group_size=2),
    "oft": of("OFT", oft_block_size=2),
    "oft-cayley": of("OFT", oft_block_size=2, use_cayley_neumann=False, bias="oft_only"),
    "oft-shared": of("OFT", oft_block_size=2, block_share=True),
    "oft-two-terms": of("OFT", r=2, oft_block_size=0, num_cayley_neumann_terms=2),
    "coft": of("OFT", oft_block_size=2, coft=True, eps=0.3),
    "boft": of("BOFT", boft_block_size=2),
    "deft": of("Deft", r=2, alpha=3),
    "deft-qr": of("Deft", r=2, decomposition_method="qr"),
    "para": of("Deft", r=2, para=True),
    "shira": of("Shira", r=1, random_seed=1),
    "supertuning": of("Supertuning", sparsity=0.8),
    "supertuning-found": of("Supertuning", sparsity=0.8, save_precomputed_indices=False),
    "supertuning-lora": of("Supertuning", sparsity=0.8, r=2, lora_alpha=3),
    "fourierft": of("FourierFT", n_frequency=6, n_frequency_pattern={"wide": 9}),
    "waveft": of("WaveFT", n_frequency=6),
    "waveft-db2": of("WaveFT", n_frequency=6, wavelet_family="db2"),
    "waveft-entries": of("WaveFT", n_frequency=6, use_idwt=False),
    "c3a": of("C3A", block_size=2, block_size_pattern={"wide": 1}),
    "randlora": of("RandLora", r=2, randlora_alpha=5),
    "tinylora": of("TinyLora", r=2, u=8),
    "tinylora-tied": of("TinyLora", r=2, u=3, weight_tying=1.0),
    "peanut": of("Peanut", r=2, depth=2, act_fn="silu"),
    "peanut-flat": of("Peanut", r=3, scaling=0.7),
    "lily": of("Lily", [*BLOCKS, "wide"], r=2, num_B=3, scaling=0.7, stride_A=2),
    "frod": of("Frod", BLOCKS, sparse_rate=0.3, progressbar=False),
}

# Configurations of adapters that depend on a task or on the tokens.
ROUTED = {
    "poly": of("Poly", r=2, n_tasks=3, n_skills=3, n_splits=2),
    "alora": lambda: lora(EVEN, alora_invocation_tokens=[7, 3], task_type="CAUSAL_LM"),
}

# Configurations of files that are refused, and the reason.
REFUSED = {
    "groups": (lambda: lora(["grouped"]), "its update mixes the 2 groups"),
    "pissa-random": (lambda: lora(EVEN, init_lora_weights="pissa_niter_1"), "did not converge"),
    "vera-drawn": (of("Vera", ["fc"], r=2, save_projection=False), "save_projection=True"),
    "randlora-drawn": (of("RandLora", r=2, save_projection=False), "save_projection=True"),
    "unilora-drawn": (of("UniLora", r=2, theta_d_length=5), "save_indices is False"),
    "tinylora-few": (of("TinyLora", r=2, u=3), "which of the trained vectors"),
    "lora-bias": (lambda: lora(["out"], lora_bias=True), "the file adds to its bias"),
    "ia3-groups": (
        of("IA3", ["grouped"], feedforward_modules=["grouped"]),
        "scales the inputs of each group differently",
    ),
    "oft-convolution": (of("OFT", ["conv2"], oft_block_size=2), "of this type for linear, not"),
    "waveft-family": (of("WaveFT", n_frequency=6, wavelet_family="sym2"), "family is 'sym2'"),
    "psoft": (of("Psoft", r=2, psoft_alpha=2), "whose signs"),
    "adamss": (of("Adamss", r=4, num_subspaces=2), "which rows of the weight form a group"),
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


def loaded(directory, module=None):
    """A fresh model, or `module`, with the adapter in `directory`, which must be whole."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(module or model(), directory)
    warned = [str(warning.message) for warning in caught]
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    return adapted.eval()


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


def linear_twin(layer):
    linear = eqx.nn.Linear(layer.in_features, layer.out_features, key=jax.random.key(0))
    arrays = [jnp.asarray(x.detach().numpy()) for x in (layer.weight, layer.bias)]
    return eqx.tree_at(lambda m: (m.weight, m.bias), linear, arrays)


def combined_update(adapted, weights, method, **settings):
    """The update of `add_weighted_adapter`, as an array."""
    names = ["first", "second"]
    adapted.add_weighted_adapter(names, weights, "both", combination_type=method, **settings)
    update = adapted.base_model.model[0].get_delta_weight("both").detach().numpy()
    adapted.delete_adapter("both")
    return update
