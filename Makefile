# make demo | test | lab | sync | docs | lessons | colab | bench      Needs Python 3.11 or newer and make; the rest goes into .venv.
#   make test PYTHON=python3.12              another Python
#   make demo ARGS="--frames FOLDER"         the demo on your own frames
#   make test ARGS="-k mob"                  some of the tests
#   make lab ARGS=module1_sunflowers         the lessons as a learner plays them, instead of the source
#   make bench ARGS="--quick" DATA=FOLDER    measurements; DATA is the folder of real observations

# Threads that wait for each other sleep instead of spinning: far kinder to machines with little to spare.
export OMP_WAIT_POLICY := passive

VENV  ?= .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS  ?=
DATA  ?=

# The first Python that is new enough, unless PYTHON names one.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
            "$$p" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test lab sync docs lessons colab bench

help:
	@sed -n '1,6s/^# //p' Makefile

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' || { echo "$(PYTHON) is $$("$(PYTHON)" --version 2>&1 | head -n 1): expected Python 3.11 or newer. Name another: make PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (once; some minutes) ..."
	@"$(PYTHON)" -m venv "$(VENV)" || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)"; exit 1; }
	@"$(BIN)/python" -m pip install --quiet --editable '.[dev]'
	@touch "$(STAMP)"

demo: $(STAMP)
	@"$(BIN)/search-sdo" demo $(ARGS)

# Up to four processes side by side, a thread each: faster than one process that shares out every small sum.
test: $(STAMP)
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest --numprocesses logical --maxprocesses 4 --dist loadgroup $(ARGS)

lab: $(STAMP)
	@"$(BIN)/jupyter-lab" $(or $(ARGS),nbs)

# The library and the lessons are made from nbs/, always all of them, always the same.
sync: $(STAMP)
	@"$(BIN)/nbdev-export"
	@"$(BIN)/nbdev-clean"
	@"$(BIN)/python" -m search_sdo.course.lessons
	@touch "$(STAMP)"    # nbdev writes pyproject.toml again, unchanged

# Runs every notebook once (kept in docs/_cache), lays out the pages, reads them once more: docs/_build/index.html
docs: $(STAMP)
	@"$(BIN)/python" -m pip install --quiet --editable '.[docs]'
	@OMP_NUM_THREADS=1 "$(BIN)/python" -m search_sdo.course.site
	@"$(BIN)/python" -m sphinx -q -W --keep-going -b html -c docs docs/_src docs/_build
	@"$(BIN)/python" -m search_sdo.course.proof
	@echo "The site is in docs/_build/index.html"

# Plays every learners' lesson twice, solved and with its exercises left empty; make lessons ARGS=02_index for one
lessons: $(STAMP)
	@"$(BIN)/python" -m search_sdo.course.learners $(ARGS)

# The same with Google Colab's Python and packages, and a check that installing the library moves none of them
colab:
	@bash tests/colab.sh $(ARGS)

bench: $(STAMP)
	@set -e; for script in $(filter-out bench/measure.py bench/encoders.py,$(wildcard bench/*.py)); do echo "== $$script"; "$(BIN)/python" "$$script" $(if $(DATA),--data "$(DATA)") $(ARGS); done
