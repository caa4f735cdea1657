"""What the verbs share: common options, the place of the store, JSON on stdout."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from harness.run import Options

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else there.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where run folders lie."
)
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=None,
    help="The store of everything computed.  [default: $FUSE_BENCH_STORE, or ~/.cache/fuse-bench]",
)
weak_sandbox_option = click.option(
    "--allow-weak-sandbox", is_flag=True, help="Run generated programs under resource limits alone, if need be."
)


def store_of(given: Path | None) -> Path:
    """The store: as given, else FUSE_BENCH_STORE, else in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return given or Path(os.environ.get("FUSE_BENCH_STORE") or cache / "fuse-bench")


def print_json(value: Any) -> None:
    """One JSON document on stdout; numbers that are not finite would not be JSON."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def run_options(
    out: Path, store: Path | None, slots: int | None, progress: str, again: str = "", seed: int | None = None
) -> "Options":
    """How a run is to go, by the options of its verb."""
    from harness.run import Options

    return Options(out=out, store=store_of(store), slots=slots, progress=progress, again=again, seed=seed)
