"""The example of an adapter per user."""


def test_the_example_runs(example, capsys):
    before, after = example.main(["--quick"])
    assert before.shape == after.shape == (example.USERS,)
    assert "8 adapters of 2,344 parameters" in capsys.readouterr().out
