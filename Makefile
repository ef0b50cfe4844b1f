# make quickstart   install if needed, generate the shapes data, train and evaluate SMCA-DINO on it
# make test         install if needed, run the tests but the slow ones
# make test-all     install if needed, run all tests and measure their coverage
# make study        install if needed, SMCA-DINO and SMCA beside other detectors on generated data,
#                   with a report
# make full-study   SMCA-DINO beside DINO and Deformable DETR, at equal iterations and equal training
#                   time: hours; called again, it goes on. FULL_STUDY=smca_dino_digits: on
#                   digits, =smca_dino_stamps: on photographs, =spatial_modulation_stamps: SMCA's
#                   prior there; FULL_STUDY=smca_dino_ablations_shapes: what carries it
# make gpu          parity, time, memory and precision on this machine's GPU, as a page; MINUTES=15
#                   limits it, and called again, it continues
# make install      virtual environment with everything in it
# make lint         ruff, mypy, import-linter
# make docs         the documentation, as a site in build/site
#
# STACK=lite (default), onedl or openmmlab chooses the OpenMMLab distributions, each in its own virtual
# environment. lite compiles nothing; the others have mmcv's operators, which take a C++ compiler.
# PYTHON chooses the interpreter, TORCH what pip installs as PyTorch: for another build than the
# default, pip's arguments as PyTorch's site gives them ("torch==2.13.0 --index-url ...").
STACK ?= lite
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
TORCH ?= -r requirements/torch.txt
export MAX_JOBS ?= 2
# Runs of a study, and processes of the tests, at one time.
JOBS ?= 2

VENVS_lite := .venv
VENVS_onedl := .venv-onedl
VENVS_openmmlab := .venv-openmmlab
VENV := $(VENVS_$(STACK))
ifeq ($(VENV),)
$(error STACK=$(STACK) is unknown: use lite, onedl or openmmlab)
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip

# The stamp is written last and is named after everything that decides what is installed, so an
# interrupted or outdated installation has no stamp and is taken up again.
INPUTS := pyproject.toml Makefile requirements/torch.txt requirements/build.txt requirements/$(STACK).txt
KEY := $(shell { cat $(INPUTS); echo "$(TORCH)"; $(PYTHON) --version; } 2>&1 | cksum | tr ' ' -)
STAMP := $(VENV)/.installed-$(KEY)

.PHONY: quickstart study full-study gpu test test-all install lint docs
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP):
	@test -n "$(PYTHON)" || { echo "No python3 found: install Python 3.11 or set PYTHON=..."; exit 1; }
	@$(PYTHON) requirements/check.py $(STACK)
	rm -f $(VENV)/.installed-*
	@# An environment of another interpreter or another set of packages is not added to.
	test -e $(VENV)/.$(STACK) \
	    && test "$$($(BIN)/python --version 2>&1)" = "$$($(PYTHON) --version 2>&1)" \
	    && $(PIP) --version || { $(PYTHON) -m venv --clear $(VENV) && touch $(VENV)/.$(STACK); }
	@# pip killed while it unpacks leaves a .dist-info without INSTALLER, which it later takes for
	@# an installed package.
	find $(VENV)/lib/python3*/site-packages -maxdepth 1 -name '*.dist-info' \
	    ! -exec test -e '{}/INSTALLER' ';' -exec rm -r '{}' +
	$(PIP) install -c requirements/build.txt $(TORCH)
	$(PIP) install -r requirements/build.txt
ifneq ($(STACK),lite)
	@echo "*** Installing the $(STACK) packages. mmcv is compiled the first time: about 12 minutes"
	@echo "*** on two cores, with little output. pip keeps the result, so it happens once."
endif
	$(PIP) install --no-build-isolation -r requirements/$(STACK).txt
	$(PIP) install --no-build-isolation -c requirements/build.txt -c requirements/$(STACK).txt -e '.[dev]'
	$(BIN)/python -c 'import mmsmca; print("mmsmca", mmsmca.__version__, "is installed")'
	touch $@

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
test: install
	$(PYTEST) -m 'not slow'

test-all: install
	$(PYTEST) --cov --cov-report=term --cov-fail-under=95

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/python -m mkdocs build --strict

quickstart: install
	$(BIN)/python tools/quickstart.py

STUDY := head_to_head_shapes
SHAPES192 := data/shapes192 --size 192 --val 400 --seed 1
study: install
	$(BIN)/python tools/make_shapes.py $(SHAPES192)
	$(BIN)/python tools/sweep.py configs/studies/$(STUDY).py --jobs $(JOBS)
	$(BIN)/python tools/report.py work_dirs/$(STUDY) --costs

FULL_STUDY := smca_dino_shapes
FULL_DATA = $(if $(findstring stamps,$(FULL_STUDY)),stamps.py data/stamps,\
    $(if $(findstring digits,$(FULL_STUDY)),digits.py data/digits,shapes.py $(SHAPES192)))
full-study: install
	$(BIN)/python tools/make_$(FULL_DATA)
	$(BIN)/python tools/sweep.py configs/studies/$(FULL_STUDY).py --jobs $(JOBS) --calibrate
	$(BIN)/python tools/sweep.py configs/studies/$(FULL_STUDY).py --jobs $(JOBS)
	$(BIN)/python tools/report.py work_dirs/$(FULL_STUDY) --costs

# Needs no installation where PYTHON has what it needs: it says what is missing.
gpu:
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tools/analysis_tools/benchmark_gpu.py \
	    $(if $(MINUTES),--minutes $(MINUTES))
