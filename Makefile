# Two commands: `make demo` plays the main job on real processes, `make test` proves the rest.
# Nothing but python3 and make is assumed; everything else lands in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint test-slow test-torch test-executorch fuzz bench clean twin-large twin-rollout

demo: .venv/ready
	$(BIN)/batuta demo

test: .venv/ready lint
	$(BIN)/pytest -n 2 --dist loadfile

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# What takes longer: models, containers and deliveries end to end on real processes.
test-slow: .venv/ready
	$(BIN)/pytest -m slow -n 2 --dist loadfile

# PyTorch through the whole life of a model. Its wheel for processors alone has 200 MB and is on PyTorch's own index; the
# one on PyPI brings gigabytes for graphics cards. Elsewhere: `make test-torch TORCH=torch`.
TORCH ?= --index-url https://download.pytorch.org/whl/cpu torch
test-torch: .venv/ready
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pytest -m slow tests/e2e/test_model_lifecycle.py -k pytorch

# ExecuTorch, which needs PyTorch: an engine that serves `.pte` files, on its own and on a real node.
test-executorch: .venv/ready
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/python -c "import executorch" 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check executorch
	$(BIN)/pytest -m slow tests/e2e/test_executorch.py

# The API against its own OpenAPI for longer: `make fuzz EXAMPLES=500 SEED=7`.
EXAMPLES ?= 200
SEED ?= 1
fuzz: .venv/ready
	BATUTA_FUZZ_EXAMPLES=$(EXAMPLES) BATUTA_FUZZ_SEED=$(SEED) $(BIN)/pytest tests/e2e/test_conformance.py

# An hour of ten thousand nodes and a storm of a hundred thousand, each played twice: minutes.
twin-large: .venv/ready
	$(BIN)/python benchmarks/twin.py --twice

# A new model reaches ten thousand nodes of which one class refuses it: an hour or more.
twin-rollout: .venv/ready
	$(BIN)/python benchmarks/rollout_fleet.py

bench: .venv/ready
	for script in apply_to_healthy footprint placement recording api; do $(BIN)/python benchmarks/$$script.py || exit 1; done

.venv/ready: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Batuta needs Python 3.11 or newer; set PYTHON=python3.11')"
	@$(PYTHON) -c "import ensurepip, venv" || { echo "python3 lacks its venv module: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
