#!/usr/bin/env bash
# The demo: build, fetch a text, train a small mixture of experts on it, let it speak.
#   scripts/demo.sh [--text FILE] [--out DIR]     (or: make demo)
set -euo pipefail
cd "$(dirname "$0")/.."
text=data/shakespeare.txt own=0 out=out/demo

while [ $# -gt 0 ]; do
  case "$1" in
    --text) text=${2:?--text needs a file} own=1; shift 2 ;;
    --out) out=${2:?--out needs a directory}; shift 2 ;;
    *) echo "demo: unknown option $1; usage: scripts/demo.sh [--text FILE] [--out DIR]" >&2; exit 2 ;;
  esac
done

scripts/install_deps.sh build demo
echo "== build"
cmake --preset release >/dev/null
cmake --build --preset release -j "${JOBS:-$(nproc)}" --target phalanx
if [ "$own" -eq 0 ]; then
  echo "== text"
  python3 -B scripts/fetch_text.py "$text"
fi
phalanx=build/release/bin/phalanx
mkdir -p "$out"
echo "== train: configs/demo_moe.toml, 4 ranks (threads)"
"$phalanx" train configs/demo_moe.toml --text "$text" --set train.out="$out" \
  --report "$(dirname "$out")/report.html"
echo "== generate"
"$phalanx" generate --model "$out" --prompt "ROMEO:" --tokens 500 --temperature 0.8 --seed 1
echo
echo "The report: $(dirname "$out")/report.html"
echo "More text:  $phalanx generate --model $out --prompt \"JULIET:\" --tokens 500 --seed 2"
