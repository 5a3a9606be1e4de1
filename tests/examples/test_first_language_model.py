"""The example of a language model in the README."""

import numpy as np


def test_a_file_of_peft_and_a_bank_compute_the_logits_of_each_users_model(example, capsys):
    logits, each = example.main()
    np.testing.assert_allclose(logits, each, rtol=1e-5, atol=1e-5 * np.abs(each).max())
    assert np.abs(logits[0] - logits[2]).max() > 1e-2  # the adapters do something
    assert "4,096 of 61,696 parameters train" in capsys.readouterr().out
