# setup, then whatever you need: demo, test, lint. Every target can be repeated at no cost.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3,\
            $(if $(shell $(p) -c 'import venv' 2>/dev/null && echo yes),$(p))))
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile -q --durations=10

BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo test lint format clean

setup: $(READY)

# torch before detectron2: preparing detectron2's sources imports it.
$(READY): setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) setuptools wheel
	$(INSTALL) torch torchvision
	$(BIN)/python dev/provide_detectron2.py
	$(INSTALL) --no-build-isolation --editable '.[test]'
	touch $@

demo: $(READY)
	$(BIN)/vis-d2 quickstart --config-file configs/quick/sg_net.yaml --output output/demo

# One thread each: the two test processes would otherwise fight for the same cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) *.egg-info build dist .pytest_cache .ruff_cache .hypothesis output/demo
