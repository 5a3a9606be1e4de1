"""The public interface is what `public_api.txt` says, so that no change of it goes unnoticed."""

import re

import pytest

from . import snapshot

ADVICE = """\
The public interface is not what tests/api/public_api.txt says:

{changes}

If that is not meant, take it back. Else describe it in docs/changelog.md, and run

    python -m docs.update
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


def test_what_plugins_rely_on_holds_or_was_deprecated_one_release_before(lines):
    promises, now = snapshot.taken_down(snapshot.PLUGIN_FILE), snapshot.promised(lines)
    assert not snapshot.broken(promises, now, snapshot.CHANGELOG.read_text())
    # If not: `python -m docs.update`.
    assert {*now} <= {*promises}
    page = (snapshot.HERE.parents[1] / "docs" / "contract.md").read_text()
    section = page.partition("## What a plugin may rely on\n")[2]
    subjects = (re.match(r"(?:class )?([a-z_.]+)\.(\w+)", line) for line in promises)
    whole = ("jno.lora.extending", "jno.lora.extending")
    names = {s[1] if s[1] in whole else s[2] for s in subjects if s}
    assert len(names) > 20 and not [name for name in names if f"`{name}`" not in section]
    assert "`jno_lora_api = 1`" in section


@pytest.mark.parametrize(
    ("now", "changelog", "holds"),
    [
        (["jno.lora.extending.f(x, y=1)"], "", True),
        (["jno.lora.extending.f(x, y=1, *, z=2)"], "", True),
        (["jno.lora.extending.f(x, y=1, z)"], "", False),
        (["jno.lora.extending.f(x)"], "", False),
        ([], "", False),
        ([], "## [0.4]\n### Deprecated\n* `extending.f`\n## [0.3]\n", False),
        ([], "## [0.5]\n## [0.4]\n### Deprecated\n* `extending.f`\n", True),
        ([], "## [0.5]\n## [0.4]\n### Deprecated\n### Added\n* `extending.f`\n", False),
    ],
)
def test_a_promise_holds_until_a_release_after_its_deprecation(now, changelog, holds):
    promises = ["jno.lora.extending.f(x, y=1)"]
    assert (snapshot.broken(promises, now, f"# Changelog\n{changelog}") == []) == holds


def test_a_change_is_shown_and_taken_down(lines, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "lines", lambda: lines)
    monkeypatch.setattr(snapshot, "PLUGIN_FILE", tmp_path / "plugin_api.txt")
    snapshot.PLUGIN_FILE.write_text("a promise()\n")
    # As if `merge_lora` had been added since.
    former = [line for line in lines if not line.startswith("jno.lora.merge_lora(")]
    assert snapshot.difference(former, lines) == ["+jno.lora.merge_lora(model)"]
    interface, promises = (text.splitlines() for text in snapshot.files().values())
    assert interface == lines
    assert promises == sorted({"a promise()", *snapshot.promised(lines)})
