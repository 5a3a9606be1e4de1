"""The public interface is what `public_api.txt` says, so that no change of it goes unnoticed."""

import pytest

from . import snapshot

ADVICE = """\
The public interface is not what tests/api/public_api.txt says:

{changes}

If that is not meant, take it back. Else describe it in the first section of CHANGELOG.md, and run

    python tests/api/snapshot.py --write
"""


@pytest.fixture(scope="module")
def lines():
    return snapshot.lines()


def test_the_public_interface_is_what_was_taken_down(lines):
    changes = snapshot.difference(snapshot.taken_down(), lines)
    assert not changes, ADVICE.format(changes="\n".join(changes))
    assert len(lines) == len(set(lines))
    # No line depends on where it is run.
    assert not [line for line in lines if " at 0x" in line or "(?)" in line or "/" in line]
    for start in ("class jno_lora_zoo.VeRA(", "jno-lora compare --plot", "jno.lora.Net.lora("):
        assert any(line.startswith(start) for line in lines), start


def test_a_change_is_shown_and_taken_down(lines, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(snapshot, "lines", lambda: lines)
    monkeypatch.setattr(snapshot, "FILE", tmp_path / "api.txt")
    # As if `merge_lora` had been added since.
    former = [line for line in lines if not line.startswith("jno.lora.merge_lora(")]
    snapshot.FILE.write_text("\n".join(former))
    snapshot.main([])
    assert capsys.readouterr().out == "+jno.lora.merge_lora(model)\n"
    assert snapshot.taken_down() == former
    snapshot.main(["--write"])
    assert snapshot.taken_down() == lines
