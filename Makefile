# `make help` lists what can be made. Text after `##` on a target's line is its line of help.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Where: set these on the command line or in the environment.
PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= torch==2.13.0
PORT ?= 5000
LAB_PORT ?= 8888
LISTENING_PORT ?= 8300

# What a recipe runs with, e.g. make exp-llama-omni-stage1 SCALE=smoke SEED=1 ARM=ttt-mlp ARGS="--set positions=4096"
SCALE ?= cpu
SEED ?= 0
ARM ?=
WEIGHTS ?=
DATA ?=
RESUME ?=
ARGS ?=

# What `make data` reads, and what the set is to be called; MIMI: the folder of a Mimi whose codes are kept too.
SOURCE ?=
NAME ?=
MIMI ?=
ifneq ($(filter data,$(MAKECMDGOALS)),)
$(if $(and $(SOURCE),$(NAME)),,$(error give SOURCE=/path/to/recordings and NAME=name-of-the-set))
endif
RECIPE_OPTIONS = --scale $(SCALE) --seed $(SEED) $(foreach arm,$(ARM),--arm $(arm)) $(if $(WEIGHTS),--weights "$(WEIGHTS)")$(if $(DATA), --data "$(DATA)") \
	$(if $(filter 1 yes true,$(RESUME)),--resume) $(ARGS)

# pytest: processes of one thread each. A file's tests share a process, so that what its fixtures prepare is prepared once.
TEST_PROCESSES ?= 2
TESTS ?= tests

export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 1)
export TOKENIZERS_PARALLELISM ?= false

RECIPE_FILES := $(filter-out experiments/recipes/_%,$(wildcard experiments/recipes/*.py))
RECIPES := $(subst _,-,$(notdir $(RECIPE_FILES:.py=)))
# Later stages need the ones before, and `make curriculum` runs all four of a backbone: they are left out of `make recipes`.
LATER_STAGES := $(filter %-stage2 %-stage3 %-stage4 %-curriculum,$(RECIPES))
BACKBONE ?= llama-omni
RUN ?=
VENV_PYTHON := $(VENV)/bin/python

# The stamp holds the torch requirement it was made with, so that asking for another one sets up again.
STAMP := $(VENV)/.set-up
ifneq ($(origin TORCH),file)
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(TORCH))
$(STAMP): FORCE
endif
endif

.PHONY: help setup data test lint format typecheck check findings verify-findings notebooks lab report cards curriculum validate decide listening-test listening-results lock older-moshi recipes smoke reproduce mlflow-ui dashboard clean clean-runs FORCE

help: ## list every target and every recipe
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z][a-zA-Z%-]*:.*## / { sub("%", "NAME", $$1); printf "  make %-16s %s\n", $$1, $$2 }' Makefile
	@echo "Recipes (make exp-NAME SCALE=smoke|cpu|gpu|full SEED=0 [ARM=...] [WEIGHTS=...] [DATA=...] [RESUME=1] [ARGS=...]):"
	@awk 'FNR == 1 { name = FILENAME; sub(".*/", "", name); sub("[.]py$$", "", name); gsub("_", "-", name); \
		line = $$0; gsub("^[rR]?\"\"\"|\"\"\"$$", "", line); printf "  make exp-%-22s %s\n", name, line }' \
		$(RECIPE_FILES) /dev/null

setup: $(STAMP) ## make .venv with everything pinned (done by the other targets when needed)

# torch comes first and by plain pip, so that the machine's own package index decides between its CPU and CUDA builds. The rest is
# installed exactly as locked, without dependency resolution: moshi's declared bounds would forbid it (docs/environment.md).
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "make setup: requirements.lock is for Python 3.11, and '$(PYTHON)' is not one; name one with PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@test -x $(VENV)/bin/pip || { echo "setting up $(VENV): new environment"; $(PYTHON) -m venv $(VENV); }
	@echo "setting up $(VENV): $(TORCH) (1 of 3)"
	@$(VENV)/bin/pip install -qq --disable-pip-version-check "$(TORCH)"
	@echo "setting up $(VENV): $$(wc -l < requirements.lock) packages of requirements.lock (2 of 3)"
	@$(VENV)/bin/pip install -qq --disable-pip-version-check --no-deps -r requirements.lock
	@echo "setting up $(VENV): this project (3 of 3)"
	@$(VENV)/bin/pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@echo "$(TORCH)" > $@

test: $(STAMP) ## run every test, the recipes' smoke runs among them
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(TEST_PROCESSES) --dist loadfile $(TESTS) $(ARGS)

lint: $(STAMP) ## check style and formatting of code and notebooks
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

format: $(STAMP) ## put code and notebooks in the house format, fixing what can be fixed
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

typecheck: $(STAMP) ## check the types of ttt_core and analysis, strictly
	$(VENV_PYTHON) -m pyright

check: lint typecheck test ## lint, typecheck and test

findings: $(STAMP) ## judge every claim by the runs that count: FINDINGS.md, evidence/*.csv, the table in README.md
	$(VENV_PYTHON) -m analysis findings $(ARGS)

verify-findings: $(STAMP) ## check that FINDINGS.md follows from experiments/claims.toml and evidence/*.csv (a test does it too)
	$(VENV_PYTHON) -m analysis verify-findings $(ARGS)

# Notebooks find the store as `python -m analysis` does, and the kernel is the environment's own.
notebooks: $(STAMP) ## execute every notebook on the runs of the store, into runs/notebooks/*.html
	$(VENV_PYTHON) -m nbconvert --execute --to html --embed-images --output-dir runs/notebooks notebooks/*.ipynb
	@echo "wrote:"; ls runs/notebooks/*.html

lab: $(STAMP) ## open the notebooks in JupyterLab (LAB_PORT=8888)
	$(VENV_PYTHON) -m jupyterlab --port $(LAB_PORT) --notebook-dir notebooks $(ARGS)

report: $(STAMP) ## write runs/report.html: findings, figures, sound and runs in one page that needs no network
	$(VENV_PYTHON) -m analysis report $(ARGS)

lock: $(STAMP) ## pin the newest versions that pyproject.toml admits in requirements.lock
	$(VENV)/bin/uv pip compile --quiet --upgrade --python-version 3.11 --extra moshi --extra pocket --extra listening --extra lora --extra dev \
		--override requirements.overrides.txt --excludes requirements.excludes.txt --no-emit-package torch \
		--no-header --no-annotate --output-file requirements.lock pyproject.toml
	@git --no-pager diff --stat -- requirements.lock

exp-%: $(STAMP) ## run one recipe, e.g. make exp-llama-omni-stage1
	$(VENV_PYTHON) -m experiments $* $(RECIPE_OPTIONS)

data: $(STAMP) ## prepare own recordings for training: SOURCE=folder-or-manifest NAME=name (experiments/recordings/README.md)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m experiments.recordings "$(SOURCE)" "$(NAME)" $(if $(MIMI),--mimi "$(MIMI)") $(ARGS)

older-moshi: $(STAMP) ## fetch older releases of the moshi package, whose rings kv-wraparound then measures too
	$(VENV_PYTHON) -m experiments.wraparound.mechanics.older_ring --fetch "$${TTT_DATA_CACHE:-data_cache}/older_moshi"

curriculum: $(STAMP) ## stages 1 to 4 of a backbone in a row, and one table (BACKBONE=llama-omni; ARGS="--from RUN" goes on from a stage 1)
	$(VENV_PYTHON) -m experiments $(BACKBONE)-curriculum $(RECIPE_OPTIONS)

validate: $(STAMP) ## measure a finished arm's run along 64k positions, let it speak, and write runs/checklist.html (RUN=its id [RESUME=1])
	@test -n "$(RUN)" || { echo "make validate: name an arm's run with RUN=..., its id as MLflow shows it" >&2; exit 2; }
	$(VENV_PYTHON) -m experiments.validation "$(RUN)" $(if $(filter 1 yes true,$(RESUME)),--resume) $(ARGS)
	$(VENV_PYTHON) -m analysis checklist "$(RUN)"

recipes: $(STAMP) ## run every recipe but the stages behind the first, one after the other (SCALE=smoke: minutes; cpu: some three and a half hours on 2 cores)
	@begun=0; for recipe in $(filter-out $(LATER_STAGES),$(RECIPES)); do \
		begun=$$((begun + 1)); echo; echo "== $$begun of $(words $(filter-out $(LATER_STAGES),$(RECIPES))): $$recipe"; \
		$(VENV_PYTHON) -m experiments $$recipe --scale $(SCALE) --seed $(SEED) || { code=$$?; \
			echo "make recipes: $$recipe ended with code $$code; the recipes after it were not run" >&2; exit $$code; }; \
	done

smoke: ## run every recipe at its smallest scale
	@$(MAKE) --no-print-directory recipes SCALE=smoke

# Findings come after all runs: they change tracked files, and a run of a changed checkout does not count.
reproduce: recipes ## all of it: every recipe, then findings, dashboard views, notebooks and the report (SCALE=smoke: minutes)
	$(VENV_PYTHON) -m analysis findings
	$(VENV_PYTHON) -m analysis dashboard --no-server --port $(PORT)
	$(MAKE) notebooks report
	@echo; echo "reproduced at scale $(SCALE): FINDINGS.md, runs/report.html, runs/notebooks/*.html; make dashboard opens the comparisons"

mlflow-ui: $(STAMP) ## look at the runs in a browser (MLFLOW_TRACKING_URI if set, else runs/mlflow.db)
	@case "$$MLFLOW_TRACKING_URI" in http*) echo "runs are served at $$MLFLOW_TRACKING_URI"; exit 0;; esac; mkdir -p runs; \
		MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false exec $(VENV)/bin/mlflow server --port $(PORT) --workers 1 \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/runs/mlflow.db}" \
		--artifacts-destination "$(CURDIR)/runs/mlartifacts"

dashboard: $(STAMP) ## MLflow with prepared comparison views: starts its server (PORT) and prints a link to each
	$(VENV_PYTHON) -m analysis dashboard --port $(PORT) $(ARGS)

cards: $(STAMP) ## write docs/models.md, a card for each model, from backbones/published
	$(VENV_PYTHON) -m analysis cards

decide: $(STAMP) ## which backbone? asks four questions, answers from evidence and cards (or ARGS="--real-time yes ...")
	$(VENV_PYTHON) -m analysis decide $(ARGS)

# RUNS: runs or folders of sound, "run run" or "ttt=folder window=folder"; none goes on with the test called NAME. NAME and HOST
# count on the command line only: some shells and systems have variables of these names.
of_command_line = $(if $(findstring command line,$(origin $1)),$2 "$($1)")
listening-test: $(STAMP) ## people compare what runs said: RUNS="run run" [NAME=...] [HOST=0.0.0.0] [LISTENING_PORT=8300]
	$(VENV_PYTHON) -m analysis listening-test $(RUNS) $(call of_command_line,NAME,--name) $(call of_command_line,HOST,--host) \
		--port $(LISTENING_PORT) $(ARGS)

listening-results: $(STAMP) ## what the raters of a listening test prefer; logs it once enough have finished [NAME=...]
	$(VENV_PYTHON) -m analysis listening-results $(call of_command_line,NAME,--name) $(ARGS)

clean: ## remove caches and build leftovers; runs and prepared data stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

clean-runs: ## remove every local run with its checkpoints and the local MLflow store
	rm -rf runs
