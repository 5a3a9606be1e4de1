"""The example of a server with many adapters."""


def test_every_request_gets_the_answer_of_its_user(example, capsys):
    requests, answered, wrong = example.main(["--quick"])
    assert (requests, wrong) == (64, 0)
    assert 32 < answered <= requests
    assert "0 answers are wrong" in capsys.readouterr().out
