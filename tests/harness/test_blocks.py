"""A block's file: the same records give the same bytes, and come back as they were."""

import gzip
import json

import pytest

from harness.blocks import RESPONSES, read_block, write_block

RECORDS = [{"id": "a" * 64, "resps": [[[-1.25, True]], [[-3.0, False]]], "target": "naïve ☃"}] * 50


def test_there_and_back_in_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
        write_block(folder, RESPONSES, RECORDS)
    one, two = ((folder / RESPONSES).read_bytes() for folder in folders)
    assert one == two and len(one) < len(json.dumps(RECORDS)) / 10
    assert read_block(folders[0], RESPONSES) == RECORDS
    assert json.loads(gzip.decompress(one)) == RECORDS


def test_what_is_no_number_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_block(tmp_path, RESPONSES, [{"score": float("nan")}])
    assert not list(tmp_path.iterdir())
