# Everything starts from a fresh clone: each target makes the virtual environment that it needs.
# The first Python that runs and is 3.11 or 3.12: a version manager's shim may be on the path and run nothing.
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do $$p -c '$(SUITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: quickstart test check fix torture peers parity bench-merge bench-fuse bench-kinship bench-sandbox bench-evaluate clean

quickstart: .venv/installed
	$(BIN)/fuse-bench run suites/quickstart.yaml

test: .venv/installed-dev
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

fix: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Kills a real run at random moments, again and again, and compares what comes out in the end.
torture: .venv/installed-dev
	$(BIN)/python -m pytest -m torture tests/test_torture.py

# Every method beside mergekit, which lives in an environment of its own.
peers: .venv/installed-dev .venv-peers/installed
	$(BIN)/python -m pytest -m peers tests/peers

# Sample by sample beside bare lm-eval on the real data (FUSE_BENCH_DATA), and verdicts beside the bigcode harness's.
parity: .venv/installed-dev
	$(BIN)/fuse-bench doctor --install bigcode > /dev/null
	$(BIN)/python -m pytest -m parity tests/parity

# Wall time and memory beside mergekit's: make bench-merge ARGS="--large --runs 5"
bench-merge: .venv/installed-dev .venv-peers/installed
	$(BIN)/python -m tests.bench.bench_merge $(ARGS)

# Vocabulary maps, alignments, the store of teachers, and a step of fusion beside one of plain training.
bench-fuse: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.bench_fuse $(ARGS)

# All pairs of three 300 M models in one pass beside pair by pair, and 1.2 B ones. 10 GB of temporary files.
bench-kinship: .venv/installed-dev
	$(BIN)/python -m tests.bench.bench_kinship $(ARGS)

# A live model beside bare lm-eval: shared contexts, the cost of one model, six candidates in one run.
bench-evaluate: .venv/installed-dev
	$(BIN)/python -m tests.bench.bench_evaluate $(ARGS)

# Programs a second at every level of the sandbox that the machine has.
bench-sandbox: .venv/installed-dev
	$(BIN)/python -m tests.bench.bench_sandbox $(ARGS)

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "fuse-bench needs Python 3.11 or 3.12; none is on the path. Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

# The same torch as ours: random streams and sums are equal to the last bit only then.
.venv-peers/installed: constraints.txt
	@test -n "$(PYTHON)" || { echo "fuse-bench needs Python 3.11 or 3.12; none is on the path. Set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt torch
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt mergekit==0.1.5
	touch $@

clean:
	rm -rf .venv .venv-peers build *.egg-info .pytest_cache .mypy_cache .ruff_cache
