"""The example of error bars."""


def test_the_intervals_hold_most_of_the_new_points(example, capsys):
    calibrated, held = example.main(steps=60)
    assert int(calibrated.examples) == 64
    assert 0.8 < held < 0.99
    assert "new points inside" in capsys.readouterr().out
