"""The rows that the code tasks of this folder read of their data sets."""

from typing import Any


def stripped(rows: Any) -> Any:
    """Prompts without the blanks around them, so that what is asked and what is run are one text."""
    return rows.map(lambda row: {"prompt": row["prompt"].strip()})


def mbpp_test(rows: Any) -> Any:
    """The problems 11 to 510."""
    return rows.filter(lambda row: 11 <= row["task_id"] <= 510)


def mbpp_shots(rows: Any) -> Any:
    """The problems 2, 3 and 4, as in the paper's appendix, by number."""
    return sorted((row for row in rows if row["task_id"] in (2, 3, 4)), key=lambda row: row["task_id"])
