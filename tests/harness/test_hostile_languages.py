"""Hostile programs in other languages than Python: none passes, outlives its limit or leaves a trace, at any level."""

import tempfile
from pathlib import Path

import pytest

from harness import sandbox
from harness.sandbox import LEVELS, Program, SandboxSettings, canaries, missing_toolchain, run_many
from tests.harness.hostile_languages import HOSTILE, REACH
from tests.harness.test_sandbox_hostile import USABLE, children, foster_parent, listing, outside

__all__ = ["foster_parent", "outside"]

TIMEOUT = 1.0
LATE = 5.0
"""Seconds that a loaded machine may add to a program's limit, besides the time that it is built in."""


def judged(
    level: str, language: str, texts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, sandbox.Verdict]:
    monkeypatch.setattr(sandbox, "LEVELS", {level: LEVELS[level]})
    canary = canaries.CANARIES[language]
    programs = [Program(text, canary.tests, language=language) for text in (*texts.values(), canary.right)]
    *verdicts, last = run_many(programs, SandboxSettings(level, TIMEOUT))
    assert last.passed or last.reason == "timeout"
    return dict(zip(texts, verdicts, strict=True))


@pytest.mark.parametrize("language", HOSTILE)
@pytest.mark.parametrize("level", USABLE)
@pytest.mark.usefixtures("foster_parent")
def test_no_hostile_program_passes_or_outlives_its_limit(
    level: str, language: str, outside: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = missing_toolchain(language)
    if missing:
        pytest.skip(missing)
    victim, own, scratch = Path(str(outside["victim"])), children(), tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    texts = dict(HOSTILE[language])
    if level != "rlimits":
        for name, text in REACH.get(language, {}).items():
            for key, value in outside.items():
                text = text.replace(f"{{{key}}}", str(value))
            texts[f"reach: {name}"] = text
    before = listing(victim)
    verdicts = judged(level, language, texts, monkeypatch)
    build = sandbox.LANGUAGES[language].build_seconds if sandbox.LANGUAGES[language].build else 0.0
    assert {name for name, verdict in verdicts.items() if verdict.passed} == set()
    assert {name: v.seconds for name, v in verdicts.items() if v.seconds > TIMEOUT + LATE + build} == {}
    assert listing(victim) == before
    assert list(scratch.iterdir()) == [], "something is left on the disk"
    assert children() == own, "a process of a program is still there"


@pytest.mark.parametrize("level", USABLE)
def test_what_rlimits_alone_does_not_keep_out(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing_toolchain("sh"):
        pytest.skip("no bash")
    verdicts = judged(level, "sh", {"reads": REACH["sh"]["reads /etc/passwd"]}, monkeypatch)
    assert verdicts["reads"].passed == (level == "rlimits")
