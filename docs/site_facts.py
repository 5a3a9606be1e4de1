"""Fill in, when the site is built, the facts about the project that another file states.

`mkdocs.yml` names this file as a hook.
"""

import pathlib
import re
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """Put the version into the site's name, and link the repository if pyproject.toml names one."""
    version = re.search(
        r'^__version__ = "(.+)"$', (ROOT / "src/jno/lora/_version.py").read_text(), re.MULTILINE
    )
    assert version is not None, "src/jno/lora/_version.py should say `__version__ = ...`"
    config.site_name = f"{config.site_name} {version[1]}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    address = project.get("urls", {}).get("Repository")
    if address is not None:
        config.repo_url, config.repo_name = address, project["name"]
    return config
