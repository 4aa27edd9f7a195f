# `make demo` and `make test` work on a fresh machine. Every target creates the environment .venv if it does not exist.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test fuzz lint format bench clean

demo: $(INSTALLED)  ## distill a small agent from a larger one and evaluate both
	$(BIN)/sad demo --out demo-run

# Test files run in parallel, so each process uses one thread. --dist loadfile keeps the fixtures of a file in one process.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
test: $(INSTALLED)  ## run all tests
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

N ?= 100000
SEED ?= 1
fuzz: $(INSTALLED)  ## compare N random calls of the losses with a float64 oracle, on all backends
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(N) --seed $(SEED)

lint: $(INSTALLED)  ## check the style of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cuh csrc/*/*.cu csrc/*/*.cpp)

format: $(INSTALLED)  ## format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cuh csrc/*/*.cu csrc/*/*.cpp)

bench: $(INSTALLED)  ## measure the loss on this CPU; writes a CSV and a plot to benchmarks/results
	$(BIN)/python benchmarks/bench_span_kl.py --device cpu --out benchmarks/results/span_kl_cpu.csv
	$(BIN)/sad bench --from benchmarks/results/span_kl_cpu.csv --plot benchmarks/results/span_kl_cpu.png

# PyTorch comes first and pinned. As a dependency of another package, pip may choose a build of several gigabytes.
$(INSTALLED): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "setuptools>=77" "pybind11>=2.13" "ninja>=1.11"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation -e ".[dev]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info sadkernels/native/*.so
