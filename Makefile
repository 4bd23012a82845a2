# Every target makes the environment it needs. A machine needs Python 3.11 or later, and pip's registries.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := SAM2_BUILD_CUDA=0 $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint type format bench serve install clean

demo: .venv/installed  ## a small patch-size sweep on generated pictures
	$(BIN)/python sweeps/patch_size.py --dataset shapes --vary patch_size=4,8,16 --budget 5e11 --set embed_dim=64 depth=2 learning_rate=3e-3 reports=4

test: .venv/installed-dev  ## the tests, but for the slow ones; two files at a time, as most of them wait for processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-dev  ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: .venv/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/installed-dev  ## each prints its verdict
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.sweep_overhead
	$(BIN)/python -m benchmarks.sweep_memory
	$(BIN)/python -m benchmarks.search_efficiency
	$(BIN)/python -m benchmarks.segmentation_quality
	$(BIN)/python -m benchmarks.segmentation
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.serving_overhead
	$(BIN)/python -m benchmarks.overload overload
	$(BIN)/python -m benchmarks.batch
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.node_deaths

serve: .venv/installed
	$(BIN)/serve run serve.config

install: .venv/installed-dev

clean:
	rm -rf .venv build *.egg-info

# sam2 is built against the torch that is there: torch first, then no isolated build, which would fetch another.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(INSTALL) setuptools wheel torch torchvision
	$(INSTALL) --no-build-isolation --editable ".[segment,serve]"
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --group dev
	touch $@
