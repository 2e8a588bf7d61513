# Every target sets up what it needs. The first `make` builds .venv (minutes); after that setting up is a no-op.
SHELL := /bin/sh
BIN := .venv/bin
ARGS ?=

# TFX's imports take three times as long without bytecode.
export UV_COMPILE_BYTECODE := 1
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup pipeline test test-fast test-peers test-next lint format bench zoo digests constraints clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 22

setup: .venv/.done  ## build .venv: finds or fetches Python 3.10 (or 3.11 on glibc >= 2.39) and installs everything

.venv/.done: pyproject.toml constraints.txt .ci/find-python .ci/find-compiler
	@test -x $(BIN)/python || { python=$$(.ci/find-python) && "$$python" -m venv .venv; }
	@.ci/find-compiler $(BIN)/python >.venv/compiler
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	CC="$$(cat .venv/compiler)" CXX="$$(cat .venv/compiler)" \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[kfp,dev]'
	@touch $@

pipeline: setup  ## train, compress, evaluate and release scikit-learn's digits (ARGS="--help" lists the options)
	@$(BIN)/python -m pipelines.local $(ARGS)

test: setup  ## the tests, whole pipelines included (15 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not peers" -n auto --dist loadfile $(ARGS)

test-fast: setup  ## the tests that take less than a few seconds each (90 seconds on 2 cores)
	$(BIN)/python -m pytest -m "not slow and not peers" -n auto --dist loadfile $(ARGS)

test-peers: setup  ## the tests that need more than Python: compilers, servers, other runtimes
	$(BIN)/python -m pytest -m peers $(ARGS)

test-next:  ## all tests on the other TFX line (1.21, Python 3.11), in a Debian 13 chroot
	.ci/test-next $(ARGS)

lint: setup  ## ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup  ## format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: setup  ## every benchmark, one after the other; each prints one JSON object
	@for benchmark in pipeline evaluator pruning fine_tuning quantization; do \
	  echo "benchmarks/$$benchmark.py" >&2; $(BIN)/python benchmarks/$$benchmark.py || exit 1; done

zoo: setup  ## compress pretrained nets from PyPI's packages and compare with plain tools (an hour; ARGS="--help")
	@$(BIN)/python benchmarks/zoo.py --out docs/benchmarks $(ARGS) >/dev/null
	@$(BIN)/python benchmarks/zoo_figures.py

digests: setup  ## digests of what the public functions return (ARGS="--against FILE" compares with an earlier output)
	@$(BIN)/python benchmarks/digests.py $(ARGS)

constraints: setup  ## resolve pyproject.toml anew, for both TFX lines
	$(BIN)/uv pip compile --quiet --universal --upgrade --all-extras --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.10 -o constraints.txt pyproject.toml

clean:  ## remove what the targets made, runs/ excepted
	rm -rf .venv .cache dist .pytest_cache .mypy_cache .ruff_cache
