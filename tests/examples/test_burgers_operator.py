"""The example of a neural operator: it runs. The plugin tests its solver and protocol."""


def test_the_example_runs(example, tmp_path, capsys):
    errors = example.main(["--quick", "--output", str(tmp_path / "burgers.svg")])
    assert list(errors) == ["pretrained", "full fine-tuning", "lora"]
    assert all(0 < value < 2 for values in errors.values() for value in values)
    assert "<svg" in (tmp_path / "burgers.svg").read_text()
    assert "pretrained: error" in capsys.readouterr().out
