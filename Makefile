# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two threads suit a laptop; a workstation can say THREADS=16.
THREADS ?= 2
CUDA := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti \
	nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile \
	nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 \
	nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

.PHONY: quickstart test studies benchmarks gpu docs lint format lock clean help

help:            ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

quickstart: $(VENV)/.installed   ## Install, then make morphs, a table and a picture in outputs/quickstart
	$(BIN)/python run.py +experiment=quickstart
	@echo "Open outputs/quickstart/report.html. Next, the paper's settings on sixteen pairs:"
	@echo "  $(BIN)/python run.py +experiment=table1_first data.limit=16"

test: $(VENV)/.installed-dev     ## Run the test suite (under 15 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(THREADS) --dist loadfile

studies: $(VENV)/.installed-dev  ## Run what is marked `slow`: the long fuzz run, fifty kills, other studies
	$(BIN)/python -m pytest -m slow -s

gpu: $(VENV)/.installed-dev      ## On a CUDA machine: its tests, then experiments/benchmarks/gpu.json
	$(BIN)/python -m pytest tests/gradients/test_devices.py --device cuda
	$(BIN)/python -W ignore -m experiments.benchmarks.run --device cuda --compile --name gpu

docs: $(VENV)/.installed-dev     ## Build the pages into docs/_build, strictly: a warning fails
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

benchmarks: $(VENV)/.installed-dev  ## Time every gradient against its floor and its peers (12 minutes)
	$(BIN)/python -W ignore -m experiments.benchmarks.run

lint: $(VENV)/.installed-dev     ## Check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && \
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev   ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# Torch and the CUDA libraries that it brings are left out: which build of it is the user's choice.
lock: $(VENV)/.installed-dev     ## Write requirements.lock, hashes of all that constraints.txt pins
	$(BIN)/uv pip compile pyproject.toml --quiet --extra dev --constraint constraints.txt \
	--python-version 3.11.5 --universal --generate-hashes --no-annotate --no-header \
	$(foreach p,$(CUDA),--no-emit-package $(p)) --output-file requirements.lock
	@printf '%s\n' '# Hashes of every pinned package but torch. Install torch first, then' \
	'# pip install --require-hashes --no-deps -r requirements.lock && pip install --no-deps -e .' \
	| cat - requirements.lock > requirements.lock.new && mv requirements.lock.new requirements.lock

clean:           ## Remove the virtual environment; outputs/ stays
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: a resolver left free would fetch gigabytes of CUDA libraries.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[experiments,detection,dlib]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.installed
