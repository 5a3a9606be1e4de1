"""The example of a plugin, installed as a distribution of its own: its tests pass there."""

import os
import pathlib
import subprocess
import sys
import tomllib

from tests.pairs import ALL

PLUGIN = pathlib.Path(__file__).parents[2] / "examples" / "plugin_of_your_own"


def test_its_own_tests_pass_where_it_is_installed(tmp_path):
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    name, version = project["name"], project["version"]
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    entries = project["entry-points"]["jno.lora"]
    lines = [f"{entry} = {module}" for entry, module in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[jno.lora]", *lines, ""]))
    for module in entries.values():
        (tmp_path / f"{module}.py").write_text((PLUGIN / f"{module}.py").read_text())

    # A process of its own, as an author has it: without the settings of this suite.
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    chosen = [] if ALL else ["-k", "not SVFTConv"]  # the whole kit runs on one of two layers
    pytest = ["pytest", "-q", f"--rootdir={PLUGIN}", f"-c{os.devnull}", *chosen, PLUGIN]
    found = subprocess.run(
        [sys.executable, "-m", *pytest],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert found.returncode == 0, found.stdout
    assert " skipped" not in found.stdout
