# `make demo` and `make test` do everything on a fresh machine; PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-gpu lint docs docs-generated bench clean

demo: $(STAMP)
	$(BIN)/tagmask demo --out demo

test: $(STAMP) lint docs
	$(BIN)/pytest -n 2

# The tests on CUDA, with a table of what they measured; without a GPU they are skipped, and a sentence says so.
test-gpu: $(STAMP)
	$(BIN)/pytest -n 0 -m gpu tests/gpu

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Everything is read again each time (-E): a page with a warning must not pass the second time because it is unchanged.
docs: $(STAMP)
	$(BIN)/sphinx-build -W -E -q docs docs/_build/html
	@echo "docs/_build/html/index.html"

# the settings tables, the CLI reference and the list of recipes inside the pages
docs-generated: $(STAMP)
	$(BIN)/python docs/generate.py

# The scripts about speed; benchmarks/claims.py and benchmarks/per_image_threshold.py take hours and have arguments.
SPEED := dense_crf random_walk thresholds maps infercam stages
bench: $(STAMP)
	$(BIN)/pip install --quiet "pydensecrf2>=1.1"
	@set -e; for name in $(SPEED); do echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py; done

# torch, torchvision and timm in one call, so that pip chooses builds that fit each other
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist docs/_build .mypy_cache .ruff_cache .pytest_cache
