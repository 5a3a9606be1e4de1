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


def test_the_public_interface_is_what_was_taken_down():
    changes = snapshot.difference(snapshot.FILE.read_text().splitlines(), snapshot.lines())
    assert not changes, ADVICE.format(changes="\n".join(changes))


BEFORE = ["jno.lora.apply_lora(model, rank=0)", "class jno.lora.Net(model): object"]
ADDED = "jno.lora.Net.lora(rank=4)"


@pytest.mark.parametrize(
    ("now", "changed"),
    [
        (BEFORE, []),
        ([*BEFORE, ADDED], [f"+{ADDED}"]),
        (BEFORE[1:], [f"-{BEFORE[0]}"]),
        (
            ["jno.lora.apply_lora(model, rank=1)", BEFORE[1]],
            [f"-{BEFORE[0]}", "+jno.lora.apply_lora(model, rank=1)"],
        ),
    ],
)
def test_what_went_and_what_came_is_told(now, changed):
    assert snapshot.difference(BEFORE, now) == changed


@pytest.mark.parametrize(
    ("line", "text", "is_told"),
    [
        (f"+{ADDED}", "`Net` has a method more", True),
        (f"+{ADDED}", "`lora` is new", True),  # which the package's own name is not
        (f"+{ADDED}", "`apply_lora`, in `jno.lora.peft`", True),
        (f"+{ADDED}", "`apply_lora` is new", False),
        ("-class jno_lora_zoo.OFT(base): adapter_fields = ('Q',)", "`OFT` has gone", True),
        ("-class jno_lora_zoo.OFT(base): adapter_fields = ('Q',)", "base and Q", False),
        ("+jno.lora.peft.load_peft(model)", "PEFT, jno.lora.peft, model", False),
    ],
)
def test_a_change_is_told_of_if_its_name_is_in_the_first_section(line, text, is_told):
    changelog = f"# Changelog\n\n## [Unreleased]\n\n* {text}.\n\n## [0.1.0]\n\n* Net, lora, OFT\n"
    assert snapshot.untold([line], changelog) == ([] if is_told else [line])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A snapshot and a changelog of their own."""
    monkeypatch.setattr(snapshot, "FILE", tmp_path / "api.txt")
    monkeypatch.setattr(snapshot, "CHANGELOG", tmp_path / "CHANGELOG.md")
    snapshot.CHANGELOG.write_text("# Changelog\n\n## [Unreleased]\n\n* Nothing.\n")
    # As if `Net.update` and `merge_lora` had been added since.
    added = ("jno.lora.Net.update(", "jno.lora.merge_lora(")
    former = [line for line in snapshot.lines() if not line.startswith(added)]
    snapshot.FILE.write_text("\n".join(former))
    return former


def test_a_change_that_the_changelog_does_not_tell_of_is_not_taken_down(files, capsys):
    assert snapshot.main(["--write"]) == 1
    out = capsys.readouterr().out
    assert out.count("jno.lora.Net.update(trainable)") == 2
    assert "CHANGELOG.md has no word" in out
    assert snapshot.FILE.read_text().splitlines() == files


def test_a_change_that_it_tells_of_is_taken_down_when_asked(files, capsys):
    snapshot.CHANGELOG.write_text(
        "# Changelog\n\n## [Unreleased]\n\n* `Net.update`, `merge_lora`.\n"
    )
    assert snapshot.main([]) == 0
    assert snapshot.FILE.read_text().splitlines() == files
    assert snapshot.main(["--write"]) == 0
    assert snapshot.FILE.read_text().splitlines() == snapshot.lines()


def test_no_line_depends_on_where_it_is_run():
    lines = snapshot.lines()
    assert len(lines) == len(set(lines))
    assert not [line for line in lines if " at 0x" in line or "(?)" in line or "/" in line]
