# make quickstart   install if needed, generate the shapes data, train and evaluate SMCA-DINO on it
# make test         install if needed, run all tests except the slow ones
# make test-all     install if needed, run all tests and measure their coverage
# make study        install if needed, compare SMCA-DINO and SMCA with other detectors on generated
#                   data, and write a report
# make full-study   compare SMCA-DINO with DINO and Deformable DETR, at equal iterations and at equal
#                   training time. This takes hours; run it again to continue an interrupted study.
#                   FULL_STUDY=smca_dino_digits does so on digits, =smca_dino_stamps on photographs;
#                   =spatial_modulation_stamps compares SMCA's priors on photographs, and
#                   =smca_dino_ablations_shapes SMCA-DINO's parts
# make gpu          measure time and memory on this machine's GPU beside rivals, a profile, and parity
# make install      create a virtual environment with everything in it
# make lint         run ruff, mypy, import-linter, and check the workflow of .github
# make docs         build the documentation as a site in build/site
#
# STACK=lite (default), onedl or openmmlab selects the OpenMMLab distributions, each in its own virtual
# environment. lite compiles nothing; the others have mmcv's operators, which need a C++ compiler.
# PYTHON selects the interpreter, TORCH what pip installs as PyTorch: for another build than the
# default, pass the pip arguments from PyTorch's site ("torch==2.13.0 --index-url ...").
STACK ?= lite
PYTHON ?= $(firstword $(shell command -v python3.11 python3))
TORCH ?= -r requirements/torch.txt
export MAX_JOBS ?= 2
# Number of study runs, and of test processes, at a time.
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
# interrupted or outdated installation has no stamp and is run again.
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
	@# Do not add to an environment with another interpreter or another set of packages.
	test -e $(VENV)/.$(STACK) \
	    && test "$$($(BIN)/python --version 2>&1)" = "$$($(PYTHON) --version 2>&1)" \
	    && $(PIP) --version || { $(PYTHON) -m venv --clear $(VENV) && touch $(VENV)/.$(STACK); }
	@# If pip is killed while it unpacks, it leaves a .dist-info without INSTALLER, which it later
	@# takes for an installed package.
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

PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
test: install
	$(PYTEST) -m 'not slow'

test-all: install
	$(PYTEST) --cov --cov-report=term --cov-fail-under=95

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: install
	$(BIN)/python -m mkdocs build --strict

quickstart: install
	$(BIN)/python tools/quickstart.py

STUDY := head_to_head_shapes
SHAPES192 := data/shapes192 --size 192 --val 400 --seed 1
study: install
	$(BIN)/python tools/make_shapes.py $(SHAPES192)
	$(BIN)/python tools/sweep.py configs/studies/$(STUDY).py --jobs $(JOBS)
	$(BIN)/python tools/report.py work_dirs/$(STUDY)

FULL_STUDY := smca_dino_shapes
FULL_DATA = $(if $(findstring stamps,$(FULL_STUDY)),stamps.py data/stamps,\
    $(if $(findstring digits,$(FULL_STUDY)),digits.py data/digits,shapes.py $(SHAPES192)))
full-study: install
	$(BIN)/python tools/make_$(FULL_DATA)
	$(BIN)/python tools/sweep.py configs/studies/$(FULL_STUDY).py --jobs $(JOBS) --calibrate
	$(BIN)/python tools/sweep.py configs/studies/$(FULL_STUDY).py --jobs $(JOBS)
	$(BIN)/python tools/report.py work_dirs/$(FULL_STUDY)

# Needs no installation if PYTHON has the packages.
gpu:
	PYTHON=$(firstword $(wildcard $(BIN)/python) $(PYTHON)) tools/analysis_tools/gpu.sh
