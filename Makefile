# PYTHON picks the interpreter that .venv is made with; ARGS is appended to the command line of quickstart and tests;
# WORKERS is the number of test processes, each on one thread and within 1.5 GiB.
PYTHON ?= python3
ARGS ?=
WORKERS ?= 2

# Two OpenMP threads that spin while they wait slow each other down several times on a busy machine.
export OMP_WAIT_POLICY := passive

VENV := .venv
RUN_STAMP := $(VENV)/.fewstep-run
DEV_STAMP := $(VENV)/.fewstep-dev
DOCS_STAMP := $(VENV)/.fewstep-docs
CUT_OFF := $(VENV)/.fewstep-installing

# Tests of the oldest versions: whatever calls another package.
OLDEST := .venv-oldest
OLDEST_TESTS := tests/test_dependencies.py tests/test_model.py tests/test_storage.py tests/test_pipeline.py tests/test_configs.py tests/data \
	tests/training/test_resume.py tests/training/test_tracking.py \
	tests/training/test_stages.py tests/cli/test_train.py tests/cli/test_sample.py tests/cli/test_evaluate.py tests/cli/test_diagnose.py tests/lab/report

# A worker takes the tests of one file after another, so that what a file's tests share is made once.
PYTEST = $(VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile

.PHONY: help quickstart test test-slow test-oldest audit lint docs docs-check clean
.NOTPARALLEL:

help:
	@echo "make quickstart   set up, train on the built-in text, sample, show the results (ARGS='...' is passed on)"
	@echo "make test         set up, then lint, types and the tests (8 minutes at most on two idle cores; WORKERS=2)"
	@echo "make test-slow    set up, then only the tests marked slow: real kills, long runs, a browser (half an hour)"
	@echo "make test-oldest  install the oldest allowed versions into .venv-oldest (6 GB on Linux), run their tests"
	@echo "make lint         set up, then lint and types only"
	@echo "make docs         set up, then build the pages of docs/ into site/; a broken link fails"
	@echo "make docs-check   set up, then run the commands that README and docs show, at debug size (half an hour)"
	@echo "make audit        set up, then check the installed packages for known vulnerabilities (asks pypi.org)"
	@echo "make clean        delete caches and built packages; .venv and runs/ stay"

quickstart: $(RUN_STAMP)
	@echo "==> quickstart: train, sample and score; results go to runs/quickstart"
	@$(VENV)/bin/fewstep quickstart --out runs/quickstart $(ARGS)

test: lint
	@echo "==> tests, without those marked slow, in $(WORKERS) processes"
	@$(PYTEST) $(ARGS)

test-slow: $(DEV_STAMP)
	@echo "==> tests marked slow, in $(WORKERS) processes"
	@$(PYTEST) -m slow $(ARGS)

test-oldest:
	@echo "==> the oldest allowed versions, in $(OLDEST)"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	@$(OLDEST)/bin/python -m pytest -q $(OLDEST_TESTS)

# Strict: a package that the index does not know is an error. The local suffix of a build (torch's +cpu) is cut off, since
# the index has no such release.
audit: $(RUN_STAMP)
	@echo "==> pip-audit: known vulnerabilities in .venv"
	@$(PYTHON) -m venv .venv-audit && .venv-audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit
	@$(VENV)/bin/python -m pip freeze --exclude-editable | sed 's/+.*//' > .venv-audit/installed.txt
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r .venv-audit/installed.txt

lint: $(DEV_STAMP)
	@echo "==> ruff: lint and format"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@echo "==> mypy: types of src"
	@$(VENV)/bin/mypy src

# NO_MKDOCS_2_WARNING: the theme's note on the successor of mkdocs.
docs: $(DOCS_STAMP)
	@echo "==> mkdocs: docs/ to site/, strictly"
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet --strict

docs-check: docs $(DEV_STAMP)
	@echo "==> what README and docs show, at debug size"
	@$(VENV)/bin/python studies/docs_check.py $(ARGS)

clean:
	rm -rf build dist site .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call install,WHAT): create .venv and install WHAT. The marker file exists only while pip runs: if it is there at the
# start, an earlier install was killed, and .venv is created again.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "fewstep needs Python 3.11 or newer, and PYTHON=$(PYTHON) is not; call make again with PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "==> .venv: made with $$($(PYTHON) --version)"
	@if [ -e $(CUT_OFF) ] || ! $(VENV)/bin/python -m pip --version >/dev/null 2>&1; then clear=--clear; fi; \
	$(PYTHON) -m venv $$clear $(VENV)
	@echo "==> install fewstep and what it needs (1 to 2 minutes, about 1.5 GB with a CPU build of torch)"
	@trap 'exit 130' INT TERM; touch $(CUT_OFF); \
	$(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e $(1); status=$$?; \
	rm -f $(CUT_OFF); \
	if [ $$status -ne 0 ]; then echo "the install failed; for details: $(VENV)/bin/pip install -c constraints.txt -e $(1)" >&2; fi; \
	exit $$status
endef

$(RUN_STAMP): pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt
	$(call install,'.[dev]')
	@touch $(RUN_STAMP) $@

$(DOCS_STAMP): pyproject.toml constraints.txt
	$(call install,'.[docs]')
	@touch $(RUN_STAMP) $@
