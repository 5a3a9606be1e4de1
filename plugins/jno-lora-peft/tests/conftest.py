"""What most files here share: a layer, and files that are written and read in one call."""

import equinox as eqx
import jax
import pytest
from peft_cases.files import read_files, write_files

from jno.lora import PeftFormatError
from jno_lora_peft import load_peft, save_peft


@pytest.fixture
def linear():
    return eqx.nn.Linear(4, 3, key=jax.random.key(0))


@pytest.fixture
def load(tmp_path):
    """Loads these tensors, with the settings that are not options of `load_peft`."""

    def load(model, tensors, *, rename=None, tied=None, **settings):
        return load_peft(
            model, write_files(tmp_path, tensors, **settings), rename=rename, tied=tied
        )

    return load


@pytest.fixture
def refuse(load):
    """Expects that these tensors do not load, and gives the message."""

    def refuse(reason, model, tensors, **options):
        with pytest.raises(PeftFormatError, match=reason) as error:
            load(model, tensors, **options)
        return str(error.value)

    return refuse


@pytest.fixture
def save(tmp_path):
    """Saves a model in `tmp_path / "saved"`, and gives the settings and the tensors."""

    def save(model, **options):
        save_peft(model, tmp_path / "saved", **options)
        return read_files(tmp_path / "saved")

    return save


@pytest.fixture
def unsaved(tmp_path):
    """Expects that a model is not saved, and that nothing is written; gives the message."""

    def unsaved(reason, model, error=PeftFormatError, **options):
        with pytest.raises(error, match=reason) as raised:
            save_peft(model, tmp_path / "unsaved", **options)
        assert not (tmp_path / "unsaved").exists()
        return str(raised.value)

    return unsaved
