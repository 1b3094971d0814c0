# Every target does its own set-up: a virtual environment in .venv, the native kernels, all dependencies.
# On a bare Debian it also installs what venv and the kernels need, and for the tests a browser, where it may (root, or sudo without a password); it says so.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml setup.py oram/kernels/build.py $(wildcard csrc/*)
WORKERS ?= 3
STRICT_C := -std=c11 -O2 -Wall -Wextra -Wconversion -Wno-sign-conversion -Wshadow -Wstrict-prototypes -Wundef -Werror -Icsrc
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1

.PHONY: setup demo test check lint types layers c-check pytest pytest-native pytest-reference thorough sanitize bench bench-all report docs format clean

setup: $(VENV)/.installed

$(BIN)/python:
	@echo "Setting up $(VENV) (about a minute)"
	@.ci/debian $(PYTHON)
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade pip setuptools wheel cffi

# The package alone, for the demo, which is to be quick.
$(VENV)/.demo: $(BIN)/python $(SOURCES)
	@$(INSTALL) --no-build-isolation --editable '.[aegis]'
	@$(BIN)/oram doctor | grep -q '^active kernels *native' || $(BIN)/oram doctor
	@touch $@

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	@.ci/debian $(PYTHON) tests
	@echo "Installing oram and the tools for its tests, benchmarks and documentation into $(VENV)"
	@$(INSTALL) --no-build-isolation --editable '.[aegis,test,docs,bench]'
	@$(BIN)/oram doctor
	@touch $(VENV)/.demo $@

demo: $(VENV)/.demo
	$(BIN)/oram demo

# What CI runs.
test check: lint types layers c-check pytest sanitize docs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# The C sources alone, warnings as errors, under each compiler that is here.
c-check: setup
	@for cc in gcc clang; do \
	    command -v $$cc >/dev/null || { echo "c-check: no $$cc here, skipped"; continue; }; \
	    for f in csrc/*.c; do echo "$$cc $$f"; $$cc $(STRICT_C) -fsyntax-only $$f || exit 1; done; \
	done

pytest: pytest-native pytest-reference

pytest-native: setup
	ORAM_KERNELS=native HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n $(WORKERS) -q tests

pytest-reference: setup
	ORAM_KERNELS=reference HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n $(WORKERS) -q tests -m "not one_kernel"

# Every test over both kernel sets, which CI does not wait for (half an hour).
thorough: export ORAM_THOROUGH = 1
thorough: lint types layers c-check pytest-native sanitize
	ORAM_KERNELS=reference HYPOTHESIS_PROFILE=ci $(BIN)/python -m pytest -n $(WORKERS) -q tests

# The kernel tests over C built with ASan and UBSan.
sanitize: setup
	rm -rf build/sanitized && mkdir -p build/sanitized && cp -r oram build/sanitized/oram && rm -f build/sanitized/oram/kernels/_native*.so
	ORAM_CFLAGS="$(SANITIZE)" ORAM_LDFLAGS="$(SANITIZE)" $(BIN)/python setup.py --quiet build_ext --build-temp build/sanitized/tmp --build-lib build/sanitized
	test -f build/sanitized/oram/kernels/_native.abi3.so
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	    PYTHONPATH=build/sanitized ORAM_SANITIZED=1 ORAM_KERNELS=native HYPOTHESIS_PROFILE=ci $(BIN)/python -P -m pytest -n 2 -q -p no:cacheprovider tests/kernels

# Every ratio that README states, measured again: an error where one is not reproduced. bench-all: every bar.
bench: setup
	$(BIN)/python -m bench readme

bench-all: setup
	$(BIN)/python -m bench

# The site; a link that leads nowhere in it is a warning, and a warning an error.
# From a clone to a page with figures: report/report.html.
report: setup
	$(BIN)/oram bench --quick -o report

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "The site is docs/_build/html/index.html"

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis oram/kernels/_native*.so
