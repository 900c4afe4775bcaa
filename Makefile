# A thin front: each target is one or two commands you may also type yourself.
JOBS ?= $(shell nproc)
export JOBS

help:            ## this list
	@awk -F':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

deps:            ## install the Debian packages that are missing
	@scripts/install_deps.sh build

build: deps      ## build library, command and tests (build/dev)
	@cmake --preset dev >/dev/null
	@cmake --build --preset dev -j $(JOBS)

test: build      ## build and run all tests but the slow ones
	@ctest --preset dev -j $(JOBS) --no-tests=error -LE '^(full|cuda)$$'

test-full: build ## build and run all tests, the slow ones too
	@ctest --preset dev -j $(JOBS) --no-tests=error -LE '^cuda$$'

python: deps     ## build the Python package into build/python and test it (TORCH=1: with PyTorch, which is large)
	@scripts/install_deps.sh python
	@scripts/python.sh $(if $(TORCH),--torch)

demo:            ## train a small mixture of experts and let it speak (TEXT=FILE: on your text)
	@scripts/demo.sh $(if $(TEXT),--text "$(TEXT)")

bench: deps      ## build the benchmarks (build/release/bin/phalanx_bench_*) and list them
	@cmake --preset release >/dev/null
	@cmake --build --preset release -j $(JOBS) --target phalanx_bench
	@ls build/release/bin/phalanx_bench_* 2>/dev/null || echo "No benchmarks yet."

asan: deps       ## run tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@scripts/sanitize.sh asan

tsan: deps       ## run tests under ThreadSanitizer
	@scripts/sanitize.sh tsan

format:          ## format all C++ files in place
	@scripts/install_deps.sh lint
	@scripts/format.sh

lint:            ## check format, style limits and rules, then clang-tidy (slow)
	@scripts/install_deps.sh build lint
	@scripts/lint.sh

clean:           ## remove everything that was built
	rm -rf build out

.PHONY: help deps build test test-full python demo bench asan tsan format lint clean
