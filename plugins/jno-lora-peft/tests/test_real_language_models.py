"""Language models with tied heads, in eqx-zoo and in PEFT on Torch: `make test-peft`."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from peft_cases import language_models as models
from peft_cases.files import read_files, trained
from peft_cases.language_models import error, our_logits, reloaded, their_logits
from peft_cases.torch_side import lora, quiet

from jno.lora import Net, PeftFormatError, WrapperError, merge_lora
from jno_lora_peft import Untied, load_peft, save_peft, untie
from jno_lora_routed import with_invocation

# The head is not among what PEFT adapts or saves, unless it says so.
TARGETS = ["q_proj", "embed_tokens"]
TIED = {"ensure_weight_tying": True}
FILES = {
    "lora": lambda: lora(TARGETS),
    "rslora": lambda: lora(TARGETS, use_rslora=True),
    "dora": lambda: lora(TARGETS, use_dora=True),
    "regex": lambda: lora(r".*\.q_proj|model\.embed_tokens"),
    "tied": lambda: lora(TARGETS, **TIED),
    "tied-rslora": lambda: lora(TARGETS, **TIED, use_rslora=True),
    "tied-regex": lambda: lora(r".*\.q_proj|embed_tokens", **TIED),
    # PEFT does not find the embedding to tie, unless the regex matches its short name.
    "not-tied": lambda: lora(r".*\.q_proj|model\.embed_tokens", **TIED),
    "norm": lambda: lora(["q_proj"], modules_to_save=["model.norm"]),
    "table": lambda: lora(["q_proj"], modules_to_save=["embed_tokens"]),
    "head": lambda: lora(["q_proj"], modules_to_save=["lm_head"]),
    "two-tables": lambda: lora(["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "lora-and-head": lambda: lora(TARGETS, modules_to_save=["lm_head"]),
    "tied-table": lambda: lora(["q_proj"], modules_to_save=["embed_tokens"], **TIED),
}


def saved(adapted, folder):
    with quiet():
        adapted.save_pretrained(folder)


@pytest.fixture(scope="module", params=["Llama", "Qwen3"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def plain(family):
    return models.ours(family)


@pytest.mark.parametrize("case", FILES)
def test_language_models_of_peft_compute_the_same_here_and_back_in_peft(
    case, family, plain, tmp_path
):
    assert error(our_logits(plain), their_logits(models.theirs(family))) < 1e-5
    theirs = models.trained(FILES[case](), family)
    expected = their_logits(theirs)
    saved(theirs, tmp_path / "theirs")
    ours = load_peft(plain, tmp_path / "theirs")
    assert error(our_logits(ours), expected) < 1e-5
    assert error(our_logits(plain), expected) > 1e-2
    assert error(our_logits(merge_lora(ours)), expected) < 1e-5
    save_peft(ours, tmp_path / "ours")
    assert error(reloaded(tmp_path / "ours", family), expected) < 1e-5


class NamedAxis:
    """JAX, with `vmap` over an axis that has a name: aLoRA asks it which token a layer gets."""

    vmap = staticmethod(functools.partial(jax.vmap, axis_name="tokens"))

    def __getattr__(self, name):
        return getattr(jax, name)


def test_alora_acts_from_the_invocation_on(family, plain, tmp_path, monkeypatch):
    targets = ["q_proj", "k_proj", "v_proj", "down_proj"]
    first, invocation = 3, models.IDS[3:5]
    config = lora(targets, alora_invocation_tokens=invocation, task_type="CAUSAL_LM")
    theirs = models.trained(config, family)
    expected, base = their_logits(theirs), our_logits(plain)
    saved(theirs, tmp_path / "theirs")
    ours = load_peft(plain, tmp_path / "theirs")
    ours_invoked = with_invocation(ours, jnp.array(models.IDS), axis="tokens")
    with pytest.raises(WrapperError, match="tokens"):  # eqx-zoo's axes have no names
        our_logits(ours_invoked)
    for module in ("eqx_zoo.layers.attention", "eqx_zoo.models.causal_lm.model"):
        monkeypatch.setattr(f"{module}.jax", NamedAxis())
    invoked = our_logits(ours_invoked)
    assert error(invoked, expected) < 1e-5
    assert error(invoked[:first], base[:first]) < 1e-6
    assert error(invoked[first:], base[first:]) > 1e-2
    save_peft(ours, tmp_path / "ours")  # which names the task
    assert error(reloaded(tmp_path / "ours", family), expected) < 1e-5


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"targets": ["lm_head"]}, "lm_head"),
        ({"targets": ["q_proj", "lm_head"]}, "lm_head"),
        ({"targets": TARGETS, "use_dora": True, **TIED}, "lm_head: PEFT scales its rows"),
    ],
)
def test_adapters_that_one_table_cannot_serve_are_refused(config, reason, plain, family, tmp_path):
    saved(models.trained(lora(**config), family), tmp_path)
    with pytest.raises(PeftFormatError, match=reason):
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
    ours = trained(model, [wrapper, f"{wrapper}-embedding"], specs=specs)
    save_peft(ours, tmp_path)
    assert error(reloaded(tmp_path, family), our_logits(ours)) < 1e-5
    assert error(our_logits(plain), our_logits(ours)) > 1e-2
    assert error(our_logits(load_peft(plain, tmp_path)), our_logits(ours)) < 1e-5


@pytest.mark.parametrize("target", ["norm", "embed_tokens", "norm|embed_tokens"])
def test_arrays_that_a_net_trains_beside_its_adapters_are_written_too(
    target, family, plain, tmp_path
):
    net = Net(plain).freeze().lora(2, target="q_proj").mask(target).unfreeze()
    net.update(jax.tree.map(lambda x: x + 0.1, net.partition()[0]))
    save_peft(net, tmp_path)
    assert error(reloaded(tmp_path, family), our_logits(net.module)) < 1e-5
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
    whole = models.ours(family, is_tied=False)
    ours = trained({"model": whole.model}, "lora-embedding", target="embed")
    save_peft(ours, tmp_path)
    assert read_files(tmp_path)[0]["ensure_weight_tying"]
    theirs, _ = models.loaded(tmp_path, family, is_tied=False)
    whole = eqx.tree_at(lambda m: m.model, whole, ours["model"])
    assert error(their_logits(theirs), our_logits(whole)) < 1e-5


def test_the_base_model_and_the_task_are_read_by_peft(family, plain, tmp_path):
    models.theirs(family).save_pretrained(tmp_path / "base")
    ours = trained(plain, target="q_proj")
    base = str(tmp_path / "base")
    save_peft(ours, tmp_path, base_model_name_or_path=base, task_type="CAUSAL_LM")
    with quiet():
        found = models.peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(found) is models.peft.PeftModelForCausalLM
    assert error(their_logits(found), our_logits(ours)) < 1e-5
