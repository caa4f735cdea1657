"""What the judge said of a model's answers to a task, by item, put together from the blocks that are done."""

from collections.abc import Mapping
from typing import Any

from harness.blocks import SCORES, read_block
from harness.drive import Progress
from harness.plan import Plan


def judged(plan: Plan, progress: Progress, instance: str, group: str, task: str) -> dict[str, Mapping[str, Any]]:
    """A record for each item of the blocks that are judged, dev and test."""
    found: dict[str, Mapping[str, Any]] = {}
    for block in plan.items[group][task].blocks:
        entry = progress.done.get(f"judge {instance} {group}/{block.name}")
        if entry is not None:
            found.update(zip(block.ids, read_block(entry.path, SCORES), strict=True))
    return found
