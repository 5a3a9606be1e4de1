"""Records survive a killed run, and are stored compressed."""

from studies._records import append, pack, read

from .conftest import killed


def test_new_records_follow_the_packed_ones_and_are_packed_with_them(tmp_path):
    file = tmp_path / "results.jsonl"
    assert read(file) == []
    with append(file) as write:
        write({"run": 1})
        write({"run": 2})
    assert pack(file) == tmp_path / "results.jsonl.xz" and not file.exists()
    with append(file) as write:
        write({"run": 3})
        write({"run": 4, "method": "one that was killed"})
    killed(file)
    with append(file) as write:
        write({"run": 5})
    numbers = [record["run"] for record in read(file)]
    assert numbers == [1, 2, 3, 5]
    pack(file)
    assert [record["run"] for record in read(file)] == numbers
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl.xz"]
