PYTHON ?= python3
VENV ?= .venv
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-oldest lint clean

# Adapts the bundled backbone to a new task with every method, without network or data.
demo: $(VENV)/installed
	$(VENV)/bin/python examples/demo.py

# One thread a process: the tests are many small models, spread over the cores.
test: $(VENV)/installed-tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

# What depends on transformers' layouts and loading code, with the oldest transformers that setup.cfg allows.
OLDEST = old_layout auto loading saving peft_saving layer_weights bad_folders trainer
test-oldest: $(VENV)/installed-oldest
	PYTHONPATH=$(VENV)/oldest OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal \
		$(OLDEST:%=tests/test_%.py)

lint: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Byte code is left to the first import: it takes a third of the installation's time, mostly for files never used.
$(VENV)/installed: requirements-dev.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/installed-tests: requirements-test.txt $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --no-compile -r requirements-test.txt
	touch $@

$(VENV)/installed-oldest: requirements-oldest.txt $(VENV)/installed-tests
	rm -rf $(VENV)/oldest
	$(VENV)/bin/python -m pip install --quiet --no-compile --no-deps --target $(VENV)/oldest -r requirements-oldest.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
