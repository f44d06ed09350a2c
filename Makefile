# Each target sets up all it needs; `make run` and `make test` need nothing before.
PYTHON ?= python3
VENV := .venv
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
READY := $(VENV)/.ready

.PHONY: run test test-slow fuzz test-gpu bench bench-gpu docs setup pin clean

run: $(READY)  ## train the quickstart: three schemes, two seeds, under two minutes
	$(VENV)/bin/python -m repr_ray.launch $(ARGS)

test: $(READY)  ## lint, types and all tests that are not slow
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-slow: $(READY)  ## the rest: the slow tests, with faults of processes, nodes and links; 40 minutes
	$(VENV)/bin/python -m pytest -m slow $(ARGS)

test-gpu: $(READY)  ## the tests of a CUDA device, ten minutes: a table of results and measurements
	REPR_RAY_NEEDS_GPU=1 $(VENV)/bin/python -m pytest tests/gpu tests/test_fake_device.py $(ARGS)

fuzz: $(READY)  ## random configs, results and data for five minutes each
	REPR_RAY_FUZZ_SECONDS=300 $(VENV)/bin/python -m pytest -m fuzz $(ARGS)

bench: $(READY)  ## half an hour on two quiet cores; writes benchmarks/results
	for name in training startup makespan ddp growth compact numerics data streaming; do \
		$(VENV)/bin/python -m benchmarks.$$name || exit; \
	done

bench-gpu: $(READY)  ## the same questions on a CUDA device
	$(VENV)/bin/python -m benchmarks.training --device cuda --images 51200
	$(VENV)/bin/python -m benchmarks.numerics --device cuda
	$(VENV)/bin/python -m benchmarks.ranking --device cuda
	$(VENV)/bin/python -m benchmarks.sharing --device cuda

docs: $(READY)  ## write the schema of configs and docs/settings.md from the settings classes
	$(VENV)/bin/python -m repr_ray.explain --schema > configs/config.schema.json
	$(VENV)/bin/python -m repr_ray.explain --markdown > docs/settings.md

setup: $(READY)

$(READY): requirements.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --python $(VENV) --requirement requirements.txt
	$(UV) pip install --quiet --python $(VENV) --no-deps --editable .
	@touch $@

.uv/bin/uv:
	$(PYTHON) -m pip install --quiet --target .uv uv

pin: | $(UV)  ## compile requirements.txt again after a change of dependencies
	$(UV) pip compile --quiet --universal --python-version 3.11 --extra dev \
		--no-emit-index-url --no-annotate --no-header --output-file requirements.txt pyproject.toml

clean:
	rm -rf $(VENV) .uv
