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

BY_HAND = """\
tests/api/public_api.txt was changed by hand, past CHANGELOG.md. (After a merge, too, its last line
is not the digest of the others.) Take it from a commit, as it was, and have the change written:

    git checkout COMMIT -- tests/api/public_api.txt
    python tests/api/snapshot.py --write
"""


def test_the_public_interface_is_what_was_taken_down():
    before, is_whole = snapshot.taken_down()
    changes = snapshot.difference(before, snapshot.lines())
    assert not changes, ADVICE.format(changes="\n".join(changes))
    assert is_whole, BY_HAND


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


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A snapshot and a changelog of their own."""
    monkeypatch.setattr(snapshot, "FILE", tmp_path / "api.txt")
    monkeypatch.setattr(snapshot, "CHANGELOG", tmp_path / "CHANGELOG.md")
    snapshot.CHANGELOG.write_text("# Changelog\n\n## [Unreleased]\n\n* Nothing.\n")
    # As if `Net.update` and `merge_lora` had been added since.
    added = ("jno.lora.Net.update(", "jno.lora.merge_lora(")
    former = [line for line in snapshot.lines() if not line.startswith(added)]
    snapshot.FILE.write_text(snapshot.sealed(former))
    return former


def test_a_change_that_the_changelog_does_not_tell_of_is_not_taken_down(files, capsys):
    assert snapshot.main(["--write"]) == 1
    out = capsys.readouterr().out
    assert out.count("jno.lora.Net.update(trainable)") == 2
    assert "CHANGELOG.md has no word" in out
    assert snapshot.taken_down() == (files, True)


def test_a_change_that_it_tells_of_is_taken_down_when_asked(files, capsys):
    snapshot.CHANGELOG.write_text("## [Unreleased]\n\n* `Net.update`, `merge_lora`.\n")
    assert snapshot.main([]) == 0
    assert snapshot.taken_down() == (files, True)
    assert snapshot.main(["--write"]) == 0
    assert snapshot.taken_down() == (snapshot.lines(), True)


def test_a_file_that_was_changed_by_hand_is_seen_and_not_written_over(files, capsys):
    by_hand = snapshot.FILE.read_text() + "jno.lora.new()\n"
    snapshot.FILE.write_text(by_hand)
    assert not snapshot.taken_down()[1]
    assert snapshot.main(["--write"]) == 1
    assert "changed by hand" in capsys.readouterr().out
    assert snapshot.FILE.read_text() == by_hand


def test_plugins_and_commands_are_there():
    lines = snapshot.lines()
    for start in [
        *("class jno_lora_zoo.LoRALinear: ", "class jno_lora_arrays.LoRAArray: "),
        *("class jno_lora_zoo.VeRA(", "class jno_lora_zoo.LoRARecurrent: "),
        "class jno_lora_attention.PrefixAttention(",
        *("class jno_lora_foundax.LoRASpectral(", "jno_lora_foundax.ChannelLastKernelLayer."),
        *("jno-lora compare MODULE:FACTORY", "jno-lora compare --plot", "jno-lora demo --seed"),
    ]:
        assert any(line.startswith(start) for line in lines), start


def test_no_line_depends_on_where_it_is_run():
    lines = snapshot.lines()
    assert len(lines) == len(set(lines))
    assert not [line for line in lines if " at 0x" in line or "(?)" in line or "/" in line]
