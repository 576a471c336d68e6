# `make demo` and `make test` are all that a fresh machine needs, beside Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/installed

.PHONY: venv demo test quick faults floors check lint types clean

venv: $(STAMP)

# Exact versions from constraints.txt. torch comes first: a range could draw in several GB of CUDA libraries.
# In setuptools' other mode Python, started beside a clone named sscxr, imports that folder in place of the package.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sscxr needs Python 3.11 or later, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
		--config-settings editable_mode=compat
	touch $@

demo: venv
	$(BIN)/python -m sim.run --clients 8 --out runs/demo

# A file's tests go to one worker: they share what is costly to begin, and some have fixed ports.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile

test: venv
	$(PYTEST) -m 'not faults'

quick: venv
	$(PYTEST) -m 'not slow and not faults'

# The fault table of docs/faults.md: processes killed, a network cut, disks full.
faults: venv
	$(BIN)/python -m pytest -m faults

# The lowest versions that pyproject.toml allows: encoders built, released, loaded again; starts; a DICOM prepared.
floors:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check -r constraints-lowest.txt pytest pytest-timeout
	$(VENV)-lowest/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(VENV)-lowest/bin/python -m pytest -p no:cacheprovider -m 'not slow and not faults' tests/release/test_release.py \
		tests/models/test_checkpoint.py tests/data/test_dicom_facts.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv
	$(BIN)/mypy

# Without the fault table: with it, beside the other tests, this takes more than half an hour on two cores.
check: lint types test

clean:
	rm -rf $(VENV) $(VENV)-lowest build *.egg-info .pytest_cache .mypy_cache .ruff_cache
