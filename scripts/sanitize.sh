#!/usr/bin/env bash
# sanitize.sh asan|tsan [folder…]: builds the tests of the folders under a sanitizer and runs them.
# Without folders: those whose mistakes are races, lifetimes and bytes on disk.
set -euo pipefail
cd "$(dirname "$0")/.."
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
exec "${run[@]}" ctest --preset "$preset" -j "$jobs" --no-tests=error -L "^($labels)\$" -LE '^(full|cuda)$'
