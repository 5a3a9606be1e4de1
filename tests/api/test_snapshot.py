"""The public interface is what `public_api.txt` says, so that no change of it goes unnoticed."""

import pytest

from . import snapshot

ADVICE = """\
The public interface is not what tests/api/public_api.txt says:

{changes}

If that is not meant, take it back. If it is, describe it in the first section of CHANGELOG.md, and
take it down with

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


ADDED = "+jno.lora.Net.lora(rank=4)"
OPTION = "+jno-lora inspect --values: flag"


@pytest.mark.parametrize(
    ("line", "text", "is_told"),
    [
        (ADDED, "`lora` is new", True),
        (ADDED, "`net.lora(rank=4)` and `jno.lora.apply_lora`", True),
        (ADDED, "`Net` has a method more", True),
        (ADDED, "something in `peft`", False),
        (ADDED, "a net has a lora of its own", False),  # prose is not code
        ("+class jno.lora.types.Plan(rows): object", "`Plan`", True),
        ("+jno.lora.peft.load_peft(model)", "PEFT, `peft`, `model`", False),
        ("+jno_lora_arrays.LoRAArray.x", "`jno_lora_arrays`", False),
        (OPTION, "`jno-lora inspect --values`", True),
        (OPTION, "`jno-lora`, `values_of`", False),
    ],
)
def test_a_change_is_told_of_if_its_name_is_in_the_first_section(line, text, is_told):
    changelog = (
        f"# Changelog\n\n## [Unreleased]\n\n* {text}.\n\n## [0.1.0]\n\n* `Net.lora`, `LoRAArray`\n"
    )
    assert (snapshot.untold([line], changelog) == []) == is_told


def test_a_change_is_taken_down_when_the_changelog_tells_of_it(
    lines, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(snapshot, "lines", lambda: lines)
    monkeypatch.setattr(snapshot, "FILE", tmp_path / "api.txt")
    monkeypatch.setattr(snapshot, "CHANGELOG", tmp_path / "CHANGELOG.md")
    # As if `Net.update` and `merge_lora` had been added since.
    added = ("jno.lora.Net.update(", "jno.lora.merge_lora(")
    former = [line for line in lines if not line.startswith(added)]
    snapshot.FILE.write_text("\n".join(former))
    snapshot.CHANGELOG.write_text("## [Unreleased]\n\n* Nothing.\n")
    assert snapshot.main(["--write"]) == 1
    assert capsys.readouterr().out.count("+jno.lora.Net.update(trainable)") == 2
    snapshot.CHANGELOG.write_text("## [Unreleased]\n\n* `Net.update`, `merge_lora`.\n")
    assert snapshot.main([]) == 0 and snapshot.taken_down() == former
    assert snapshot.main(["--write"]) == 0 and snapshot.taken_down() == lines
