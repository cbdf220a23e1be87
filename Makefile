# The book's commands. `make help` lists them.
#
#   make book     environment, package, HTML, from the notebooks' stored outputs
#   make test     everything that proves it

PYTHON ?= python3
NB ?=
GPU ?=

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := book
.DELETE_ON_ERROR:
.SUFFIXES:
.NOTPARALLEL:

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
HTML := _build/html
FIRST := $(HTML)/book/index.html
BUILT := $(HTML)/.built
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
# Chapters that were begun as text.
TWINLESS := $(filter-out $(NOTEBOOKS:notebooks/%.ipynb=text/%.md),$(wildcard text/[0-9]*.md))
PAGES := _config.yml _toc.yml $(sort $(shell find book -type f -not -path '*/__pycache__/*' 2>/dev/null)) \
  $(wildcard notebooks/cost*.json)
LINTED := notebooks tools tests transformer book/_ext

# One thread gives the same sums everywhere, and no thread spins for another.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export PYTHONHASHSEED ?= 0
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests see the small settings, change no stored hand-over, and use a core a worker.
TESTING := env -u PROFILE -u BOOK_EXECUTE OMP_NUM_THREADS=1
# Where a machine checks, a difference is an error; at home it is mended, and told.
DRIFT := $(if $(filter true 1,$(CI)),--check)

.PHONY: book test check lint unit export execute text weights install clean help

# ---- the environment -------------------------------------------------------------

install: $(READY)

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  f"Python 3.11 or newer is needed, $(PYTHON) is {v.major}.{v.minor}: make PYTHON=python3.12")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt -c constraints.txt
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# ---- the book --------------------------------------------------------------------

book: $(BUILT)
	@echo
	@echo "The book's first page: $(FIRST)"
	@$(PY) -c 'import pathlib; print(pathlib.Path("$(FIRST)").resolve().as_uri())'

# Everything is built anew: Sphinx does not notice a changed style or picture.
$(BUILT): $(NOTEBOOKS) $(PAGES) tools/export.py | $(READY)
	$(PY) tools/export.py $(DRIFT)
	@rm -rf $(HTML) _build/.doctrees
	$(VENV)/bin/jupyter-book build . -W -n --keep-going --all --quiet
	@touch $@

export: $(READY)
	$(PY) tools/export.py

# make execute                 every notebook, in place
# make execute NB=04_attention one of them (or NB="04 05")
# make execute GPU=1           the big settings, into _build/gpu/
execute: $(READY)
	$(PY) tools/execute.py $(if $(GPU),--gpu) $(NB)

text: $(READY)
	@mkdir -p text
	$(VENV)/bin/jupytext --quiet --sync $(NOTEBOOKS) $(TWINLESS)

# Pretrained models, into a cache outside the repository (tools/make_weights.py says where).
weights: $(READY)
	@$(PY) tools/make_weights.py

# ---- the proof -------------------------------------------------------------------

# The drift check comes first: building the book would mend what it looks for.
# Tests run in the order of tests/conftest.py, the longest first.
test: $(READY) weights lint
	@$(MAKE) --no-print-directory book
	@$(PY) tools/browser.py
	$(TESTING) $(PY) tests/mutants/run.py
	$(TESTING) $(PY) -m pytest -q -rs --durations=10 \
	  -n 2 --dist loadfile --no-loadscope-reorder \
	  --nbval --nbval-current-env --nbval-sanitize-with notebooks/sanitize.cfg \
	  --nbval-cell-timeout=1500 tests notebooks

check: lint unit

lint: $(READY)
	$(PY) tools/export.py --check
	$(VENV)/bin/ruff check --quiet $(LINTED)
	$(VENV)/bin/ruff format --check --quiet $(LINTED)
	$(PY) tools/numerals.py
	$(VENV)/bin/mypy

unit: $(READY)
	$(TESTING) $(PY) -m pytest -q -n 2 -m "not slow" tests --ignore=tests/site --ignore=tests/mutants

# ---- the rest --------------------------------------------------------------------

clean:
	rm -rf _build text *.egg-info build .mypy_cache .ruff_cache .pytest_cache
	@echo "the environment stays: rm -rf $(VENV) removes it too"

help:
	@echo "make book      install, export, build the HTML from the stored outputs"
	@echo "make test      install, build, then every check (what CI runs)"
	@echo "make check     the fast checks: drift, lint, types, unit tests, numerals"
	@echo "make execute   run the notebooks and store their outputs (NB=04_attention, GPU=1)"
	@echo "make export    write transformer/ from the notebooks"
	@echo "make text      keep text/*.md and notebooks/*.ipynb in step, for text editors"
	@echo "make weights   download the pretrained models once (400 MB; make test does it too)"
	@echo "make clean     remove what was built"
