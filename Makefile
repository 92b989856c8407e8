# Everything here runs in $(VENV), which the first target that needs it creates. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
# Chooses all that is drawn, so that a red run has to do with the change; make nightly draws it.
SBHAL_SEED ?= 1
export SBHAL_SEED
BIN := $(VENV)/bin
# With one ninja for every environment: another would build everything anew.
PIP := PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip --disable-pip-version-check --quiet
BUILD_REQUIRES := scikit-build-core pybind11 cmake ninja
NATIVE_SOURCES := $(shell find CMakeLists.txt cmake csrc backends -name '*.h' -o -name '*.cpp' -o -name '*.hip' \
  -o -name '*.cmake' -o -name '*.txt')
SANITIZE := $(OUT)/sanitize
OLD_TRANSFORMERS := $(OUT)/transformers-4.55.0
NEW_TRANSFORMERS := $(OUT)/transformers-5.24.0
OLD_TORCH := $(OUT)/torch-2.6
DISPATCH_TESTS := tests/calls tests/declare tests/backend/test_native.py tests/backend/test_native_hostile.py
TRANSFORMERS_TESTS := tests/models tests/compat/test_transformers_*.py
SANITIZED = PYTHONSAFEPATH=1 ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)"
ISA_LEVELS := portable avx2 avx512 avx512_bf16
BEST_ISA = $(BIN)/python -c 'from spikingbrain_hal.backends.cpu import _native; print(_native.isa_detected)'
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help install conformance test old-transformers new-transformers old-torch check docs bench isa sim race sanitize \
  sim-full gpu-check vendor calibration fuzz nightly clean

help:  ## print this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: $(VENV)/.installed  ## build the CPU backend into .venv

conformance: $(VENV)/.installed  ## prove the CPU backend, full profile; the report goes to out/conformance
	$(BIN)/sbhal conformance --backend cpu --profile full --out $(OUT)/conformance

test: $(VENV)/.dev  ## run the tests with coverage
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered --cov-fail-under=90 $(PYTEST_ARGS)

old-transformers: $(OLD_TRANSFORMERS)/.installed  ## the models and stand-ins with the oldest transformers that they serve
	$(OLD_TRANSFORMERS)/bin/python -m pytest -q -p no:cacheprovider $(TRANSFORMERS_TESTS)

new-transformers: $(NEW_TRANSFORMERS)/.installed  ## the same with the newest
	$(NEW_TRANSFORMERS)/bin/python -m pytest -q -p no:cacheprovider $(TRANSFORMERS_TESTS)

old-torch: $(OLD_TORCH)/.installed  ## dispatch and the CPU backend with the oldest torch that is claimed; downloads 3 GB
	$(OLD_TORCH)/bin/python -m pytest -q -p no:cacheprovider $(DISPATCH_TESTS)
	$(OLD_TORCH)/bin/sbhal conformance --backend cpu --profile quick --no-bench --out $(OLD_TORCH)/report

check: $(VENV)/.dev  ## format, lint, types, generated pages, layering
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	git ls-files '*.h' '*.cpp' '*.hip' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/python docs/generate.py --check
	$(BIN)/python -m spikingbrain_hal.conformance.verdict.mustpass --check
	$(BIN)/python -m pytest -q tests/repository/test_layering.py tests/repository/test_docs.py

docs: $(VENV)/.installed  ## write docs/ops.md and the type stub of the operators from their declarations
	$(BIN)/python docs/generate.py

bench: $(VENV)/.dev  ## measure speed beside PyTorch
	$(BIN)/python -m bench.calls
	$(BIN)/python -m bench.speed

isa: $(VENV)/.installed  ## quick conformance at every lesser instruction set; the best is what `make conformance` runs
	@best=$$($(BEST_ISA)); \
	for isa in $(ISA_LEVELS); do \
	  if [ $$isa = $$best ]; then break; fi; \
	  echo "SBHAL_CPU_ISA=$$isa"; \
	  SBHAL_CPU_ISA=$$isa $(BIN)/sbhal conformance --backend cpu --profile quick --no-bench --out $(OUT)/isa-$$isa; \
	done

sim: $(VENV)/.dev  ## quick conformance of the GPU kernels on simulated devices, the last in a random order
	$(BIN)/sbhal conformance --backend sim --wave 32 --profile quick --out $(OUT)/sim-32
	$(BIN)/sbhal conformance --backend sim --wave 64 --profile quick --out $(OUT)/sim-64
	SBHAL_SIMT_SEED=$(SBHAL_SEED) $(BIN)/sbhal conformance --backend maca --profile quick --out $(OUT)/maca

race: $(VENV)/.dev  ## the GPU kernels under a race detector, without Python or torch
	$(BIN)/python tests/simt/race.py --seed $(SBHAL_SEED) --out $(OUT)/race

# The first random order runs under ASan and UBSan.
sim-full: race $(SANITIZE)-full/.installed  ## full conformance on every simulated device in five random orders; over an hour
	@for device in "sim --wave 32" "sim --wave 64" maca; do for seed in 1 2 3 4 5; do \
	  export SBHAL_SIMT_SEED=$$seed; \
	  run="conformance --backend $$device --profile full --out $(OUT)/sim-full/$${device// --wave /-}-$$seed"; \
	  echo "SBHAL_SIMT_SEED=$$seed sbhal $$run"; \
	  if [ $$seed = 1 ]; then env $(SANITIZED) $(SANITIZE)-full/venv/bin/sbhal $$run --timeout 3600; else $(BIN)/sbhal $$run; fi; \
	done; done

gpu-check: $(VENV)/.dev  ## compile the GPU backends for every target and read the machine code; needs nvcc, installs the rest
	tests/gpu/toolchains.sh
	$(PIP) install -c constraints.txt nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/gpu/check.py --out $(OUT)/gpu

vendor: $(VENV)/.dev  ## backends in packages of their own: the examples pass, a package for each GPU compiler compiles
	tests/gpu/toolchains.sh
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tests/vendor/check.py --out $(OUT)/vendor

calibration: $(VENV)/.dev  ## every planted bug and correct variant at 20 seeds, all checks; hours
	$(BIN)/python -m calibration --seeds 20 --out $(OUT)/calibration

fuzz: $(VENV)/.dev  ## 100,000 random calls on the CPU and on a simulated device; about an hour
	$(BIN)/python -m spikingbrain_hal.conformance.run.fuzz --backend cpu --seed $(SBHAL_SEED) --examples 100000
	$(BIN)/python -m spikingbrain_hal.conformance.run.fuzz --backend sim --seed $(SBHAL_SEED) --examples 100000

nightly:  ## everything that draws, at a new seed, the long runs and the oldest torch too; hours
	@seed=$$(shuf -n 1 -i 1-2147483647); echo "one of these again: make TARGET SBHAL_SEED=$$seed"; \
	for target in test conformance isa sim sanitize old-transformers old-torch fuzz sim-full; do \
	  $(MAKE) $$target SBHAL_SEED=$$seed; \
	done

# PYTHONSAFEPATH keeps the checkout, which has no native module beside it, off the import path.
sanitize: $(SANITIZE)/.installed  ## quick conformance and the kernel tests under ASan and UBSan
	export $(SANITIZED); \
	$(SANITIZE)/venv/bin/sbhal conformance --backend cpu --profile quick --no-bench --out $(SANITIZE)/report; \
	$(SANITIZE)/venv/bin/sbhal conformance --backend sim --wave 32 --profile quick --out $(SANITIZE)/report-sim; \
	$(SANITIZE)/venv/bin/python -m pytest -q tests/backend/test_native.py tests/calls/test_dispatch.py

clean:  ## remove everything that make has made
	rm -rf $(VENV) $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: constraints.txt pyproject.toml $(NATIVE_SOURCES) | $(VENV)/bin/python
	$(PIP) install -c constraints.txt $(BUILD_REQUIRES)
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[cli]'
	@touch $@

# The developers' install has the simulated GPUs beside the CPU backend.
# The libraries of spiking networks that ours are compared with come without what they ask for: CUDA's torchvision.
$(VENV)/.dev: constraints.txt pyproject.toml $(NATIVE_SOURCES) | $(VENV)/.installed
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]' --config-settings=sbhal.backends="cpu;sim;maca"
	$(PIP) install -c constraints.txt --no-deps --no-warn-conflicts spikingjelly snntorch loguru
	@touch $@

# Environments that borrow the first one's packages; of its editable install only what a .pth file imports.
borrow = $(PYTHON) -m venv --without-pip $(1); \
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth

# Compiles only what is run. Its simulated wavefront of 32 has no matrix unit, which no other build has.
$(SANITIZE)/.installed: BUILD = --config-settings=sbhal.backends="cpu;sim" \
  --config-settings=cmake.define.SBHAL_SIM_WAVES=32 --config-settings=cmake.define.SBHAL_CPU_ISAS=$$($(BEST_ISA))
$(SANITIZE)-full/.installed: BUILD = --config-settings=sbhal.backends="sim;maca"
$(SANITIZE)/.installed $(SANITIZE)-full/.installed: $(VENV)/.dev $(NATIVE_SOURCES) $(shell find spikingbrain_hal -name '*.py')
	$(call borrow,$(@D)/venv)
	$(PIP) --python $(@D)/venv/bin/python install --no-deps --no-build-isolation --force-reinstall . $(BUILD) \
	  --config-settings=cmake.define.SBHAL_SANITIZE=address,undefined \
	  --config-settings=cmake.define.SBHAL_SIM_MATRIX_UNITS=OFF \
	  --config-settings=build-dir=$(@D)/build --config-settings=install.strip=false
	@touch $@

# The oldest and the newest transformers that models are served for, each in an environment of its own; .dev has another.
define install_transformers
$(call borrow,$(1))
$(PIP) --python $(1)/bin/python install --no-deps --no-build-isolation -e . --config-settings=sbhal.backends="cpu;sim;maca"
$(PIP) --python $(1)/bin/python install --no-warn-conflicts $(2)
endef

$(OLD_TRANSFORMERS)/.installed: constraints.txt $(VENV)/.dev
	$(call install_transformers,$(OLD_TRANSFORMERS),"transformers==4.55.0" "huggingface_hub<1" "tokenizers<0.22")
	@touch $@

$(NEW_TRANSFORMERS)/.installed: constraints.txt $(VENV)/.dev
	$(call install_transformers,$(NEW_TRANSFORMERS),"transformers==5.24.0")
	@touch $@

# The oldest torch that is claimed. Its only wheel is built for CUDA, which it loads whole.
$(OLD_TORCH)/.installed: constraints.txt $(VENV)/.dev
	$(call borrow,$(OLD_TORCH))
	$(PIP) --python $(OLD_TORCH)/bin/python install --no-deps --no-build-isolation -e . --config-settings=sbhal.backends="cpu;sim;maca"
	$(PIP) --python $(OLD_TORCH)/bin/python install --no-warn-conflicts torch==2.6.0
	@touch $@
