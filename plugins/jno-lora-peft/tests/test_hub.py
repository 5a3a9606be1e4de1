"""Adapters in repositories of the Hugging Face Hub, on a server of this machine."""

import json
import os
import sys

import equinox as eqx
import huggingface_hub
import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import constants, file_download
from peft_cases.files import PREFIX, lora_tensors, write_files
from peft_cases.hub_server import running_hub

from jno.lora import MissingLibraryError, PeftFormatError, SelectionError
from jno.lora._commands import cli
from jno_lora_peft import inspect_peft, load_peft

NAME = "some-org/some.adapter_1"


def forget_sessions():
    """Before 1.0 of `huggingface_hub`, a session remembers whether it is offline."""
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub, an empty cache, and an empty working directory."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with running_hub() as hub:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
        for module in (constants, file_download):  # before 1.0, it imported the constant
            if hasattr(module, "HUGGINGFACE_CO_URL_TEMPLATE"):
                monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}{template}")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        forget_sessions()
        yield hub


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "adapter").mkdir()
    return write_files(tmp_path / "adapter", lora_tensors("fc", 3, 4))


def message_of(*arguments, error=PeftFormatError, **keywords):
    with pytest.raises(error) as raised:
        load_peft({}, *arguments, **keywords)
    return str(raised.value)


def test_a_repository_loads_as_its_directory_does(linear, folder, hub, capfd):
    (folder / "README.md").write_text("not downloaded")
    commit = hub.add(NAME, folder)
    loaded = load_peft({"fc": linear}, NAME)
    assert eqx.tree_equal(loaded, load_peft({"fc": linear}, folder))
    assert f"{NAME} is read at revision='{commit}'" in capfd.readouterr().err
    # The configuration is from the main branch, and the tensors are from its commit.
    assert hub.downloads == [
        f"{NAME}/resolve/main/adapter_config.json",
        f"{NAME}/resolve/{commit}/adapter_model.safetensors",
    ]
    assert load_peft({"fc": linear}, f"{NAME}/")["fc"].rank == 2


def test_a_revision_is_a_branch_a_tag_or_a_commit(linear, folder, hub, capfd):
    first = hub.add(NAME, folder, ["v1"], number=1)
    write_files(folder, lora_tensors("fc", 3, 4, seed=9))
    hub.add(NAME, folder, ["main", "refs/pr/1"], number=2)

    def lora_A(**keywords):
        return load_peft({"fc": linear}, NAME, **keywords)["fc"].lora_A

    old, new = (lora_tensors("fc", 3, 4, seed=seed)[f"{PREFIX}fc.lora_A.weight"] for seed in (0, 9))
    assert np.array_equal(lora_A(), new)
    assert np.array_equal(lora_A(revision="v1"), old)
    assert first in capfd.readouterr().err
    del hub.requests[:]
    assert np.array_equal(lora_A(revision=first), old)
    # A commit never changes, so the cache is enough; and a commit that was given is not told.
    assert hub.requests == [] and capfd.readouterr().err == ""


def test_a_directory_or_a_path_comes_before_the_hub(folder, hub):
    hub.add(NAME, folder)
    os.makedirs(NAME)
    assert "adapter_config.json" in message_of(NAME)
    for place in (NAME, folder):
        assert str(place) in message_of(place, revision="main", error=SelectionError)
    for place in ("./some-org/name", "../org/name", "name", "a/b/c", "/org/name", "org/name//"):
        assert "is not a directory" in message_of(place)
    assert hub.requests == []


def test_what_cannot_be_read_is_named(folder, hub, monkeypatch):
    hub.add(NAME, folder)
    assert "'org/nothing' is not a directory here" in message_of("org/nothing")
    assert "at revision 'v9': " in message_of(NAME, revision="v9")
    assert "can be read from the Hub" in message_of("org/na..me")
    # Files of the Hub are distrusted as all files are.
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    hub.add("org/damaged", folder)
    assert "not a safetensors file" in message_of("org/damaged")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert 'pip install "jno-lora[hub]"' in message_of(NAME, error=MissingLibraryError)


def test_a_repository_without_an_adapter_says_what_it_has(folder, hub):
    (folder / "evil\x1b[2J").mkdir()
    (folder / "adapter_config.json").rename(folder / "evil\x1b[2J" / "adapter_config.json")
    hub.add("org/nested", folder)
    text = message_of("org/nested")
    assert "evil\\x1b[2J/adapter_config.json" in text and "\x1b" not in text


def test_nothing_is_downloaded_in_vain(folder, hub):
    """Neither a pickle, nor tensors whose configuration cannot be loaded."""
    write_files(folder, lora_tensors("fc", 3, 4), layer_replication=[[0, 2]])
    hub.add("org/refused", folder)
    assert "layers of the model are copied" in message_of("org/refused")
    (folder / "adapter_config.json").write_text("{")
    hub.add("org/damaged", folder)
    assert "adapter_config.json" in message_of("org/damaged")
    write_files(folder, lora_tensors("fc", 3, 4))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    hub.add(NAME, folder)
    assert "a pickle, adapter_model.bin, is not read" in message_of(NAME)
    assert all(path.endswith("adapter_config.json") for path in hub.downloads)
    # An inspection shows such a file, so it needs the tensors.
    assert "layers of the model are copied" in inspect_peft("org/refused")["refused"]


def test_without_the_hub_the_cache_is_read(linear, folder, hub, monkeypatch):
    commit = hub.add(NAME, folder)
    load_peft({"fc": linear}, NAME)
    del hub.requests[:]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_sessions()
    assert load_peft({"fc": linear}, NAME)["fc"].rank == 2
    assert inspect_peft(NAME)["revision"] == commit
    text = message_of("org/other")
    assert "'org/other' is not a directory here" in text and "cache" in text
    assert "at revision 'v2'" in message_of(NAME, revision="v2")
    assert hub.requests == []


# --- the command


def run(*arguments, code=0):
    result = CliRunner().invoke(cli, ["inspect-peft", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_inspect_shows_a_repository_with_its_commit(folder, hub):
    write_files(folder, lora_tensors("fc", 3, 4), base_model_name_or_path="org/base")
    commit = hub.add(NAME, folder, ["main", "v1"])
    text = run(NAME, "--revision", "v1")
    assert f"directory: {NAME}" in text and f"revision: {commit}" in text
    assert 'base_model_name_or_path = "org/base"' in text
    facts = json.loads(run(NAME, "--json"))
    assert facts["revision"] == commit and facts["refused"] is None
    assert facts["modules"][0]["arrays"]["lora_A.weight"]["shape"] == [2, 4]
    assert "'org/nothing' is not a directory here" in run("org/nothing", code=1)
    assert "is a path" in run("nothing", "--revision", "v1", code=1)


def test_inspect_shows_a_directory_and_what_is_refused(folder):
    tensors = lora_tensors("fc", 3, 4)
    tensors[f"{PREFIX}fc.lora_A.weight"][0, 0] = np.nan
    write_files(folder, tensors, layer_replication=[[0, 2]], target_modules="\x1b[2J(a+)+$")
    text = run(str(folder), "--values")
    assert "refused: " in text and "layers of the model are copied" in text
    assert "1 of 8 numbers" in text
    assert "\x1b" not in text
    facts = inspect_peft(folder)
    assert facts["revision"] is None and "non_finite" not in facts
    write_files(folder, tensors, peft_type="NEW\x1b")
    assert "\x1b" not in run(str(folder))
