# make demo    set everything up, then the whole pipeline at demo scale (ten minutes on 2 cores that multiply bfloat16, after the installation)
# make test    set everything up, then linters, type checks and tests
# make install only set up: a virtual environment in .venv with pinned dependencies
# Needs Python 3.11, a C++ compiler and a package index. Every target may be repeated; finished steps are skipped.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
DONE   := $(VENV)/.done

.PHONY: demo test install doctor

demo: install
	$(BIN)/python slurm/launch.py sohes_full --scale demo

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

doctor: install
	$(BIN)/sohes doctor

install: $(DONE)/project

$(DONE)/venv:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here; name another with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(DONE) && touch $@

$(DONE)/torch: constraints.txt | $(DONE)/venv
	@echo "== torch and build tools: about 2 minutes, 6 GB on disk"
	$(PIP) install -q -c constraints.txt torch torchvision "setuptools>=77,<82" wheel ninja packaging
	@touch $@

# mmcv publishes sources only, and they need torch while they are built
$(DONE)/mmcv: | $(DONE)/torch
	@echo "== mmcv: its C++ ops are compiled now. This takes 8 to 15 minutes on 2 cores and happens once"
	MMCV_WITH_OPS=1 $(PIP) install -q --no-build-isolation -c constraints.txt onedl-mmcv
	@touch $@

$(DONE)/project: constraints.txt pyproject.toml | $(DONE)/mmcv
	@echo "== everything else: about 1 minute"
	$(PIP) install -q -c constraints.txt -e ".[slurm,leopart,transfer,dev,test]"
	@# a reader of our COCO export, for a test; it asks for an older pandas than it needs
	$(PIP) install -q --no-deps -c constraints.txt datumaro
	@# the MM packages bring OpenCV with a window system; the headless build of the same version needs no libGL
	$(PIP) install -q --force-reinstall --no-deps -c constraints.txt opencv-python-headless
	@touch $@
