"""`python -m harness.pocket`: write the committed test items (suites/pocket/*.jsonl) again from their generators."""

import json
from pathlib import Path

from . import texts

FOLDER = Path(__file__).parents[2] / "suites" / "pocket"


def lines(task: str) -> str:
    """A task's test items as JSON lines."""
    return "".join(json.dumps(doc) + "\n" for doc in texts.test_docs(task))


def main() -> None:
    for task in texts.TASKS:
        path = FOLDER / f"{task}.jsonl"
        path.write_text(lines(task), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
