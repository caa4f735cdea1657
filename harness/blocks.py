"""The files of a block of items in the store: responses, and the scores that they were given. JSON, compressed."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESPONSES, SCORES = "responses.json.gz", "scores.json.gz"
COUNTED = ("truncated", "unfinished")
"""What is counted of a response: whether its prompt was cut, and how many of its texts came to no end."""


def write_block(folder: Path, name: str, records: Sequence[Any]) -> None:
    """Write a block's records to `folder`; equal records give equal bytes."""
    text = json.dumps(records, ensure_ascii=False, allow_nan=False)
    (folder / name).write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))


def read_block(folder: Path, name: str) -> list[dict[str, Any]]:
    """The records of a block in an object's folder."""
    found: list[dict[str, Any]] = json.loads(gzip.decompress((folder / name).read_bytes()))
    return found
