"""`jno-lora extract`: two files of weights become PEFT's folder, and nothing is lost in silence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from peft_cases.files import normal, read_files
from safetensors.numpy import save_file

from jno.lora import JnoLoraWarning, PeftFormatError, SelectionError, merge_lora
from jno_lora_convert import extract_peft
from jno_lora_convert._commands import extract
from jno_lora_peft import load_peft

SHAPES = {
    "model.embed_tokens.weight": (9, 4),
    "model.conv.weight": (4, 3, 2, 2),
    "model.conv.bias": (4,),
    "model.layers.0.q_proj.weight": (6, 4),
    "model.layers.0.q_proj.bias": (6,),
    "model.layers.0.norm.weight": (4,),
    "model.layers.0.norm.bias": (4,),
    "model.layers.1.q_proj.weight": (6, 4),
    "model.layers.1.q_proj.bias": (6,),
    "model.q_proj.weight": (3, 3),
    "lm_head.weight": (9, 4),
}
STEADY = "model.q_proj.weight"  # a name that ends like the names of other modules


def state():
    return {n: normal(*shape, seed=k) for k, (n, shape) in enumerate(SHAPES.items())}


def tuned_copy(base, names=None, rank=None):
    """The base with other values, whose change has this rank."""
    tuned = dict(base)
    for number, name in enumerate(base if names is None else names):
        old = base[name]
        change = 0.1 * normal(*old.shape, seed=100 + number)
        if rank and old.ndim > 1:
            U, S, V = np.linalg.svd(change.reshape(len(change), -1), full_matrices=False)
            change = (U[:, :rank] * S[:rank] @ V[:rank]).reshape(change.shape)
        tuned[name] = old if name == STEADY else old + change
    return tuned


def model_of(state):
    """The layers of a state in Equinox."""
    key = jax.random.key(0)

    def layer(name, make):
        made = make(key=key)
        arrays = {f: state.get(f"{name}.{f}") for f in ("weight", "bias")}
        for field, array in arrays.items():
            if array is not None:
                shape = getattr(made, field).shape
                new = jnp.asarray(array).reshape(shape)
                made = eqx.tree_at(lambda m, field=field: getattr(m, field), made, new)
        return made

    norm = layer("model.layers.0.norm", lambda key: eqx.nn.LayerNorm(4))
    return {
        "model": {
            "embed_tokens": layer(
                "model.embed_tokens", lambda key: eqx.nn.Embedding(9, 4, key=key)
            ),
            "conv": layer("model.conv", lambda key: eqx.nn.Conv2d(3, 4, 2, key=key)),
            "layers": [
                {
                    "q_proj": layer(
                        f"model.layers.{i}.q_proj", lambda key: eqx.nn.Linear(4, 6, key=key)
                    )
                }
                | ({} if i else {"norm": norm})
                for i in range(2)
            ],
            "q_proj": layer(
                "model.q_proj", lambda key: eqx.nn.Linear(3, 3, use_bias=False, key=key)
            ),
        },
        "lm_head": layer("lm_head", lambda key: eqx.nn.Linear(4, 9, use_bias=False, key=key)),
    }


def assert_close(found, expected, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance)


@pytest.fixture
def files(tmp_path):
    def write(base, tuned):
        save_file(base, tmp_path / "base.safetensors")
        save_file(tuned, tmp_path / "tuned.safetensors")
        return [str(tmp_path / f"{name}.safetensors") for name in ("base", "tuned")]

    return write


def run(*arguments):
    result = CliRunner().invoke(extract, [str(argument) for argument in arguments])
    return result.exit_code, result.output, result.exception


def test_the_command_writes_what_peft_reads_and_tells_the_losses(files, tmp_path):
    base = state()
    tuned = tuned_copy(base, rank=2)
    paths, out = files(base, tuned), tmp_path / "adapter"
    code, _, error = run(*paths, out, "--rank", 2)
    assert code == 1 and isinstance(error, SelectionError) and not out.exists()
    assert "model.layers.0.norm.bias" in str(error) and "model.conv.bias" in str(error)
    code, printed, _ = run(*paths, out, "--rank", 2, "--leftovers", "keep")
    assert isinstance(run(*paths, out, "--rank", 1)[2], PeftFormatError)  # OUT exists
    assert code == 0 and "model.layers.1.q_proj" in printed and "LoRAEmbedding" in printed
    config, tensors = read_files(out)
    assert config["r"] == config["lora_alpha"] == 2 and config["rank_pattern"] == {}
    assert config["modules_to_save"] == ["model.layers.0.norm"] and config["bias"] == "lora_only"
    assert tensors["base_model.model.model.conv.lora_A.weight"].shape == (2, 3, 2, 2)
    # A list of names would also match the end of `model.q_proj`'s siblings.
    assert "model.q_proj" not in config["target_modules"]
    loaded = load_peft(model_of(base), out, tied=False)
    assert_close(merge_lora(loaded), model_of(tuned))


def test_one_warning_and_the_command_say_how_much_of_the_change_is_kept(files, tmp_path):
    base = state()
    tuned = tuned_copy(base, [name for name in base if name.endswith("weight")])
    paths = files(base, tuned | {n: x for n, x in base.items() if "norm" in n})
    with pytest.warns(JnoLoraWarning) as told:
        report = extract_peft(*paths, tmp_path / "out", rank=1)
    (warning,) = told
    assert f"{report.kept:.1%}" in str(warning.message) and warning.filename == __file__
    assert report.kept < 0.9 and len(report) > 1
    with pytest.warns(JnoLoraWarning, match="Below 90%"):
        code, printed, _ = run(*paths, tmp_path / "again", "--rank", 1)
    assert code == 0 and f"keeps {report.kept:.1%} of the change" in printed
    with pytest.raises(JnoLoraWarning):  # as an error, it comes before the files
        extract_peft(*paths, tmp_path / "error", rank=1)
    assert not (tmp_path / "error").exists()


def test_energy_gives_each_layer_its_rank_and_shards_are_one_state(tmp_path):
    base = state()
    tuned = tuned_copy(base, ["model.layers.0.q_proj.weight", "lm_head.weight"])
    tuned = tuned_copy(tuned, ["model.layers.1.q_proj.weight"], rank=1)
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        for shard in range(2):
            part = dict([*tensors.items()][shard::2])
            save_file(part, tmp_path / name / f"model-{shard}.safetensors")
    report = extract_peft(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", energy=1.0)
    ranks = {row.path: row.rank for row in report}
    names = ("model.layers.0.q_proj", "model.layers.1.q_proj", "lm_head")
    assert ranks == dict(zip(names, (4, 1, 4), strict=True)) and report.leftovers == ()
    config, _ = read_files(tmp_path / "out")
    assert (config["r"], config["rank_pattern"]) == (4, {r"^model\.layers\.1\.q_proj": 1})
    assert config["rank_pattern"] == config["alpha_pattern"]
    loaded = load_peft(model_of(base), tmp_path / "out")
    assert_close(merge_lora(loaded), model_of(tuned))


def test_a_tied_table_and_transposed_weights_are_told(files, tmp_path):
    base = {n: x for n, x in state().items() if n != "lm_head.weight"}
    tuned = tuned_copy(base, ["model.embed_tokens.weight", "model.layers.0.q_proj.weight"], 2)
    paths, out = files(base, tuned), tmp_path / "out"
    with pytest.raises(SelectionError, match="tied"):
        extract_peft(*paths, out, rank=2)
    extract_peft(*paths, out, rank=2, tied=True, transposed="q_proj")
    config, tensors = read_files(out)
    assert config["ensure_weight_tying"] and config["fan_in_fan_out"]
    assert tensors["base_model.model.model.layers.0.q_proj.lora_A.weight"].shape == (2, 6)
    head = [tensors[f"base_model.model.lm_head.lora_{x}.weight"] for x in "BA"]
    change = tuned["model.embed_tokens.weight"] - base["model.embed_tokens.weight"]
    np.testing.assert_allclose(head[0] @ head[1], change, atol=1e-5)
    extract_peft(*paths, tmp_path / "lookups", rank=2, tied=False)
    assert "ensure_weight_tying" not in read_files(tmp_path / "lookups")[0]
    with pytest.raises(SelectionError, match="'typo' matches no linear layer"):
        extract_peft(*paths, tmp_path / "typo", rank=2, tied=False, transposed="typo")
    mixed = files(base, tuned | {STEADY: 2 * base[STEADY]})  # square, and not transposed
    with pytest.raises(PeftFormatError, match=r"model\.q_proj is not transposed"):
        extract_peft(*mixed, tmp_path / "mixed", rank=2, tied=True, transposed=r"layers\.0")
    # PEFT does not tie GPT-2's table.
    base["wte.weight"] = base.pop("model.embed_tokens.weight")
    paths = files(base, tuned_copy(base, ["wte.weight"], 2))
    for tied in (None, True):
        with pytest.raises(SelectionError, match="wte changed"):
            extract_peft(*paths, tmp_path / "wte", rank=2, tied=tied)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda s: s, "No weight"),
        (lambda s: s | {"extra": np.ones(2, np.float32)}, r"extra: .*\(2,\)"),
        (lambda s: s | {"lm_head.weight": s["lm_head.weight"][:5]}, r"\(5, 4\)"),
        (lambda s: tuned_copy(s, ["model.conv.bias"]), r"Only .*\n.*conv\.bias"),
    ],
)
def test_states_from_which_nothing_can_be_extracted(change, facts, files, tmp_path):
    base = state()
    with pytest.raises(PeftFormatError, match=facts):
        extract_peft(*files(base, change(base)), tmp_path / "out", rank=1, leftovers="keep")
    assert not (tmp_path / "out").exists()


def test_arrays_that_peft_cannot_keep(files, tmp_path):
    base = state() | {"model.scale": np.ones(3, np.float32)}
    paths = files(base, tuned_copy(base, ["lm_head.weight", "model.scale"]))
    with pytest.raises(PeftFormatError, match=r"model\.scale"):
        extract_peft(*paths, tmp_path / "out", rank=1, leftovers="keep")
