"""SECURITY.md, watched at run time: an audit hook sees what no reading of sources does.

`watched.py` is the process; here are plugins for it, one of which is blocked.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.core.conftest import site  # noqa: F401

WATCHED = Path(__file__).with_name("watched.py")

EVIL = """
    import os, socket

    socket.socket().close()
    os.system("true")

    @hookimpl
    def jno_lora_wrappers():
        return [adapter("Evil")]
"""


@pytest.mark.slow
def test_nothing_is_done_but_what_the_security_policy_says(site):  # noqa: F811
    # As long as the name of the zoo, the distribution of the adapters.
    forbidden = "evil-adapter"
    site.plugin("acme-lora", '"Acme"')
    evil = site.install(forbidden, EVIL)
    folder = site.root / "files"
    folder.mkdir()
    installed = [str(path.parent) for path in site.root.glob("*/*.dist-info")]
    settings = {
        "PYTHONPATH": os.pathsep.join([*installed, os.environ.get("PYTHONPATH", "")]),
        "JNO_LORA_BLOCK": forbidden,
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-P", str(WATCHED), str(folder), forbidden]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["records"] | {forbidden: "blocked", "acme-lora": "loaded"} == found["records"]
    assert evil not in found["modules"]
    # A file that says that its adapters come from there changes nothing of that.
    assert forbidden in found["error"] and "blocked" in found["error"]

    seen = found["seen"]
    assert {event for event, *_ in seen.pop("control")} == {"compile", "exec"}
    files, temporary = {}, re.compile(re.escape(f"{folder}{os.sep}") + r"(peft/)?\.\S+\.tmp")
    for step, events in seen.items():
        done = [(event, temporary.sub("TEMPORARY", path)) for event, path, _ in events]
        files[step] = {one for one in done if not is_metadata(*one, found["path"])}

    file, lying = folder / "adapters.safetensors", folder / "lying.safetensors"
    peft = folder / "peft"
    written = {("open", "TEMPORARY"), ("os.rename", "TEMPORARY")}
    nothing, read = set(), {("open", str(file))}
    config, tensors = (str(peft / f"adapter_{p}") for p in ("config.json", "model.safetensors"))
    expected = dict.fromkeys(["import", "apply", "plan", "merge", "report"], nothing)
    expected |= {"save": written} | dict.fromkeys(["read", "load", "inspect"], read)
    expected["load what lies"] = {("open", str(lying))}
    expected["load_peft"] = {("open", config), ("open", tensors)}
    # There is no description while the tensors change: the old one is put aside.
    made = {("os.mkdir", str(peft)), ("os.rename", config), ("os.remove", "TEMPORARY")}
    expected["save_peft"] = written | made
    assert files == expected


# Read when our packages are imported: papers, and the folder of the types of PEFT.
OWN_DATA = (os.path.join("jno_lora_zoo", "papers.bib"), os.path.join("jno_lora_peft", "types"))


def is_metadata(event, path, search_path):
    """Whether discovery did that: it reads what is installed, and our packages their own data."""
    if any(data in path for data in OWN_DATA):
        return event in ("open", "os.listdir")
    if path in search_path:
        return event in ("open", "os.listdir", "os.scandir")  # one of them may be an archive
    return event == "open" and (".dist-info" in path or ".egg-info" in path)
