# make train   sets up a virtual environment, gets Omniglot (or uses built-in glyphs) and trains for a few minutes
# make test    sets up the same environment and runs the quick tests, in a few minutes
# make test-all   runs all tests that this machine has what it takes for
# make coverage   runs the quick tests and lists the lines of the package that they do not run
# make faults  runs the tests of crashes, full disks, hostile files, wrong input and exactness at length
# make gpu     runs the tests that need a GPU, and measures
# make demo    builds the browser demo and serves it on this machine (PORT=8000); needs Node.js only

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Files stay whole until a process has nothing left to do and takes over half of what another still has.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal
# What `make test-all` begins with: test or coverage.
FIRST ?= test
# Two to five minutes on two cores; the paper's full run is in the README.
QUICK := --preset omniglot-1shot-5way --transductive --meta-iters 1500 --save-interval 250 --eval-samples 200

# Twice: without the warnings of packages that are built here.
QUIETLY := --quiet --quiet --disable-pip-version-check
# For what builds packages, too.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: train test test-all coverage faults gpu lint bench demo clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIETLY) -e '.[dev]'
	touch $@

# The network gets ten seconds to answer; the glyphs need none.
train: $(VENV)/installed
	@if PYTHON=$(BIN)/python FETCH_PATIENCE=10 bash fetch_data.sh omniglot data; then source=raw; \
	else echo "Omniglot could not be fetched: training on the built-in glyphs instead"; source=glyphs; fi; \
	$(BIN)/python run_omniglot.py $(QUICK) --source $$source --checkpoint checkpoints/quick-start-$$source

test: $(VENV)/installed
	$(PYTEST) -q -rfE -m "not slow"

test-all: $(FIRST)
	$(PYTEST) -m slow

# The quick tests, and which lines of the package they run.
coverage: $(VENV)/installed
	$(BIN)/coverage erase
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml $(PYTEST) -q -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# What machines, users and strangers do to long runs, at length, in twenty minutes; the long run by itself, for its rate.
faults: export FAULTS_SEED ?= $(shell date +%s)
faults: $(VENV)/installed
	FAULTS_KILLS=50 FAULTS_EXAMPLES=5000 $(BIN)/python -m pytest -n 2 --dist loadfile tests/faults \
	  --ignore tests/faults/test_long_run.py
	EXACT_DRAWS=300 $(BIN)/python -m pytest -n 2 tests/test_exact.py
	FAULTS_META_ITERS=30000 $(BIN)/python -m pytest tests/faults/test_long_run.py

# Where there is a GPU; writes docs/results/gpu.json.
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
