PYTHON ?= python3
PROFILE ?= quick
DATASET ?= phantom
DATA_ROOT ?=
WEIGHTS ?=
PREPARATION ?= whole
ON_ERROR ?= raise
JOBS ?= 2
CLUSTER ?=
BIN := .venv/bin
CHECKED := $(addprefix tests/,utils readers phantom preprocessing datasets audit evaluation report)
quoted = '$(subst ','\'',$(value $(1)))'

.PHONY: help env reproduce study publish check test benchmark lab app audit clean lock

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 12
	@echo "PROFILE=smoke|quick|study|paper DATASET=phantom|folder|ucsd-covid-ct|... (DATA_CARD.md)"
	@echo "DATA_ROOT=folder of the data set  ON_ERROR=raise|skip files that cannot be used"
	@echo "PREPARATION=whole|lungs  WEIGHTS=none|imagenet|ct|phantom|path  JOBS=notebooks at the same time  CLUSTER=slurm|kubernetes (docs/cluster.md)"

env: .venv/.complete ## make .venv from requirements.lock

.venv/.complete: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "covidlib needs Python 3.11 to 3.13: make PYTHON=/path/to/python3.12 env"; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

reproduce: env ## run a profile to its report and print the claims table
	@$(BIN)/python workflow/reproduce.py --profile $(call quoted,PROFILE) --dataset $(call quoted,DATASET) \
	  --data-root $(call quoted,DATA_ROOT) --preparation $(call quoted,PREPARATION) \
	  --weights $(call quoted,WEIGHTS) --on-error $(call quoted,ON_ERROR) \
	  --jobs $(call quoted,JOBS) $(if $(value CLUSTER),--cluster $(call quoted,CLUSTER))

study: env ## the second study: DATA_ROOT=folder with ucsd-covid-ct, sarscov2-ct-256, web-three-class; days, resumable
	$(BIN)/python -m study.experiments $(call quoted,DATA_ROOT)

publish: env ## reports/published and its tables in README.md and MODEL_CARD.md, from the first study's runs
	$(BIN)/python -m study.publish

check: env ## what a change needs before it is committed: style, import rule, unit tests that train nothing; 3 minutes
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 -m "not slow" $(CHECKED)

test: env ## unit tests, nbval over the notebooks, a smoke run of the workflow
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

benchmark: env ## this machine's speed and memory into benchmarks/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[bench]"
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.augmentation
	$(BIN)/python -m benchmarks.footprint
	$(BIN)/python -m benchmarks.tables

lab: env ## JupyterLab in notebooks/
	$(BIN)/jupyter lab --notebook-dir=. notebooks/00_data.ipynb

app: env ## the scan viewer as a page of its own; prints its address
	@$(BIN)/python -m covidlib.app.serve

audit: env ## known vulnerabilities of what the lock pins, and docs/licenses.md anew
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[audit]"
	{ printf '# Licences of what the lock pins\n\nMade by `make audit`, from what each package says of itself. Packages that only another system, or\n'; \
	  printf 'another Python, needs are not listed. UNKNOWN: see [SECURITY.md](../SECURITY.md), Dependencies.\n\n'; \
	  $(BIN)/pip-licenses --from=mixed --with-system --format=markdown --order=name \
	    --packages $$(sed -nE 's/^([A-Za-z0-9_.-]+)==.*/\1/p' requirements.lock); } > docs/licenses.md.new
	mv docs/licenses.md.new docs/licenses.md
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

lock: env ## resolve requirements.lock and environment.yml anew (needs uv)
	$(BIN)/python workflow/lock.py

clean: ## remove runs and generated reports; .venv and data stay
	rm -rf runs .snakemake
	find reports -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} + 2>/dev/null || true
