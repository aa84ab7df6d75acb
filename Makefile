# Two commands: `make run` does the main job, `make test` proves the code.
#   make run                      on generated photographs
#   make run DATA=/path/to/data   on ShanghaiTech (or $CROWDRT_DATA where it is set)

PYTHON ?= python3
RECIPE ?= csrnet-quarter
DATA ?= $(CROWDRT_DATA)
BIN := .venv/bin
# One worker per core, at most 4, for each holds PyTorch; a worker that is done takes from another's list
WORKERS ?= -n logical --maxprocesses 4 --dist worksteal

.PHONY: run test check gpu clean

run: .venv/.installed-run
	$(BIN)/crowdrt run $(RECIPE) $(if $(DATA),--data "$(DATA)")

test: .venv/.installed-dev
	$(BIN)/python -m pytest -q $(WORKERS)

# On a GPU host: FOLDER from `python -m crowdrt.pipeline.gpu prepare`, TRT a Python with TensorRT
gpu:
	$(PYTHON) -m crowdrt.pipeline.gpu run "$(FOLDER)" --trt-python "$(TRT)"

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "crowdrt needs Python 3.11 or newer; name one: make run PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.installed-run: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install -qq -e '.[cpu,train,report]'
	@touch $@

.venv/.installed-dev: .venv/.installed-run
	$(BIN)/python -m pip install -qq -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv artifacts build dist *.egg-info
