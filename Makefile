# `make demo` and `make test` work on a fresh machine. Every target creates the environment .venv if it does not exist.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.PHONY: demo test test-lowest fuzz soak docs lint format bench clean

demo: $(INSTALLED)  ## distill a small agent from a larger one and evaluate both
	$(BIN)/sad demo --out demo-run

# Test files run in parallel, so each process uses one thread. --dist loadfile keeps the fixtures of a file in one process.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder
test: $(INSTALLED)  ## run all tests
	@if [ -n "$$(find csrc setup.py -newer $(INSTALLED))" ] || ! ls sadkernels/native/_cpu.*so > /dev/null 2>&1; then \
		$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e . && touch $(INSTALLED); fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

N ?= 100000
SEED ?= 1
fuzz: $(INSTALLED)  ## compare N random calls of the losses with a float64 oracle, on all backends
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(N) --seed $(SEED)

MINUTES ?= 30
soak: $(INSTALLED)  ## attack whole commands at random: kills, full disks, signals, flipped bits, hostile input
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --minutes $(MINUTES) --seed $(SEED)

# The lower bounds of pyproject.toml, in an environment of its own. Pip's index may offer only a build of PyTorch with CUDA
# (7 GB installed): set PIP_EXTRA_INDEX_URL to an index with CPU builds, or LOWEST_TORCH to another version.
LOWEST ?= .venv-lowest
LOWEST_EXTRAS := lora endpoint webshop
LOWEST_TORCH ?= $(shell sed -n 's/^ *"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
LOWEST_TESTS := tests/test_structure.py tests/sad/agents tests/sad/teacher_cache tests/sad/cli/test_train.py \
	tests/sad/cli/test_cache.py tests/sad/cli/test_collect_eval.py tests/sad/cli/test_inspect.py tests/sad/cli/test_plan.py \
	tests/sad/training/test_trainer.py tests/sad/training/test_adapters.py tests/sad/training/test_config.py \
	tests/sad/envs/test_webshop.py tests/sad/trajectories/test_encode.py tests/sad/trajectories/test_chat.py \
	tests/sad/test_models.py tests/sad/test_files.py
test-lowest: $(INSTALLED)  ## run a part of the tests with the lowest versions that pyproject.toml accepts
	$(PYTHON) -m venv $(LOWEST)
	$(BIN)/python -m tests.lowest --torch $(LOWEST_TORCH) $(LOWEST_EXTRAS) > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip install --quiet "setuptools>=77" "pybind11>=2.13" "ninja>=1.11" "pytest>=8.4" "hypothesis>=6.130"
	SAD_BUILD_CUDA=0 $(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt --no-build-isolation \
		".[lora,endpoint,webshop]"
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -p no:cacheprovider $(LOWEST_TESTS)

docs: $(INSTALLED)  ## build the site of the documentation in build/site
	$(BIN)/python -m pip install --quiet ".[docs]"
	$(BIN)/python -m mkdocs build --strict

lint: $(INSTALLED)  ## check the style of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cuh csrc/*/*.cu csrc/*/*.cpp tests/ptx/executor/*)

format: $(INSTALLED)  ## format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(wildcard csrc/*.h csrc/*/*.h csrc/*/*.cuh csrc/*/*.cu csrc/*/*.cpp tests/ptx/executor/*)

bench: $(INSTALLED)  ## measure the loss on this CPU; writes a CSV and a plot to benchmarks/results
	$(BIN)/python benchmarks/bench_span_kl.py --device cpu --out benchmarks/results/span_kl_cpu.csv
	$(BIN)/sad bench --from benchmarks/results/span_kl_cpu.csv --plot benchmarks/results/span_kl_cpu.png

# PyTorch comes first and pinned. As a dependency of another package, pip may choose a build of several gigabytes.
# compileall uses all cores to compile the installed modules, pip would use one.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
$(INSTALLED): pyproject.toml constraints.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) "setuptools>=77" "pybind11>=2.13" "ninja>=1.11"
	$(PIP_INSTALL) --no-build-isolation -e ".[dev]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # some packages hold templates that are not valid Python
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) $(LOWEST) build dist *.egg-info sadkernels/native/*.so
