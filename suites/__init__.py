"""Suites that ship with fuse-bench; `pocket/` holds the task files and test items of the small world."""

from pathlib import Path


def shipped() -> dict[str, Path]:
    """The suites that come with fuse-bench, by name."""
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
