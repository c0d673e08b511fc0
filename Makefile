# Every command sets up what it needs first; `make help` lists them.

PYTHON ?=
DALI ?= dali-cu13
DEMO_DIR ?= demo
DATASET ?= $(DEMO_DIR)/data
RESULTS_DIR ?= results
ARGS ?=
RUN := .venv/bin/python
export PYTHON DALI

.PHONY: help install demo test lint format bench clean

help:
	@echo "make install    build .venv (PYTHON=python3.12, DALI=dali-cu12, APT=no)"
	@echo "make demo       data set, shards, training and evaluation in DEMO_DIR=$(DEMO_DIR)"
	@echo "make test       all tests that can run here (ARGS='-k mask' is handed to pytest)"
	@echo "make lint       ruff and mypy; 'make format' mends what ruff can"
	@echo "make bench      conversion of DATASET=$(DATASET) against stock FFCV"
	@echo "make clean      remove caches and the demo; .venv stays"

install: .venv/.installed

.venv/.installed: setup.cfg pyproject.toml constraints.txt .ci/install
	@.ci/install
	@touch $@

# What is missing on this machine decides which loader the demo uses.
LOADER = $(shell test -e .venv/ffcv-missing && echo dali || echo ffcv)

# In float32 (--amp off), so that the figures do not depend on the CPU's units.
# The default folder is made anew each time; one that you name is never emptied.
demo: install
	@if [ "$(DEMO_DIR)" = demo ]; then rm -rf demo; fi
	@if [ -e "$(DEMO_DIR)" ]; then echo "demo: $(DEMO_DIR) exists; name a new folder" >&2; exit 2; fi
	$(RUN) -m convert compose $(DEMO_DIR)/data --backgrounds 12 --foregrounds 12 --placements 10
	$(RUN) -m convert pack $(DEMO_DIR)/data $(DEMO_DIR)/shards
	$(RUN) -m convert verify $(DEMO_DIR)/shards --source $(DEMO_DIR)/data
	$(RUN) -m convert show $(DEMO_DIR)/shards $(DEMO_DIR)/shards.png
	$(RUN) train.py fit $(DEMO_DIR)/shards $(DEMO_DIR)/run --recipe demo --loader $(LOADER) --amp off
	$(RUN) train.py evaluate $(DEMO_DIR)/shards $(DEMO_DIR)/run/best.safetensors \
		--loader $(LOADER) --amp off --picture $(DEMO_DIR)/predictions.png

test: install
	$(RUN) -m pytest $(ARGS)

lint: install
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

format: install
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

bench: install
	@mkdir -p $(RESULTS_DIR)
	$(RUN) -m benchmarks convert $(DATASET) --json $(RESULTS_DIR)/convert.json

clean:
	rm -rf demo build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
