#!/usr/bin/env bash
# sanitize.sh [--quick] asan|tsan [folder…]: builds the tests of the folders under a sanitizer and runs them.
# Without folders: those whose mistakes are races, lifetimes and bytes on disk.
# --quick, which is CI's: without the command and the tests that launch it, and without sweeps over whole
# models that compare numbers, for an hour has no room for them. `make asan` and `make tsan` run all.
set -euo pipefail
cd "$(dirname "$0")/.."
quick=
if [ "$1" = --quick ]; then
  quick=yes
  shift
fi
preset=$1
shift
folders=("$@")
[ ${#folders[@]} -gt 0 ] || folders=(base tensor comm ep parallel train)
jobs=${JOBS:-$(nproc)}

targets=()
labels=
for folder in "${folders[@]}"; do
  compgen -G "tests/$folder/*_test.*" >/dev/null || continue
  labels+="${labels:+|}$folder"
  if compgen -G "tests/$folder/*_test.cc" >/dev/null; then
    targets+=("test_$folder")
  fi
  [ -z "$quick" ] || continue
  if compgen -G "tests/$folder/*_test.sh" >/dev/null || compgen -G "tests/$folder/*_test.py" >/dev/null; then
    targets+=(phalanx)
  fi
done
if [ -z "$labels" ]; then
  echo "sanitize: no tests yet in: ${folders[*]}"
  exit 0
fi

cmake --preset "$preset" >/dev/null
cmake --build --preset "$preset" -j "$jobs" --target "${targets[@]}"
# g++ 12's ThreadSanitizer stops at start where the kernel spreads addresses widely: not so with -R.
run=()
if setarch -R true 2>/dev/null; then
  run=(setarch -R)
fi
chosen=(-L "^($labels)\$" -LE '^(full|cuda)$')
numbers='VerifyModels|MemoryTest|GradientTest|ProfileTest|ModelOptions'
[ -z "$quick" ] || chosen+=(-E "_test[.](py|sh)\$|$numbers")
exec "${run[@]}" ctest --preset "$preset" -j "$jobs" --no-tests=error "${chosen[@]}"
