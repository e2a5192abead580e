# make demo   a search on the embedded digits, from nothing but Python 3.11+
# make test   all tests          make lint   ruff and mypy          make clean   removes what these made
# make docs   the documentation as a site, in site/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/prunepilot search model=digits data=digits strategy=amc baselines=[random] budget.macs=0.25 \
	    trials=60 seed=0 threads=1 run_dir=$(RUN)

# Three at a time on two cores, since some tests wait; with bytecode, since many start processes.
test: $(VENV)/.installed-test
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n 3 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis site $(RUN)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "PrunePilot needs Python 3.11 or later: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps: a second run installs again only when the requirements have changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) --editable '.[$*]'
	@touch $@ $(VENV)/.installed
