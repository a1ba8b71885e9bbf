# `make demo` and `make test` need nothing but make and Python 3.10 or newer: each sets up its own environment first.
#
#   make demo        train a tiny model on a simulated survey with two ranks, evaluate, embed, plot: demo/
#   make test        the default tests
#   make test-slow   the tests that `make test` leaves out
#   make wheels      source distribution, wheel, and a wheel for Linux on x86-64 with compiled CPU kernels: dist/
#   make wheel-test  source distribution and wheel, built and installed, and tests run against them
#   make matrix      tests on other versions of Python, PyTorch and Triton, and docs/versions.md: each takes gigabytes
#   make lint        ruff, ruff format --check, clang-format, mypy
#   make audit       what the compiler makes of every GPU kernel, on each architecture; needs no GPU
#   make docs        the documentation site: build/site; it shows the notebooks as they are stored
#   make notebooks   run the notebooks of docs/tutorials, in minutes, and store their outputs; installs LSDB
#   make reliability fuzz every reader with 100,000 inputs, in hours, and write docs/reliability.md: INPUTS=2000 SEED=1
#   make bench       the benchmark suite on this machine: .benchmarks/report; all of it, in hours: make bench BENCH=--full
#   make lock        write the hashes of the versions in requirements-dev.lock, after one of them was changed
#   make env         only set up .venv
#   make clean       remove what was made here, .venv and demo/ included
#
# Which Python the environment is made with: make test PYTHON=python3.12

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# Ranks run side by side: one thread each, or they wait for one another.
notebooks demo: export OMP_NUM_THREADS ?= 1

# mypy and mkdocstrings find modules by folder only, and `kernels` and `reference` lie beside their package: both read the
# package as setuptools builds it.
PACKAGE := build/package
define BUILD_PACKAGE
rm -rf $(PACKAGE)
$(BIN)/python -c 'import setuptools; setuptools.setup()' --quiet build_py --build-lib $(PACKAGE)
endef

# The stamps bear the version, so that another PYTHON makes the environment anew.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
LOCKED := $(VENV)/.locked-$(VERSION)
READY := $(VENV)/.ready-$(VERSION)
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help env lock test test-slow wheels wheel-test matrix lint audit docs notebooks bench reliability demo clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

env: $(READY)

$(LOCKED): requirements-dev.lock requirements-torch.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "make: Python 3.10 or newer is needed: make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --no-deps --require-hashes -r requirements-dev.lock
	$(INSTALL) -r requirements-torch.lock
	@touch $@

lock:
	$(INSTALL) uv
	mkdir -p build
	rm -f build/hashed.txt
	sed -E '/^( |#|$$)/d; s/ *\\$$//' requirements-dev.lock > build/pins.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-deps --generate-hashes --no-header --no-annotate \
		build/pins.txt -o build/hashed.txt
	sed -n '/^#/p' requirements-dev.lock | cat - build/hashed.txt > build/lock.txt
	mv build/lock.txt requirements-dev.lock

$(READY): $(LOCKED) pyproject.toml
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

wheels: $(READY)
	$(INSTALL) -e '.[wheels]'
	$(BIN)/python -m tests.wheels

wheel-test: $(READY)
	$(BIN)/python -m tests.wheel

matrix: $(READY)
	$(BIN)/python -m tests.matrix

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror kernels/cpu/csrc/*
	$(BUILD_PACKAGE)
	cd $(PACKAGE) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

audit: $(READY)
	$(BIN)/python -m bench.audit

docs: $(READY)
	$(BUILD_PACKAGE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The documentation site: build/site/index.html"

notebooks: $(READY)
	$(INSTALL) -e '.[lsdb]'
	$(BIN)/python docs/notebooks.py

bench: $(READY)
	mkdir -p .benchmarks
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json=.benchmarks/latest.json \
		--benchmark-group-by=group --benchmark-columns=median,iqr,rounds $(BENCH)
	$(BIN)/python -m bench.report .benchmarks/latest.json

INPUTS ?= 100000
SEED ?= 0
reliability: $(READY)
	$(INSTALL) -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --seed $(SEED) --write docs/reliability.md

# A finished run is not trained again, an interrupted one goes on.
demo: $(READY)
	$(BIN)/torchrun --standalone --nproc_per_node 2 -m astroco_fast.pretrain --out demo/run
	$(BIN)/astroco embed demo/run/store demo/embeddings.parquet --model demo/run/checkpoints/best --overwrite
	$(BIN)/astroco report demo/run
	$(BIN)/astroco embed demo/run/store demo/released.parquet --overwrite
	@echo "On SIMULATED light curves. Embeddings by the model trained here: demo/embeddings.parquet; by the best"
	@echo "released model: demo/released.parquet; the run and its plots: demo/run"

clean:
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
