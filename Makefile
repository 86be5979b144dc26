# make train   sets up a virtual environment, downloads Omniglot (or uses built-in glyphs) and trains for a few minutes
# make test    sets up the same environment and runs the quick tests, which takes a few minutes
# make test-all   runs all tests for which this machine has the hardware and data
# make coverage   runs the quick tests and lists the package's lines that they do not execute
# make faults  runs long tests of crashes, full disks, hostile files, wrong input and exactness
# make gpu     runs the tests and measurements that need a GPU
# make demo    builds the browser demo and serves it on this machine (PORT=8000); needs only Node.js

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes start with whole test files; an idle process takes over half of the tests that another has left.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal
# Takes two to five minutes on two cores. For the paper's full run see the README.
QUICK := --preset omniglot-1shot-5way --transductive --meta-iters 1500 --save-interval 250 --eval-samples 200

# --quiet twice also hides the warnings of packages that are built here.
QUIETLY := --quiet --quiet --disable-pip-version-check
# An environment variable, so that it also applies when pip builds packages.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: train test test-all coverage faults gpu lint bench demo clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	@echo "installing into $(VENV); takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIETLY) -e '.[dev]'
	touch $@

# Without an answer from the network within ten seconds, trains on the glyphs.
train: $(VENV)/installed
	@if PYTHON=$(BIN)/python FETCH_PATIENCE=10 bash fetch_data.sh omniglot data; then source=raw; \
	else echo "Omniglot could not be fetched: training on the built-in glyphs instead"; source=glyphs; fi; \
	$(BIN)/python run_omniglot.py $(QUICK) --source $$source --checkpoint checkpoints/quick-start-$$source

test: $(VENV)/installed
	$(PYTEST) -q -rfE -m "not slow"

test-all: test
	$(PYTEST) -m slow

# The quick tests, with line coverage of the package.
coverage: $(VENV)/installed
	$(BIN)/coverage erase
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(PYTEST) -q -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Faults of machines, users and attackers; takes most of an hour. The long run is alone, since its speed is measured.
faults: export FAULTS_SEED ?= $(shell date +%s)
faults: $(VENV)/installed
	FAULTS_KILLS=50 FAULTS_EXAMPLES=5000 $(BIN)/python -m pytest -n 2 --dist worksteal tests/faults \
	  --ignore tests/faults/test_long_run.py
	EXACT_DRAWS=300 $(BIN)/python -m pytest -n 2 tests/test_exact.py
	FAULTS_META_ITERS=30000 $(BIN)/python -m pytest tests/faults/test_long_run.py

# Needs a GPU; writes docs/results/gpu.json.
gpu: export PIP_CONSTRAINT := $(CURDIR)/constraints-gpu.txt
gpu: $(VENV)/installed
	$(BIN)/python -m pip install $(QUIETLY) -e '.[gpu]'
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m pip install $(QUIETLY) -e '.[bench]'
	$(BIN)/python benchmarks/speed.py $(BENCH)

demo/node_modules/.package-lock.json: demo/package.json demo/package-lock.json
	@command -v npm > /dev/null || { echo "make demo needs Node.js 20 or newer, with npm: https://nodejs.org"; exit 1; }
	cd demo && npm ci --no-audit --no-fund --loglevel=error
	touch $@

demo: demo/node_modules/.package-lock.json
	@cd demo && npm run --silent build && node serve.js $(PORT)

clean:
	rm -rf $(VENV) demo/node_modules demo/dist
