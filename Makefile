# Every target installs what it needs first. `make help` lists the targets.

PYTHON ?=
CUDA ?=
DEMO_DIR ?= demo
RESULTS_DIR ?= results
ARGS ?=
RUN := .venv/bin/python
export PYTHON CUDA

ifdef DALI
$(error DALI=$(DALI) is no longer an option; CUDA=12 or CUDA=13 is that of torch and DALI)
endif

.PHONY: help install demo test lint format docs bench gpu-check clean

help:
	@echo "make install    Build .venv. Options: PYTHON=python3.12, CUDA=12, APT=no."
	@echo "make demo       Draw a data set, pack it, train and evaluate, in DEMO_DIR=$(DEMO_DIR)."
	@echo "make test       Run all tests that this machine can run, on up to 4 cores. ARGS is passed to pytest."
	@echo "make lint       Run ruff and mypy."
	@echo "make format     Fix and format the code with ruff."
	@echo "make docs       Build the documents as a site: build/site/index.html."
	@echo "make bench      Run the benchmarks on drawn data; write $(RESULTS_DIR)/report.html."
	@echo "make gpu-check  On a machine with a GPU: pixel parity, benchmarks, tests, one report. GPU=cuda:1, ARGS."
	@echo "make clean      Remove the demo, benchmark data and caches, but not .venv."

install: .venv/.installed
	@case "$(CUDA)" in ""|12|13) ;; \
		*) echo "install: CUDA=$(CUDA): expected CUDA=12 or CUDA=13" >&2; exit 2;; esac
	@if [ -n "$(CUDA)" ] && [ -e .venv/cuda ] && [ "$(CUDA)" != "$$(cat .venv/cuda)" ]; then \
		echo "install: .venv is for CUDA $$(cat .venv/cuda): remove it to install for CUDA $(CUDA)" >&2; exit 2; fi

.venv/.installed: setup.cfg pyproject.toml constraints.txt .ci/install model/driver.py
	@.ci/install
	@touch $@

# The demo and the benchmarks use FFCV, or DALI where FFCV is not installed.
LOADER = $(shell test -e .venv/ffcv-missing && echo dali || echo ffcv)

# In folders that make has made: only those are removed.
MARK = .made-by-make

# Training is in float32 (--amp off), because `auto` depends on the CPU. An earlier demo in the
# default folder is removed first; a folder that you name must not exist.
demo: install
	@if [ "$(DEMO_DIR)" = demo ] && [ -e demo/$(MARK) ]; then rm -rf demo; fi
	@if [ -e "$(DEMO_DIR)" ]; then echo "demo: found $(DEMO_DIR), which is not to be replaced; move it away or choose another DEMO_DIR" >&2; exit 2; fi
	@mkdir -p "$(DEMO_DIR)" && touch "$(DEMO_DIR)/$(MARK)"
	$(RUN) -m convert compose $(DEMO_DIR)/data --backgrounds 12 --foregrounds 12 --placements 10
	$(RUN) -m convert pack $(DEMO_DIR)/data $(DEMO_DIR)/shards
	$(RUN) -m convert verify $(DEMO_DIR)/shards --source $(DEMO_DIR)/data
	$(RUN) -m convert show $(DEMO_DIR)/shards $(DEMO_DIR)/shards.png
	$(RUN) train.py fit $(DEMO_DIR)/shards $(DEMO_DIR)/run --recipe demo --loader $(LOADER) --amp off
	$(RUN) train.py evaluate $(DEMO_DIR)/shards $(DEMO_DIR)/run/best.safetensors \
		--loader $(LOADER) --amp off --picture $(DEMO_DIR)/predictions.png \
		--camera none --camera mild --camera 3

test: install
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: install
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

format: install
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format

# Strict: a warning, such as a link that leads nowhere, is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet
	@echo "docs: wrote build/site/index.html"

# All benchmarks but the trainings, on drawn data: about 15 minutes on two idle cores.
BENCH = $(RUN) -m benchmarks
BENCH_DIR ?= bench
MAKE_BENCH = [ -d "$(BENCH_DIR)" ] || { mkdir -p "$(BENCH_DIR)" && touch "$(BENCH_DIR)/$(MARK)"; }
BENCH_DATA = $(BENCH_DIR)/data
BENCH_SHARDS = $(BENCH_DIR)/shards
bench: install $(BENCH_SHARDS)/manifest.json $(BENCH_DIR)/data20k/dataset.json
	@mkdir -p $(RESULTS_DIR)
	$(BENCH) peers $(BENCH_DATA) $(BENCH_SHARDS) --json $(RESULTS_DIR)/peers.json
	$(BENCH) loader $(BENCH_SHARDS) --json $(RESULTS_DIR)/loader.json
	$(BENCH) step $(BENCH_SHARDS) --steps 1 --repeats 3 --loader $(LOADER) \
		--json $(RESULTS_DIR)/step.json
	$(BENCH) epoch $(BENCH_SHARDS) --width 16 --samples 300 --batch-size 16 --repeats 2 \
		--loader $(LOADER) --json $(RESULTS_DIR)/epoch.json
	$(BENCH) scaling $(BENCH_SHARDS) --samples 400 --repeats 2 --json $(RESULTS_DIR)/scaling.json
	$(BENCH) compose --backgrounds 10 --repeats 2 --scratch $(BENCH_DIR) \
		--json $(RESULTS_DIR)/compose.json
	$(BENCH) convert $(BENCH_DIR)/data20k --repeats 2 --json $(RESULTS_DIR)/convert.json
	$(BENCH) encode $(BENCH_DIR)/data20k --json $(RESULTS_DIR)/encode.json
	$(BENCH) batch $(BENCH_SHARDS) --json $(RESULTS_DIR)/batch.json
	$(BENCH) codecs $(BENCH_SHARDS) --json $(RESULTS_DIR)/codecs.json
	$(BENCH) decode $(BENCH_SHARDS) --json $(RESULTS_DIR)/decode.json
	$(BENCH) luma $(BENCH_DIR)/data20k --json $(RESULTS_DIR)/luma.json
	$(BENCH) simulate $(BENCH_SHARDS) --json $(RESULTS_DIR)/simulation.json
	$(BENCH) storage $(BENCH_SHARDS) --json $(RESULTS_DIR)/storage.json
	$(BENCH) estimate --loader $(RESULTS_DIR)/loader.json --json $(RESULTS_DIR)/estimate.json
	$(BENCH) report $(RESULTS_DIR)

$(BENCH_SHARDS)/manifest.json: $(BENCH_DATA)/dataset.json
	$(RUN) -m convert pack $(BENCH_DATA) $(BENCH_SHARDS) --resume

$(BENCH_DATA)/dataset.json: | .venv/.installed
	@$(MAKE_BENCH)
	$(RUN) -m convert compose $(BENCH_DATA) --backgrounds 20 --foregrounds 10 --placements 20 --resume

# Packing needs more samples, because starting its workers takes a second.
$(BENCH_DIR)/data20k/dataset.json: | .venv/.installed
	@$(MAKE_BENCH)
	$(RUN) -m convert compose $(BENCH_DIR)/data20k --backgrounds 20 --foregrounds 25 --resume

# Checks correctness and speed on a GPU. GPU=cuda:1 selects the second one. It runs without .venv
# too: python -m benchmarks gpu-check.
GPU ?= cuda
GPU_RESULTS ?= results-gpu
gpu-check: install
	@$(MAKE_BENCH)
	$(BENCH) gpu-check $(GPU_RESULTS) --device $(GPU) --data $(BENCH_DIR)/gpu-check $(ARGS)

clean:
	@for folder in demo bench; do \
		if [ -e $$folder/$(MARK) ]; then rm -rf $$folder; \
		elif [ -e $$folder ]; then echo "clean: kept $$folder, which make has not made"; fi; done
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
