"""The example of a language model in the README."""

import pathlib
import re

import numpy as np
import pytest

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()


def test_a_file_of_peft_and_a_bank_compute_the_logits_of_each_users_model(example, capsys):
    logits, each = example.main()
    np.testing.assert_allclose(logits, each, rtol=1e-5, atol=1e-5 * np.abs(each).max())
    assert np.abs(logits[0] - logits[2]).max() > 1e-2  # the adapters do something
    printed = capsys.readouterr().out
    assert "4,096 of 61,696 parameters train" in printed
    first, last = re.findall(r"^loss (\S+) to (\S+)$", printed, re.MULTILINE)[1]
    shown = re.search(r"The loss falls from (\S+) to (\S+)\.", README).groups()
    # Other versions of JAX round differently, and training amplifies it.
    expected = pytest.approx([float(number) for number in shown], abs=0.3)
    assert [float(first), float(last)] == expected
