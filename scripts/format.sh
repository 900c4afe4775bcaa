#!/usr/bin/env bash
# Formats all C++ and CUDA files in place; with --check only says which differ, and fails if one does.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(git ls-files --cached --others --exclude-standard \
  'phalanx/*' 'apps/*' 'tests/*' 'bench/*' 'python/*' 'examples/*' |
  grep -E '\.(h|cc|cu|cuh)$' | grep -v '^tests/style/fixtures/' |
  while read -r file; do [ ! -e "$file" ] || echo "$file"; done)
[ ${#files[@]} -gt 0 ] || exit 0
if [ "${1:-}" = "--check" ]; then
  mapfile -t wrong < <(for file in "${files[@]}"; do
    clang-format "$file" | cmp -s - "$file" || echo "$file"
  done)
  [ ${#wrong[@]} -eq 0 ] && exit 0
  printf '%s: not as clang-format writes it\n' "${wrong[@]}"
  echo "make format mends this."
  exit 1
fi
exec clang-format -i "${files[@]}"
