"""Proofs beside PEFT on Torch: faults of files and of bases, as data."""

import copy
import json
import re
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.language_twins import DEPTH, TARGETS, WIDTH, WORDS, TorchModel, twin_of
from peft_cases.torch_side import peft, quiet, torch
from safetensors.numpy import load_file, save_file

from jno.lora import JnoLoraError, Net
from jno.lora.extending import adapted_layers
from jno_lora_peft import load_peft, proof, save_peft
from jno_lora_proof import prove, read_inputs, sign_update, write_entries

TOKENS = np.random.default_rng(1).integers(0, WORDS, (8, 6))
FAULTS = {}


def fault(cause):
    """`edit(config, tensors, base)` changes the file, or returns another base."""

    def add(edit):
        FAULTS[edit.__name__] = cause, edit
        return edit

    return add


def renamed(tensors, function):
    old = dict(tensors)
    tensors.clear()
    tensors.update({function(name): array for name, array in old.items()})


def shifted(name):
    return re.sub(r"layers\.(\d)", lambda m: f"layers.{(int(m[1]) + 1) % DEPTH}", name)


@fault("scale wrong by 0.5")
def alpha_retyped(config, tensors, base):
    config["lora_alpha"] = 4


@fault("scale wrong by 2")
def scaled_by_the_root_of_the_rank(config, tensors, base):
    config["use_rslora"] = True


@fault("scale wrong by 0.5")
def a_pattern_of_alphas_added(config, tensors, base):
    config["alpha_pattern"] = {"query": 4}


@fault("scale wrong by -1")
def sign_flipped(config, tensors, base):
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = -tensors[name]


@fault("transposed")
def factors_exchanged(config, tensors, base):
    for name in [*tensors]:
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            tensors[name], tensors[other] = tensors[other].T.copy(), tensors[name].T.copy()


@fault("the update of")
def layers_shifted_by_one(config, tensors, base):
    renamed(tensors, shifted)


@fault("the update of")
def queries_and_values_exchanged(config, tensors, base):
    other = {"query": "value", "value": "query"}
    renamed(tensors, lambda n: re.sub("query|value", lambda m: other[m[0]], n))


@fault("missing|zero")
def one_layer_missing(config, tensors, base):
    for name in [n for n in tensors if "layers.1.value" in n]:
        del tensors[name]


@fault("missing|zero")
def values_not_targeted(config, tensors, base):
    config["target_modules"] = ["query", "output"]
    for name in [n for n in tensors if "value" in n]:
        del tensors[name]


@fault("not loaded")
def head_missing(config, tensors, base):
    config["modules_to_save"] = None
    for name in [n for n in tensors if "head" in n]:
        del tensors[name]


@fault("not loaded")
def tensors_of_the_head_missing(config, tensors, base):
    for name in [n for n in tensors if "head" in n]:
        del tensors[name]


@fault("zero")
def never_copied(config, tensors, base):
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = 0 * tensors[name]


@fault("rows in another order")
def heads_in_another_order(config, tensors, base):
    order = np.arange(WIDTH).reshape(4, -1).T.ravel()
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = tensors[name][order].copy()


@fault("columns in another order|another update")
def inputs_in_another_order(config, tensors, base):
    order = np.arange(WIDTH).reshape(4, -1).T.ravel()
    for name in tensors:
        if "lora_A" in name:
            tensors[name] = tensors[name][:, order].copy()


@fault("another base")
def another_base(config, tensors, base):
    return TorchModel(seed=7)


@fault("another base")
def another_revision(config, tensors, base):
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))


@fault("already merged")
def base_merged_already(config, tensors, base):
    with torch.no_grad():
        for name, module in base.named_modules():
            A = tensors.get(f"base_model.model.{name}.lora_A.weight")
            if A is not None:
                B = tensors[f"base_model.model.{name}.lora_B.weight"]
                module.weight.add_(torch.from_numpy(2 * B @ A))


@fault("another base|the layer of")
def layers_of_the_base_shifted(config, tensors, base):
    base.layers = torch.nn.ModuleList([*base.layers[1:], base.layers[0]])


def theirs(base, dtype=torch.float32):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, modules_to_save=["head"])
    model = peft.get_peft_model(copy.deepcopy(base), config).to(dtype)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def judged(model, folder):
    was, args = proof.read(folder)
    return proof.judge(was, proof.measure(model, args))[0]


def loaded(base, folder):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folder)
    return model, any("missing" in str(warning.message).lower() for warning in heard)


@pytest.fixture(scope="module")
def made_by_torch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_by_torch")
    model = theirs(TorchModel())
    with quiet():
        model.save_pretrained(folder)
    proof.write(model, folder, [TOKENS])
    return folder


def test_a_file_of_torch_is_proved_here_and_there(made_by_torch):
    assert judged(loaded(TorchModel(), made_by_torch)[0], made_by_torch) == "acts"
    ours = load_peft(twin_of(TorchModel()), made_by_torch, prove=True)
    found = prove(ours, made_by_torch, names=names_of(ours))
    assert found.verdict == "acts" and found.error < 1e-4
    half = loaded(TorchModel().to(torch.bfloat16), made_by_torch)[0]
    assert judged(half, made_by_torch).startswith("acts")


def test_a_proof_of_updates_alone_is_checked_on_torch_whatever_the_layout(tmp_path):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    base = torch.nn.ModuleDict({"c_attn": conv1d(6, 4), "linear": torch.nn.Linear(4, 6)})
    config = peft.LoraConfig(r=2, target_modules=["c_attn", "linear"], fan_in_fan_out=True)
    with quiet():  # it says that the other layer has another layout
        model = peft.get_peft_model(copy.deepcopy(base), config)
    torch.manual_seed(0)
    entries = {}
    with torch.no_grad():
        for name, axes in (("c_attn", (1, 0)), ("linear", (0, 1))):
            layer = model.base_model.model[name]
            layer.lora_B["default"].weight.normal_()
            weight = layer.base_layer.weight
            merged = (weight + layer.get_delta_weight("default")).permute(axes)
            entries[f"{name}/weight"] = sign_update(merged.numpy(), weight.permute(axes).numpy())
    write_entries(tmp_path, entries, "float32")
    assert judged(model, tmp_path) == "acts"
    with model.disable_adapter():
        assert judged(model, tmp_path) == "fault: zero: inactive, or never trained"
    half = copy.deepcopy(model)
    half.base_model.model["c_attn"].scaling["default"] /= 2
    assert judged(half, tmp_path) == "fault: scale wrong by 0.5"


def names_of(model):
    return {path: path.replace("/", ".") for path, _ in adapted_layers(model)} | {"head": "head"}


def test_a_file_of_ours_is_proved_on_torch(tmp_path):
    net = Net(twin_of(TorchModel()), key=jax.random.key(0)).freeze()
    net.lora(rank=4, alpha=8, target="query|value|output").mask("^head").unfreeze()
    moved = jax.tree.map(
        lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), net.partition()[0]
    )
    save_peft(net.update(moved), tmp_path, proof=jnp.asarray(TOKENS, jnp.int32))
    assert judged(loaded(TorchModel(), tmp_path)[0], tmp_path) == "acts"
    (tokens,), _ = read_inputs(tmp_path)
    np.testing.assert_array_equal(tokens, TOKENS)
    assert judged(loaded(TorchModel(seed=7), tmp_path)[0], tmp_path).startswith(
        "fault: another base"
    )


def test_the_faults_are_noticed_and_named_here_and_there(made_by_torch, tmp_path, capsys):
    rows, noticed, named = [], {"torch": 0, "here": 0}, {"torch": 0, "here": 0}
    for name, (cause, edit) in FAULTS.items():
        folder, base = tmp_path / name, TorchModel()
        folder.mkdir()
        config = json.loads((made_by_torch / "adapter_config.json").read_text())
        tensors = load_file(made_by_torch / "adapter_model.safetensors")
        other = edit(config, tensors, base) or base
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / proof.FILE).write_bytes((made_by_torch / proof.FILE).read_bytes())
        try:
            model, warned = loaded(other, folder)
            there = "warns" if warned else "in silence"
            verdicts = {"torch": judged(model, folder)}
        except KeyError as error:
            there, verdicts = "raises", {"torch": f"refused: {error}"}
        try:
            ours = load_peft(twin_of(other), folder)
            verdicts["here"] = str(prove(ours, folder, names=names_of(ours)).cause)
            alone = "in silence"
        except JnoLoraError as error:
            verdicts["here"] = alone = f"refused: {str(error).splitlines()[0]}"
        for side, verdict in verdicts.items():
            noticed[side] += verdict not in ("acts", "acts, rounded", "None")
            named[side] += bool(re.search(cause, verdict)) or "refused" in verdict
        rows.append((name, there, alone[:10], *verdicts.values()))
    with capsys.disabled():
        print("\nfault | PEFT loads | load_peft alone | proof on Torch | proof here")
        print(*(" | ".join(row) for row in rows), sep="\n")
        print(f"{len(FAULTS)} faults, noticed {noticed}, named {named}")
    for side in ("torch", "here"):
        assert noticed[side] >= 0.95 * len(FAULTS) and named[side] >= 0.8 * len(FAULTS)


def test_the_script_needs_neither_jax_nor_the_rest_of_us(made_by_torch):
    program = (
        "import sys; sys.modules.update(dict.fromkeys(['jax', 'equinox', 'jno', 'jno.lora']))\n"
        "from jno_lora_peft import proof\n"
        f"print(sorted(proof.read({str(made_by_torch)!r})[0]))"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert b"adapted" in printed.stdout
