PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A worker a core; one that is done takes tests from another. Plain `python -m pytest` runs them in one.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist worksteal
# Rewritten assertions are kept for the next run. Plugins of other packages would be rewritten too.
PYTEST := PYTHONDONTWRITEBYTECODE= PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p xdist.plugin

.PHONY: help install demo test test-slow test-integrations docs lint results bench bench-check gpu clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP) ## make .venv with the package, its tools and the peers

# The versions in constraints.txt are those every number in README.md and docs/ was measured with.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	$(BIN)/python -c 'import betty' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python betty-ml==0.2.1
	touch $(STAMP)

demo: install ## imbalanced and noisy digits: cross-entropy against learned sample weights
	$(BIN)/python benchmarks/imbalanced_cifar.py --dataset digits --imbalance-factor 10 --noise 0.4 --seeds 3 --out results/demo \
	    --method ce+meta --method class-balanced+meta --method meta-weight-net+meta --method class-aware+meta

test: install ## all tests but the slow ones
	$(PYTEST) $(PARALLEL)

test-slow: install ## the slow tests too
	$(PYTEST) $(PARALLEL) -m ""

# `make test` leaves out what its packages are missing for.
DOORS := tests/metaweight/integrations tests/metaweight/lm/test_transformers.py \
    tests/metaweight/lm/test_transformers_checkpointed.py tests/metaweight/lm/test_quantised.py \
    tests/engines/checkpoint/test_adapters_only.py \
    tests/benchmarks/test_lm_cost.py tests/docs/test_integrations.py tests/examples/test_noisy_text.py
test-integrations: install ## the tests of transformers, TRL, PEFT and Lightning, which it installs
	$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(None in map(u.find_spec, ("transformers", "trl", "peft", "lightning", "bitsandbytes")))' || \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[trl,lightning,quantised]'
	$(PYTEST) $(PARALLEL) -m "" $(DOORS)

# Code cells are executed; a warning is an error. Pages are shared out in parts of one job each: more jobs than
# cores, so that the slow pages, which stand together, are not all in one part.
docs: install ## the documentation, into build/docs
	$(BIN)/python -c 'import furo, myst_nb, sphinx' 2>/dev/null || $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -j 6 -b html -d build/docs-cache docs build/docs

# Types are checked on an ordinary install: an editable one hides the folder mapping (CONTRIBUTING.md).
lint: install ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build/typed build/lib build/bdist*
	$(BIN)/python -m pip install --quiet --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p metaweight
	cd build/typed && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml \
	    ../../examples/*.py ../../tests/problems/test_module_types.py

results: install ## tables and figures of README and documentation, from the records of their runs
	$(BIN)/python benchmarks/claims.py

bench: install ## time steps against the peers (about 20 minutes on 2 quiet cores)
	$(BIN)/python benchmarks/speed.py

bench-check: install ## compare key ratios with those recorded (about 6 minutes on 2 quiet cores)
	$(BIN)/python benchmarks/bench_check.py

gpu: install ## tests, timings and a published protocol on a CUDA card (at most 25 minutes)
	$(BIN)/python benchmarks/gpu.py

clean: ## remove everything made here
	rm -rf $(VENV) build results *.egg-info
