PYTHON ?= python3
VENV ?= .venv
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo demo-small test test-examples test-oldest test-newest test-peft lint docs release clean

# Adapts Whisper's encoder to real recordings, without network.
demo: $(VENV)/installed
	$(VENV)/bin/python examples/demo.py

# Five methods on a small AST and generated sounds.
demo-small: $(VENV)/installed
	$(VENV)/bin/python examples/demo_small.py

# A browser for the test of the demo app, which is skipped where npm cannot give one.
ifeq ($(shell uname -sm)$(if $(shell command -v npm),, without npm),Linux x86_64)
BROWSER = $(VENV)/installed-browser
endif

# One thread a process: the tests are many small models, spread over the cores.
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal
EXAMPLES = tests/examples tests/method_comparison tests/benchmarks
test: $(VENV)/installed-tests
	$(PYTEST) tests $(EXAMPLES:%=--ignore %)

test-examples: $(VENV)/installed-tests $(BROWSER)
	$(PYTEST) $(EXAMPLES)

# What depends on transformers' layouts and loading code, with the oldest transformers that setup.cfg allows.
OLDEST = backbones/test_old_layout test_auto test_trainer heads/test_weighted_layer_sum \
	$(addprefix checkpoints/test_, loading saving peft_saving plain_models state_dicts) \
	$(addprefix checkpoints/test_, bad_folders wrong_folders unwritable_folders) \
	$(addprefix tuner/test_, attention prompt_gradient read_tokens mixed_batch)
test-oldest: $(VENV)/installed-oldest
	PYTHONPATH=$(VENV)/oldest $(PYTEST) $(OLDEST:%=tests/%.py)

# The same with the newest versions that pip finds today, and what this package relies on inside of them. torch stays as it
# is, because a newer one comes with gigabytes of CUDA.
NEWEST = upstream checkpoints/test_old_checkpoints.py caching/test_replay.py $(addprefix test_matrix.py::test_, start \
	two_steps_train_the_adapter_and_the_head_and_nothing_else reloading_gives_the_same_logits)
NEWEST_PACKAGES = transformers peft accelerate datasets evaluate huggingface_hub tokenizers safetensors numpy
test-newest: $(VENV)/newest/made
	grep '^torch==' requirements-dev.txt > $(VENV)/newest/constraints.txt
	$(VENV)/newest/bin/python -m pip install --quiet --no-compile --upgrade \
		--constraint $(VENV)/newest/constraints.txt $(NEWEST_PACKAGES)
	$(VENV)/newest/bin/python -c "from importlib.metadata import version; \
		print(*(f'{name} {version(name)}' for name in 'torch $(NEWEST_PACKAGES)'.split()), sep='\n')"
	OMP_NUM_THREADS=1 $(VENV)/newest/bin/python -m pytest -n auto --dist worksteal \
		$(NEWEST:%=tests/%) $(OLDEST:%=tests/%.py)

# PEFT's own tests with the methods of this package beside LoRA; writes docs/peft_tests/README.md.
test-peft: $(VENV)/peft_suite/made
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/peft_suite/run.py

# Docstrings, spelling, types (mypy takes a minute or two the first time) and which room may import which, set in pyproject.toml.
lint: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

# The site, into build/site; a warning is an error. `$(VENV)/docs/bin/mkdocs serve` shows pages as they are written. The
# variable leaves out an advertisement of a later version.
docs: $(VENV)/docs/made
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --strict --quiet

# Byte code is left to the first import: it takes a third of the installation's time, mostly for files never used.
$(VENV)/installed: requirements-dev.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile -r requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

$(VENV)/installed-tests: requirements-test.txt $(VENV)/installed
	$(VENV)/bin/python -m pip install --quiet --no-compile -r requirements-test.txt
	touch $@

# The package unpacks Chromium, with the libraries and fonts that it needs, where TMPDIR says.
$(VENV)/installed-browser: $(VENV)/installed-tests
	npm install --silent --no-audit --no-fund --prefix $(VENV)/browser @sparticuz/chromium@153.0.0
	cd $(VENV)/browser && TMPDIR=$$PWD AWS_LAMBDA_JS_RUNTIME=nodejs20.x \
		node -e "import('@sparticuz/chromium').then(package => package.default.executablePath())"
	rm -r $(VENV)/browser/node_modules
	touch $@

$(VENV)/docs/made: requirements-docs.txt
	rm -rf $(VENV)/docs
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install --quiet --no-compile -r requirements-docs.txt
	touch $@

$(VENV)/installed-oldest: requirements-oldest.txt $(VENV)/installed-tests
	rm -rf $(VENV)/oldest
	$(VENV)/bin/python -m pip install --quiet --no-compile --no-deps --target $(VENV)/oldest -r requirements-oldest.txt
	touch $@

# An environment on top of the other: pip installs here only what is newer than there.
$(VENV)/newest/made: $(VENV)/installed-tests
	rm -rf $(VENV)/newest
	$(VENV)/bin/python -m venv --without-pip $(VENV)/newest
	$(VENV)/bin/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" \
		> $$($(VENV)/newest/bin/python -c "import site; print(site.getsitepackages()[0])")/below.pth
	touch $@

# The tests are in PEFT's source distribution only. They import two packages that nothing else here needs.
$(VENV)/peft_suite/made: $(VENV)/installed-tests
	rm -rf $(VENV)/peft_suite
	mkdir -p $(VENV)/peft_suite/peft
	$(VENV)/bin/python -m pip download --quiet --no-deps --no-binary peft --dest $(VENV)/peft_suite \
		"peft==$$($(VENV)/bin/python -c "from importlib.metadata import version; print(version('peft'))")"
	tar -xzf $(VENV)/peft_suite/peft-*.tar.gz --strip-components 1 --directory $(VENV)/peft_suite/peft
	$(VENV)/bin/python -m pip install --quiet --no-compile --no-deps --target $(VENV)/peft_suite/packages \
		diffusers==0.42.1 parameterized==0.9.0
	touch $@

# Builds sdist and wheel into dist, looks at what is in them, and uses the wheel where nothing else is. What the wheel needs
# has the versions of requirements-dev.txt there, so that pip brings no CUDA with torch.
release: $(VENV)/packaging/made
	rm -rf dist build/lib build/bdist*
	$(VENV)/packaging/bin/python -m build
	$(VENV)/packaging/bin/python -m twine check --strict dist/*
	$(VENV)/packaging/bin/python .ci/release_contents.py dist
	rm -rf $(VENV)/release
	$(PYTHON) -m venv $(VENV)/release
	$(VENV)/release/bin/python -m pip install --quiet --no-compile --constraint requirements-dev.txt dist/*.whl
	$(VENV)/release/bin/python -I .ci/release_smoke_test.py

$(VENV)/packaging/made: requirements-release.txt
	rm -rf $(VENV)/packaging
	$(PYTHON) -m venv $(VENV)/packaging
	$(VENV)/packaging/bin/python -m pip install --quiet --no-compile -r requirements-release.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
