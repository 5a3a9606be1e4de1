"""Arrays of fused experts (`target_parameters`), against the law of PEFT's `ParamWrapper`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peft_cases.files import PREFIX, normal

from jno.lora import SelectionError, apply_lora, merge_lora
from jno_lora_arrays import declare, plain

EXPERTS, OUT, IN, RANK = 3, 5, 4, 2
UP, DOWN = (EXPERTS, OUT, IN), (EXPERTS, IN, 6)
KEY = jax.random.key(0)


def pair(module, shape, seed=0, swapped=False):
    """PEFT's tensors for an array of this shape; `swapped` for a module that is transposed."""
    experts, first, last = shape
    a, b = (first, last) if swapped else (last, first)
    return {
        f"{PREFIX}{module}.lora_A.weight": normal(RANK * experts, a, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": normal(b, RANK * experts, seed=seed + 1),
    }


def update(tensors, module, scale=1.5, swapped=False):
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


def settings(*names):
    names = [f"experts.{name}" for name in names]
    return {"target_parameters": names, "target_modules": None}


BARE = arrays(up=UP, down=DOWN)
DECLARED = declare(BARE, {"experts/": "soi"})
TWO = pair("experts.base_layer", UP) | pair("experts", DOWN, seed=5)


def assert_updated(model, bare, tensors, modules, **options):
    for name, module in modules.items():
        change = plain(model)["experts"][name] - bare["experts"][name]
        assert np.allclose(change, update(tensors, module, **options), atol=1e-5)


def test_a_file_fits_declared_arrays_and_is_written_back(load, save):
    model = load(DECLARED, TWO, **settings("up", "down"))
    assert_updated(model, BARE, TWO, {"up": "experts.base_layer", "down": "experts"})
    config, again = save(model, target_parameters=["up$", "down$"])
    assert config["target_parameters"] == ["experts.down", "experts.up"]
    assert config["target_modules"] is None
    assert again.keys() == TWO.keys()
    assert all(np.allclose(again[name], TWO[name], atol=1e-6) for name in TWO)


def test_arrays_with_the_inputs_first_are_told_by_their_shapes(load):
    """As PEFT reads them where the module is transposed, and where it is not."""
    for swapped in (True, False):
        tensors, bare = pair("experts", UP, swapped=swapped), arrays(up=UP)
        model = load(declare(bare, {"up": "sio"}), tensors, **settings("up"))
        assert_updated(model, bare, tensors, {"up": "experts"}, swapped=swapped)


# Without a gate, `up` and `down` have transposed shapes; a square array fits both ways.
@pytest.mark.parametrize(
    "shapes", [{"up": (EXPERTS, IN, OUT), "down": (EXPERTS, OUT, IN)}, {"up": (EXPERTS, IN, IN)}]
)
def test_arrays_that_fit_both_ways_are_refused_or_read_by_the_last_axis(shapes, load, refuse):
    modules = {name: "experts" + ".base_layer" * n for n, name in enumerate([*shapes][::-1])}
    tensors = {}
    for name, shape in shapes.items():
        tensors |= pair(modules[name], shape, seed=ord(name[0]))
    bare, config = arrays(**shapes), settings(*shapes)
    reason = "`is_transposed`, and the shapes fit both"
    refuse(reason, declare(bare, {"experts/": "sio"}), tensors, **config)
    model = load(declare(bare, {"experts/": "soi"}), tensors, **config)
    assert_updated(model, bare, tensors, modules)


def test_a_stack_in_a_stack_of_blocks_has_the_experts_last(load, save):
    make = eqx.filter_vmap(eqx.filter_vmap(lambda key: eqx.nn.Linear(IN, OUT, key=key)))
    bare = {"up": make(jax.random.split(KEY, (2, EXPERTS)))}
    tensors = pair("layers.0.experts", UP) | pair("layers.1.experts", UP, seed=7)
    names = [f"layers.{n}.experts.up" for n in range(2)]
    ranks = {"r": 9, "lora_alpha": 3, "rank_pattern": dict.fromkeys(names, RANK)}
    rename = {r"layers/(\d+)/experts/(.*)": r"\2[\1]"}
    model = load(bare, tensors, rename=rename, **ranks, **settings("up"))
    change = merge_lora(model)["up"].weight - bare["up"].weight
    for block in range(2):
        assert np.allclose(change[block], update(tensors, f"layers.{block}.experts"), atol=1e-5)
    rename = {r"(.*)\[(\d+)\]": r"layers/\2/experts/\1"}
    config, again = save(model, rename=rename, target_parameters="up")
    assert config["target_parameters"] == names
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)


def test_one_matrix_may_be_an_array_too(linear, load):
    A, B = normal(2, 4), normal(3, 2)
    tensors = {f"{PREFIX}gate.lora_A.weight": A, f"{PREFIX}gate.lora_B.weight": B}
    config = {"target_parameters": ["gate.weight"], "target_modules": []}
    model = load({"gate": linear}, tensors, **config)
    change = merge_lora(model)["gate"].weight - linear.weight
    assert np.allclose(change, np.float32(1.5) * B @ A, atol=1e-5)


def test_experts_that_the_file_does_not_describe_are_refused(linear, refuse):
    same, config = TWO | pair("experts", UP, seed=5), settings("up", "down")
    model = declare(arrays(up=UP, down=UP), {"experts/": "soi"})
    refuse("order in which Torch's module defines them", model, same, **config)
    refuse("fit no array of", DECLARED, same, **config)
    refuse(r"experts\.down", declare(arrays(up=UP), {"experts/": "soi"}), same, **config)
    norm = {"experts": {"up": eqx.nn.LayerNorm(4), "down": linear}}
    refuse("not an array of matrices", norm, same, **config)
    refuse("PiSSA and OLoRA", model, TWO, init_lora_weights="pissa", **config)


def test_experts_that_peft_cannot_have_are_not_written(unsaved):
    model = apply_lora(DECLARED, 2, key=KEY)
    unsaved("it is a stack of layers", model)
    unsaved("match the same expression", model, target_parameters="experts/")
    both = ["up", "down"]
    unsaved("outside of all", model, target_parameters=both, rename={"experts/": ""})
    unsaved("matches no path", model, SelectionError, target_parameters=[*both, "gate"])
    dora = apply_lora(DECLARED, 2, key=KEY, wrapper="dora")
    unsaved("by LoRA alone", dora, target_parameters=both)
