"""Language models with tied heads, in eqx-zoo and in PEFT on Torch: `make test-peft`.

eqx-zoo needs Python 3.12.
"""

import importlib.util
import os
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from peft_cases.files import read_files

from jno.lora import Net, PeftFormatError, apply_lora, lora_trainable_filter, merge_lora
from jno.lora.peft import Untied, load_peft, save_peft, untie
from jno_lora_routed import with_invocation

if importlib.util.find_spec("peft") is None or importlib.util.find_spec("eqx_zoo") is None:
    message = "needs torch, peft and eqx-zoo, which `make test-peft` installs on Python 3.12"
    if os.environ.get("JNO_LORA_TEST_PEFT") and sys.version_info >= (3, 12):
        raise ImportError(message)
    pytest.skip(message, allow_module_level=True)

from peft_cases import language_models as models
from peft_cases.language_models import error, our_logits, their_logits
from peft_cases.torch_side import lora, quiet

# The head is not among what PEFT adapts or saves, unless it says so.
TARGETS = ["q_proj", "embed_tokens"]
FILES = {
    "lora": lambda: lora(TARGETS),
    "rslora": lambda: lora(TARGETS, use_rslora=True),
    "dora": lambda: lora(TARGETS, use_dora=True),
    "regex": lambda: lora(r".*\.q_proj|model\.embed_tokens"),
    "tied": lambda: lora(TARGETS, ensure_weight_tying=True),
    "tied-rslora": lambda: lora(TARGETS, ensure_weight_tying=True, use_rslora=True),
    "tied-regex": lambda: lora(r".*\.q_proj|embed_tokens", ensure_weight_tying=True),
    # PEFT does not find the embedding to tie, unless the regex matches its short name.
    "not-tied": lambda: lora(r".*\.q_proj|model\.embed_tokens", ensure_weight_tying=True),
    "norm": lambda: lora(["q_proj"], modules_to_save=["model.norm"]),
    "table": lambda: lora(["q_proj"], modules_to_save=["embed_tokens"]),
    "head": lambda: lora(["q_proj"], modules_to_save=["lm_head"]),
    "two-tables": lambda: lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "lora-and-head": lambda: lora(TARGETS, modules_to_save=["lm_head"]),
    "tied-table": lambda: lora(
        ["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
}


def saved(adapted, folder):
    with quiet():
        adapted.save_pretrained(folder)


def moved(model):
    trains, rest = eqx.partition(model, lora_trainable_filter(model))
    leaves, treedef = jax.tree.flatten(trains)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    added = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in pairs]
    return eqx.combine(jax.tree.unflatten(treedef, added), rest)


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def plain(family):
    return models.ours(family)


def test_the_models_agree(family, plain):
    assert error(our_logits(plain), their_logits(models.theirs(family))) < 1e-5


@pytest.mark.parametrize("case", FILES)
def test_language_models_of_peft_compute_the_same_here_and_back_in_peft(
    case, family, plain, tmp_path
):
    theirs = models.trained(FILES[case](), family)
    expected = their_logits(theirs)
    saved(theirs, tmp_path / "theirs")
    ours = load_peft(plain, tmp_path / "theirs")
    assert error(our_logits(ours), expected) < 1e-5
    assert error(our_logits(plain), expected) > 1e-2
    assert error(our_logits(merge_lora(ours)), expected) < 1e-5
    save_peft(ours, tmp_path / "ours")
    again, warned = models.loaded(tmp_path / "ours", family)
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    assert error(their_logits(again), expected) < 1e-5


def test_alora_acts_from_the_invocation_on(family, plain, tmp_path):
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    first, invocation = 3, models.IDS[3:5]
    config = lora(targets, alora_invocation_tokens=invocation, task_type="CAUSAL_LM")
    theirs = models.trained(config, family)
    expected, base = their_logits(theirs), our_logits(plain)
    saved(theirs, tmp_path / "theirs")
    ours = load_peft(plain, tmp_path / "theirs")
    invoked = our_logits(with_invocation(ours, jnp.array(models.IDS)))
    assert error(invoked, expected) < 1e-5
    assert error(invoked[:first], base[:first]) < 1e-6
    assert error(invoked[first:], base[first:]) > 1e-2
    save_peft(ours, tmp_path / "ours")  # which names the task
    again, warned = models.loaded(tmp_path / "ours", family)
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    assert error(their_logits(again), expected) < 1e-5


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"]])
def test_an_adapter_of_the_head_alone_is_refused(targets, plain, family, tmp_path):
    saved(models.trained(lora(targets), family), tmp_path)
    with pytest.raises(PeftFormatError, match="lm_head"):
        load_peft(plain, tmp_path)


def test_a_tied_dora_is_refused(plain, family, tmp_path):
    config = lora(TARGETS, ensure_weight_tying=True, use_dora=True)
    saved(models.trained(config, family), tmp_path)
    with pytest.raises(PeftFormatError, match="lm_head: PEFT scales its rows"):
        load_peft(plain, tmp_path)


@pytest.mark.parametrize(
    ("wrapper", "rank", "untied"),
    [
        ("lora", 3, False),
        ("rslora", 2, False),
        ("pissa", 2, False),
        ("lora", 3, True),
        ("pissa", 2, True),
        ("dora", 2, True),
    ],
)
def test_saved_language_models_compute_the_same_in_peft(
    wrapper, rank, untied, family, plain, tmp_path
):
    model = untie(plain, "model/embed_tokens") if untied else plain
    specs = [{"target": "embed_tokens", "rank": rank}, {"target": "q_proj|v_proj"}]
    options = {"rank": 2, "alpha": 3.0, "specs": specs, "key": jax.random.key(1)}
    wrappers = [wrapper, f"{wrapper}-embedding"]
    ours = moved(apply_lora(model, **options, wrapper=wrappers))
    save_peft(ours, tmp_path)
    theirs, warned = models.loaded(tmp_path, family)
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    assert error(their_logits(theirs), our_logits(ours)) < 1e-5
    assert error(our_logits(plain), our_logits(ours)) > 1e-2
    assert error(our_logits(load_peft(plain, tmp_path)), our_logits(ours)) < 1e-5


@pytest.mark.parametrize("target", ["norm", "embed_tokens", "norm|embed_tokens"])
def test_arrays_that_a_net_trains_beside_its_adapters_are_written_too(
    target, family, plain, tmp_path
):
    net = Net(plain).freeze().lora(2, target="q_proj").mask(target).unfreeze()
    net.update(jax.tree.map(lambda x: x + 0.1, net.partition()[0]))
    save_peft(net, tmp_path)
    theirs, warned = models.loaded(tmp_path, family)
    assert not [text for text in warned if "missing" in text or "unexpected" in text]
    assert error(their_logits(theirs), our_logits(net.module)) < 1e-5
    assert error(our_logits(load_peft(plain, tmp_path)), our_logits(net.module)) < 1e-5


@pytest.mark.parametrize("case", ["lora", "dora", "tied", "table", "two-tables"])
def test_a_model_with_a_head_of_its_own(case, family, tmp_path):
    plain = models.ours(family, is_tied=False)
    theirs = models.trained(FILES[case](), family, is_tied=False)
    saved(theirs, tmp_path / "theirs")
    ours = load_peft(plain, tmp_path / "theirs")
    assert error(our_logits(ours), their_logits(theirs)) < 1e-5
    # Nothing is untied that was not tied.
    assert not isinstance(ours.model.embed_tokens, Untied)
    save_peft(ours, tmp_path / "ours")
    again, _ = models.loaded(tmp_path / "ours", family, is_tied=False)
    assert error(their_logits(again), their_logits(theirs)) < 1e-5


def test_an_embedding_that_might_be_tied_is_read_by_an_untied_model_as_its_own(family, tmp_path):
    """Its file asks PEFT to tie a head, which a model without a tied head ignores."""
    decoder = models.ours(family, is_tied=False).model
    ours = apply_lora(
        {"model": decoder}, 2, 3.0, target="embed", wrapper="lora-embedding", key=jax.random.key(0)
    )
    save_peft(moved(ours), tmp_path)
    assert read_files(tmp_path)[0]["ensure_weight_tying"]
    theirs, _ = models.loaded(tmp_path, family, is_tied=False)
    whole = eqx.tree_at(lambda m: m.model, models.ours(family, is_tied=False), moved(ours)["model"])
    assert error(their_logits(theirs), our_logits(whole)) < 1e-5


def test_the_base_model_and_the_task_are_read_by_peft(family, plain, tmp_path):
    models.theirs(family).save_pretrained(tmp_path / "base")
    ours = moved(apply_lora(plain, 2, target="q_proj", key=jax.random.key(0)))
    base = str(tmp_path / "base")
    save_peft(ours, tmp_path, base_model_name_or_path=base, task_type="CAUSAL_LM")
    with quiet():
        found = models.peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(found) is models.peft.PeftModelForCausalLM
    assert error(their_logits(found), our_logits(ours)) < 1e-5
