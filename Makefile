# Each target is plain python3, pip and one command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLOW ?= slow and not gpu
# A file goes to one worker, since its tests share what they prepare; tests/conftest.py has the order of files.
# A worker that crashes ends the tests: xdist waits without end for what it gives to one that takes its place.
AT_ONCE := --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# What builds the site of the docs, which is a part of the checks, is pinned for these alone.
NEEDS_311 := make docs and make checks need Python 3.11 or later: make clean, then make checks PYTHON=python3.11

.PHONY: help demo test test-slow test-gpu test-slurm checks lint-github docs lock hooks notebook dist clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 20

demo: $(VENV)/installed  ## the whole job on the embedded sample, on a CPU, without a network
	$(BIN)/sst2 launch --config_file accelerate_configs/single_cpu.yaml train_sst2.py \
		--smoke --output_dir runs/demo --overwrite_output_dir

test: $(VENV)/installed-dev  ## all tests that need no GPU and take no long time
	$(BIN)/python -m pytest -m "not slow and not gpu" $(AT_ONCE) --numprocesses 2

test-slow: $(VENV)/installed-dev  ## many processes, SLURM; with SST2_DATA_DIR and SST2_MODEL_DIR also real data
	$(BIN)/python -m pytest -m "$(SLOW)" $(AT_ONCE) --numprocesses 3

test-slurm: $(VENV)/installed-dev  ## a SLURM of two nodes on this machine: Debian's slurmctld slurmd slurm-client munge, root
	$(BIN)/python -m pytest -m slurm

test-gpu: $(VENV)/installed-dev  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

checks: $(VENV)/installed-dev  ## ruff, mypy (tests included), import-linter, deptry, shellcheck, hadolint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/shellcheck .ci/run containers/*.sh slurm/*.sh benchmarks/*.sh
	$(BIN)/hadolint containers/Dockerfile

checks: lint-github docs

lint-github: $(VENV)/installed-dev  ## workflows, issue forms, hooks and CITATION.cff; a part of make checks
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format --default-filetype yaml CITATION.cff
	$(BIN)/zizmor --offline --quiet .
	$(BIN)/pre-commit validate-config .pre-commit-config.yaml

docs: $(VENV)/installed-dev  ## the documentation as a site, in site/; a part of make checks, which a broken link fails
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(NEEDS_311)")'
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet docs site

lock: $(BIN)/uv  ## requirements.lock: what is pinned, with all that it needs, for every Python and system
	sed -e '/^-[cr] /d' requirements.txt requirements-dev.txt | $(BIN)/uv pip compile --universal --upgrade \
		--python-version 3.10 --no-python-downloads --no-config --no-annotate --no-emit-package sst2 --quiet \
		--custom-compile-command "make lock" --output-file requirements.lock -

hooks: $(VENV)/installed-dev  ## have git run ruff and shellcheck on every commit, and make checks before a push
	$(BIN)/pre-commit install

notebook: $(VENV)/installed-dev  ## execute the tutorial and keep what its cells put out
	$(BIN)/python -m tests.support.tutorial

dist: $(VENV)/installed-dev  ## sdist and wheel in dist/, checked, as a release has them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean:  ## remove the virtual environment
	rm -rf $(VENV)

# By itself: what is installed besides keeps to the lock, which is old where a version has just been raised.
$(BIN)/uv: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$$(grep '^uv==' requirements-dev.txt)"
	@touch $@

$(VENV)/installed: requirements.txt requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	@touch $@
