"""`python -m harness` is `fuse-bench`."""

from harness.cli import main

main()
