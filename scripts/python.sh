#!/usr/bin/env bash
# Builds the Python package into build/python (a virtual environment) and tests it there.
# With PyTorch, when --torch is given (gigabytes: PyPI's has CUDA in it) or it lies there already.
set -euo pipefail
cd "$(dirname "$0")/.."
here=build/python
fail() { echo "python: $*" >&2; exit 1; }

[ -x "$here/bin/python" ] || python3 -m venv "$here" ||
  fail "python3 cannot make virtual environments; on Debian: apt-get install python3-venv."
pip() {
  "$here/bin/python" -m pip --disable-pip-version-check -q "$@" ||
    fail "pip $* did not succeed (it says why above); it needs PyPI."
}
export CC=${CC:-cc} CXX=${CXX:-c++}  # by which name ccache knows them
export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)}
pip install pytest numpy ml_dtypes
[ "${1:-}" != "--torch" ] || pip install torch
# As `make test` builds the library, assertions included, and as far from the sources: ccache has most of it.
pip install --force-reinstall --no-deps --config-settings=cmake.build-type=RelWithDebInfo \
  --config-settings=build-dir="$PWD/build/python_module" ./python
exec "$here/bin/python" -B -m pytest -p no:cacheprovider python/tests
