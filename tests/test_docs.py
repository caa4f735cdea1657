"""The documents say what is so: every verb is in the README, and every command in it exists."""

import re
from pathlib import Path

import click
import pytest

from fusion.params import describe
from harness.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
HOW = "".join((ROOT / "docs" / name).read_text() for name in ("how-it-works.md", "merging.md", "fusion.md"))


@pytest.mark.parametrize("verb", sorted(cli.commands))
def test_every_verb_is_in_the_readme_and_has_help(verb):
    assert re.search(rf"`(fuse-bench )?{verb}\b", README), f"README.md does not tell of {verb}"
    command = cli.commands[verb]
    assert command.help
    for option in command.params:
        assert isinstance(option, click.Argument) or option.help or option.name in ("progress", "form")


def test_every_command_in_the_documents_exists():
    told = re.findall(r"fuse-bench ([a-z]+)\b", README + HOW + (ROOT / "suites" / "quickstart.yaml").read_text())
    assert set(told) <= set(cli.commands)


def test_every_file_that_the_documents_link_to_exists():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_make_target_in_the_documents_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    told = re.findall(r"make ([a-z-]+)", README + HOW + (ROOT / "CONTRIBUTING.md").read_text())
    assert set(told) <= {*targets, "a"}


def test_every_merge_method_is_in_the_changelog():
    from fusion.methods import METHODS

    told = (ROOT / "CHANGELOG.md").read_text()
    assert not [name for name in METHODS if not re.search(rf"\b{re.escape(name)}(?!\w)", told)]


def test_every_builder_is_in_the_changelog():
    from fusion.builders import BUILDERS

    told = (ROOT / "CHANGELOG.md").read_text()
    assert not [name for name in BUILDERS if f"`{name}`" not in told]


def test_every_parameter_says_what_it_is():
    from fusion.builders import BUILDERS
    from fusion.methods import METHODS
    from harness.pocket import TRAINERS

    for row in (*METHODS.values(), *BUILDERS.values(), *TRAINERS.values()):
        for parameter in describe(row.Params):
            assert parameter["help"], f"{row.name}: {parameter['name']}"
