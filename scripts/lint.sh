#!/usr/bin/env bash
# Format, the ratchet, the rules of tests/style/lint.py, then clang-tidy over the files of build/dev
# (only those named, when files are named).
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/format.sh --check
python3 -B tests/style/ratchet.py
python3 -B tests/style/lint.py
if ! command -v clang-tidy >/dev/null; then
  echo "lint: clang-tidy is missing: make lint installs it." >&2
  exit 1
fi
cmake --preset dev >/dev/null
files=("$@")
[ ${#files[@]} -gt 0 ] || mapfile -t files < <(git ls-files 'phalanx/*.cc' 'apps/*.cc' |
  while read -r file; do ! grep -qF "/$file\"" build/dev/compile_commands.json || echo "$file"; done)
# clang 14 has coroutines but does not say so to the standard library of g++ 12.
echo "clang-tidy over ${#files[@]} files: minutes."
printf '%s\n' "${files[@]}" |
  xargs -r -n 1 -P "${JOBS:-$(nproc)}" clang-tidy -p build/dev --quiet \
    --extra-arg=-D__cpp_impl_coroutine=201902L --extra-arg=-Wno-unknown-warning-option 2>&1 |
  { grep -vE '^[0-9]+ (warnings|errors)? ?(and [0-9]+ errors? )?generated\.$' || true; }  # in system headers
