# Everything starts here: each target sets up .venv by itself, from Python, pip and make alone.

PYTHON ?= python3
FLAGS ?=

BIN := .venv/bin
READY := .venv/.ready
CODE := $(wildcard dlc tests tools examples benchmarks)

.PHONY: demo test test-system lint format bench docs clean

# The main job: handwritten digits, learned, compared with PyTorch and told on a page.
demo: $(READY)
	$(BIN)/dlc demo $(FLAGS)

# All tests that need Python alone. FLAGS goes to pytest: make test FLAGS='-k cache -x'
test: $(READY)
	$(BIN)/python -m pytest -m 'not system' -n auto --dist worksteal $(FLAGS)

# The tests that need the system packages of .ci/apt.txt.
test-system: $(READY)
	$(BIN)/python -m pytest -m system $(FLAGS)

lint: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: $(READY)
	$(BIN)/python -m benchmarks $(FLAGS)

# The pages that are printed from the code.
docs: $(READY)
	$(BIN)/python -m dlc.config > docs/configuration.md
	$(BIN)/python -m dlc.ops.coverage > docs/coverage.md
	$(BIN)/python -m dlc.passes > docs/passes.md
	$(BIN)/python tools/elementary_errors.py > docs/elementary_functions.md
	$(BIN)/python -m dlc.cli.page > docs/cli.md

clean:
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# Without pip in it, because some systems ship Python's venv without the means to put it there; the
# pip outside installs into it. setuptools comes first, so that its pinned version builds dlc.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "dlc needs Python 3.11 or later; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv --without-pip .venv
	$(PYTHON) -m pip --python $(BIN)/python install --constraint requirements.lock setuptools
	$(PYTHON) -m pip --python $(BIN)/python install --constraint requirements.lock \
	    --no-build-isolation --editable '.[dev]'
	touch $@
