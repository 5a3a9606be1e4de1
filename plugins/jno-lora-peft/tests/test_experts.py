"""Arrays of fused experts (`target_parameters`), against the law of PEFT's `ParamWrapper`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal, read_files, write_files

from jno.lora import PeftFormatError, SelectionError, apply_lora, merge_lora
from jno.lora.peft import load_peft, save_peft
from jno_lora_arrays import declare, plain

EXPERTS, OUT, IN, RANK = 3, 5, 4, 2
UP, DOWN = (EXPERTS, OUT, IN), (EXPERTS, IN, 6)
TARGETS = ["experts.up", "experts.down"]
KEY = jax.random.key(0)


def pair(module, shape, seed=0, swapped=False):
    """PEFT's tensors for an array of this shape; `swapped` for a module that is transposed."""
    experts, first, last = shape
    a, b = (first, last) if swapped else (last, first)
    A = normal(RANK * experts, a, seed=seed)
    return {
        f"{PREFIX}{module}.lora_A.weight": A,
        f"{PREFIX}{module}.lora_B.weight": normal(b, RANK * experts, seed=seed + 1),
    }


def update(tensors, module, scale, swapped=False):
    """The update of each expert, written out: rows of `A` by expert, columns of `B` by rank."""
    A, B = (tensors[f"{PREFIX}{module}.lora_{letter}.weight"] for letter in "AB")
    experts = []
    for e in range(EXPERTS):
        rows = [A[e * RANK + r] for r in range(RANK)]
        columns = [B[:, r * EXPERTS + e] for r in range(RANK)]
        delta = sum(np.outer(column, row) for column, row in zip(columns, rows, strict=True))
        experts.append(delta.T if swapped else delta)
    return scale * np.stack(experts)


def arrays(**shapes):
    return {"experts": {name: jnp.asarray(normal(*s)) for name, s in shapes.items()}}


def two(folder, **config):
    tensors = pair("experts.base_layer", UP) | pair("experts", DOWN, seed=5)
    settings = {"target_parameters": TARGETS, "target_modules": None, **config}
    return tensors, write_files(folder, tensors, **settings)


def test_a_file_fits_declared_arrays_and_is_written_back(tmp_path):
    tensors, folder = two(tmp_path)
    bare = arrays(up=UP, down=DOWN)
    model = load_peft(declare(bare, {"experts/": "soi"}), folder)
    for name, module in (("up", "experts.base_layer"), ("down", "experts")):
        change = plain(model)["experts"][name] - bare["experts"][name]
        assert np.allclose(change, update(tensors, module, 1.5), atol=1e-5)
    save_peft(model, tmp_path / "again", target_parameters=["up$", "down$"])
    config, again = read_files(tmp_path / "again")
    assert config["target_parameters"] == ["experts.down", "experts.up"]
    assert config["target_modules"] is None
    assert again.keys() == tensors.keys()
    assert all(np.allclose(again[name], tensors[name], atol=1e-6) for name in tensors)


def test_arrays_with_the_inputs_first_are_told_by_their_shapes(tmp_path):
    """As PEFT reads them where the module is transposed, and where it is not."""
    for swapped in (True, False):
        tensors = pair("experts", UP, swapped=swapped)
        settings = {"target_parameters": ["up"], "target_modules": None}
        bare, folder = arrays(up=UP), write_files(tmp_path, tensors, **settings)
        model = load_peft(declare(bare, {"up": "sio"}), folder)
        change = plain(model)["experts"]["up"] - bare["experts"]["up"]
        assert np.allclose(change, update(tensors, "experts", 1.5, swapped), atol=1e-5)


@pytest.mark.parametrize("down", ["down", None])
def test_arrays_that_fit_both_ways_are_refused_or_read_by_the_last_axis(down, tmp_path):
    """Without a gate, `up` and `down` have transposed shapes; a square array fits both ways."""
    shapes = {"up": (EXPERTS, IN, OUT), "down": (EXPERTS, OUT, IN)}
    if down is None:
        shapes = {"up": (EXPERTS, IN, IN)}
    modules = {name: "experts" + ".base_layer" * n for n, name in enumerate([*shapes][::-1])}
    tensors = {}
    for name, shape in shapes.items():
        tensors |= pair(modules[name], shape, seed=ord(name[0]))
    targets = [f"experts.{name}" for name in shapes]
    folder = write_files(tmp_path, tensors, target_parameters=targets, target_modules=None)
    bare = arrays(**shapes)
    with pytest.raises(PeftFormatError, match="`is_transposed`, and the shapes fit both"):
        load_peft(declare(bare, {"experts/": "sio"}), folder)
    model = load_peft(declare(bare, {"experts/": "soi"}), folder)
    for name, module in modules.items():
        change = plain(model)["experts"][name] - bare["experts"][name]
        assert np.allclose(change, update(tensors, module, 1.5), atol=1e-5)


def test_a_stack_in_a_stack_of_blocks_has_the_experts_last(tmp_path):
    make = eqx.filter_vmap(eqx.filter_vmap(lambda key: eqx.nn.Linear(IN, OUT, key=key)))
    bare = {"up": make(jax.random.split(KEY, (2, EXPERTS)))}
    tensors = {}
    for block in range(2):
        tensors |= pair(f"layers.{block}.experts", UP, seed=7 * block)
    ranks = {"layers.0.experts.up": RANK, "layers.1.experts.up": RANK}
    config = {"target_parameters": ["experts.up"], "target_modules": None}
    folder = write_files(tmp_path, tensors, r=9, lora_alpha=3, rank_pattern=ranks, **config)
    model = load_peft(bare, folder, rename={r"layers/(\d+)/experts/(.*)": r"\2[\1]"})
    change = merge_lora(model)["up"].weight - bare["up"].weight
    for block in range(2):
        assert np.allclose(
            change[block], update(tensors, f"layers.{block}.experts", 1.5), atol=1e-5
        )
    rename = {r"(.*)\[(\d+)\]": r"layers/\2/experts/\1"}
    save_peft(model, tmp_path / "again", rename=rename, target_parameters="up")
    config, again = read_files(tmp_path / "again")
    assert config["target_parameters"] == [f"layers.{n}.experts.up" for n in range(2)]
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def test_one_matrix_may_be_an_array_too(linear, tmp_path):
    tensors = {
        f"{PREFIX}gate.lora_A.weight": normal(2, 4),
        f"{PREFIX}gate.lora_B.weight": normal(3, 2),
    }
    config = {"target_parameters": ["gate.weight"], "target_modules": []}
    model = load_peft({"gate": linear}, write_files(tmp_path, tensors, **config))
    delta = (
        np.float32(1.5)
        * tensors[f"{PREFIX}gate.lora_B.weight"]
        @ tensors[f"{PREFIX}gate.lora_A.weight"]
    )
    assert np.allclose(merge_lora(model)["gate"].weight - linear.weight, delta, atol=1e-5)


def test_experts_that_the_file_does_not_describe_are_refused(linear, tmp_path):
    same = pair("experts.base_layer", UP) | pair("experts", UP, seed=5)
    config = {"target_parameters": TARGETS, "target_modules": None}
    folder = write_files(tmp_path, same, **config)
    model = declare(arrays(up=UP, down=UP), {"experts/": "soi"})
    with pytest.raises(PeftFormatError, match="order in which Torch's module defines them"):
        load_peft(model, folder)
    with pytest.raises(PeftFormatError, match="fit no array of"):
        load_peft(declare(arrays(up=UP, down=DOWN), {"experts/": "soi"}), folder)
    with pytest.raises(PeftFormatError, match=r"experts\.down"):
        load_peft(declare(arrays(up=UP), {"experts/": "soi"}), folder)
    with pytest.raises(PeftFormatError, match="not an array of matrices"):
        load_peft({"experts": {"up": eqx.nn.LayerNorm(4), "down": linear}}, folder)
    _, folder = two(tmp_path, init_lora_weights="pissa")
    with pytest.raises(PeftFormatError, match="PiSSA and OLoRA"):
        load_peft(model, folder)
    with pytest.raises(PeftFormatError, match="target_parameters is 'up', not list"):
        load_peft(model, two(tmp_path, target_parameters="up")[1])


def test_experts_that_peft_cannot_have_are_not_written(tmp_path):
    bare = declare(arrays(up=UP, down=DOWN), {"experts/": "soi"})
    model = apply_lora(bare, 2, key=KEY)
    with pytest.raises(PeftFormatError, match="it is a stack of layers"):
        save_peft(model, tmp_path)
    with pytest.raises(PeftFormatError, match="match the same expression"):
        save_peft(model, tmp_path, target_parameters="experts/")
    with pytest.raises(PeftFormatError, match="outside of all"):
        save_peft(model, tmp_path, target_parameters=["up", "down"], rename={"experts/": ""})
    with pytest.raises(SelectionError, match="matches no path"):
        save_peft(model, tmp_path, target_parameters=["up", "down", "gate"])
    with pytest.raises(SelectionError, match="must be regular expressions"):
        save_peft(model, tmp_path, target_parameters="(")
    dora = apply_lora(bare, 2, key=KEY, wrapper="dora")
    with pytest.raises(PeftFormatError, match="by LoRA alone"):
        save_peft(dora, tmp_path, target_parameters=["up", "down"])
