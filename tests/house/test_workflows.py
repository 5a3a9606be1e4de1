"""The workflows of `.github` and the hooks of pre-commit: what they run is there, and is pinned."""

import pathlib
import re
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# An action by the hash of a commit, with its version for people.
PINNED = re.compile(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")


def parsed(path):
    workflow = yaml.safe_load(path.read_text())
    workflow["on"] = workflow.pop(True)  # YAML 1.1 reads `on` as a bool
    return workflow


ALL_PAIRS, CHECKS, DOWNSTREAM, RELEASE = map(parsed, WORKFLOWS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_there_are_no_secrets(path):
    text = path.read_text()
    uses = [line.strip().removeprefix("- ") for line in text.splitlines() if "uses:" in line]
    assert uses and all(PINNED.fullmatch(line) for line in uses)
    assert "secrets." not in text and "password" not in text.replace("no password", "")
    # No text from outside becomes a command.
    for job in parsed(path)["jobs"].values():
        assert not [step["run"] for step in job["steps"] if "${{" in step.get("run", "")]


def test_the_checks_run_on_the_interpreters_that_pyproject_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (job,) = CHECKS["jobs"].values()
    named = [re.search(r"Python :: (3\.\d+)$", line) for line in project["classifiers"]]
    assert job["strategy"]["matrix"]["python"] == [match[1] for match in named if match]
    assert {"run": "bash .ci/run"} in job["steps"]
    assert CHECKS["permissions"] == ALL_PAIRS["permissions"] == {"contents": "read"}


def test_every_example_of_a_plugin_runs_on_the_last_release_each_week():
    (job,) = DOWNSTREAM["jobs"].values()
    examples = sorted(path.name for path in (ROOT / "examples" / "plugins").iterdir())
    assert job["strategy"]["matrix"]["plugin"] == examples
    assert DOWNSTREAM["on"]["schedule"] and DOWNSTREAM["permissions"] == {"contents": "read"}


def test_publishing_needs_a_release_and_its_environment():
    assert RELEASE["on"] == {"release": {"types": ["published"]}}
    assert RELEASE["permissions"] == {}
    jobs = RELEASE["jobs"]
    trusted = {name for name, job in jobs.items() if "id-token" in job["permissions"]}
    assert trusted == {"publish", "deploy"}
    assert all("environment" in jobs[name] for name in trusted)
    # A job that is trusted runs no code of the repository.
    assert not [step for name in trusted for step in jobs[name]["steps"] if "run" in step]


def test_the_hooks_of_pre_commit_are_local():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] in ("system", "pygrep")
        assert hook["language"] == "system" or re.compile(hook["entry"])
