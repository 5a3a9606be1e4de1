"""The example of adapters for attention layers."""


def test_the_example_runs(example, capsys):
    found = example.main(["--quick"])
    assert list(found) == list(example.CANDIDATES)
    assert all(0 < value < 1 for value in found.values())
    printed = capsys.readouterr().out
    # The head has 330; of each of two layers, LoRA on two of four projections of 32 by 32.
    assert f"{330 + 2 * 2 * 4 * 64:,} parameters" in printed
