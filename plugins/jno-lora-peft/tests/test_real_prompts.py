"""PEFT's prompts as rows of the embedding, as docs/peft.md has them: `make test-peft`."""

import pytest
from peft_cases.torch_side import moved, peft, quiet, torch
from safetensors.numpy import load_file
from transformers import LlamaConfig, LlamaForCausalLM

PROMPTS = {
    "prompt-tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=4),
    "cpt": lambda: peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[1, 2, 3],
        cpt_mask=[1, 1, 1],
        cpt_tokens_type_mask=[1, 2, 3],
    ),
    "multitask": lambda: peft.MultitaskPromptTuningConfig(num_virtual_tokens=3, num_tasks=2),
}
SIZES = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 12, "use_cache": False}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_attention_heads=2, **SIZES)).eval()


def adapted(config):
    config.task_type = "CAUSAL_LM"
    with quiet():
        return peft.get_peft_model(llama(), config)


@pytest.mark.parametrize("case", PROMPTS)
@torch.no_grad()
def test_the_rows_of_the_file_are_tokens_before_the_text(case, tmp_path):
    theirs = adapted(PROMPTS[case]())
    moved(theirs)
    theirs.save_pretrained(tmp_path)
    with quiet():
        theirs = peft.PeftModel.from_pretrained(llama(), tmp_path).eval()
    tensors, task = load_file(tmp_path / "adapter_model.safetensors"), {}
    rows = tensors["prompt_embeddings"]
    if case == "multitask":
        task = {"task_ids": torch.tensor([1])}
        rows = rows * (tensors["prefix_task_cols"][1] @ tensors["prefix_task_rows"][1])
    text, plain = torch.tensor([[5, 2, 7]]), llama()
    words = plain.model.embed_tokens.weight
    table = torch.cat([words, torch.from_numpy(rows)])
    virtual = torch.arange(len(words), len(table))[None]
    ours = plain(inputs_embeds=table[torch.cat([virtual, text], 1)]).logits[:, 3:]
    expected = theirs(input_ids=text, **task).logits[:, -3:]
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(plain(input_ids=text).logits, expected, atol=1e-3)
