# The two commands that a fresh machine needs are `make demo` and `make test`; both make their environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-web lint bench docs docs-check docs-check-slow demo-model clean

demo: $(VENV)/.ready
	$(BIN)/neuronaut demo

test: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# The explorer in Debian's Chromium: apt-get install chromium, or CHROMIUM=PATH.
test-web: $(VENV)/.web
	OMP_NUM_THREADS=1 NEURONAUT_WEB_TESTS=required $(BIN)/python -m pytest -n 2 --dist loadfile tests/web

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

bench: $(VENV)/.ready
	$(BIN)/python -m neuronaut.benchmarks.harvest
	$(BIN)/neuronaut bench planted
	$(BIN)/python -m neuronaut.benchmarks.together
	$(BIN)/python -m neuronaut.benchmarks.scans
	$(BIN)/python -m neuronaut.benchmarks.labels
	$(BIN)/python -m neuronaut.benchmarks.throughput
	$(BIN)/python -m neuronaut.benchmarks.faults
	$(BIN)/python -m neuronaut.benchmarks.sweeps
	$(BIN)/python -m neuronaut.benchmarks.waits
	$(BIN)/python -m neuronaut.benchmarks.database

# The site, into build/docs.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Runs every example of the documentation and compares what it prints; the first time it makes a demo.db (two minutes).
docs-check: $(VENV)/.ready
	$(BIN)/python docs/check.py

# The same, with what takes minutes: investigations, harvests, the notebooks.
docs-check-slow: $(VENV)/.ready
	$(BIN)/python docs/check.py --slow

# Retrains what data/demo ships: the tokenizer and model (about an hour on two cores), then the SAE (minutes).
demo-model: $(VENV)/.ready
	$(BIN)/python -m neuronaut.data.demo.train
	$(BIN)/python -m neuronaut.data.demo.train_sae

$(VENV)/.ready: requirements.lock pyproject.toml
	@echo "installs what Neuronaut needs into $(VENV): one to two minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.web: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "playwright>=1.50" "axe-playwright-python>=0.1.4"
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "mkdocs-material>=9.7"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
