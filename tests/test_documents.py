"""What the documents point at exists, and CI runs what the README tells a newcomer to run."""

import pathlib
import re

import pytest

from repgls_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_and_commands_point_at_files(document):
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    files = re.findall(r"python ((?:launch|data_prep)/\w+\.py)", text) + re.findall(r"--config=(configs/\w+\.py)", text)
    assert files
    assert not [link for link in links if not (document.parent / link).exists()]
    assert not [file for file in files if not (ROOT / file).exists()]
    assert not re.findall(r"@\w+@", text), "a figure was never filled in"


def test_ci_runs_the_commands_of_the_readme():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    for name in ("main job", "tests", "tests of the extras"):
        assert f"<!-- {name} -->\n```sh\n" in readme and f"readme_command '{name}'" in ci


def test_every_method_is_explained():
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in METHODS if f"`{name}`" not in readme]
