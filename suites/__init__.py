"""Suites that ship with fuse-bench; `pocket/` holds the task files and test items of the small world."""
