#!/usr/bin/env bash
# The demo: fetch a text, build, train a small mixture of experts on it, let it speak.
#   scripts/demo.sh [--text FILE] [--out DIR]     (or: make demo [TEXT=FILE])
# DIR (out) gets report.html and demo/, the checkpoints.
set -euo pipefail

fail() { echo "demo: $*" >&2; exit 1; }
absolute() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

text=data/shakespeare.txt own=0 out=out
while [ $# -gt 0 ]; do
  case "$1" in
    --text) text=$(absolute "${2:?--text needs a file}") own=1; shift 2 ;;
    --out) out=$(absolute "${2:?--out needs a directory}"); shift 2 ;;
    *) echo "demo: unknown option $1; usage: scripts/demo.sh [--text FILE] [--out DIR]" >&2; exit 2 ;;
  esac
done
[ "$own" -eq 0 ] || { [ -f "$text" ] && [ -r "$text" ]; } || fail "cannot read the text $text."

cd "$(dirname "$0")/.."
mkdir -p build
exec 9>build/demo.lock  # two builds in one directory would disturb each other
flock -n 9 || fail "another demo is running in $PWD: wait until it has ended."

scripts/install_deps.sh build demo
if [ "$own" -eq 0 ]; then
  python3 -B scripts/fetch_text.py "$text"  # before the build, which takes minutes
fi
echo "== build (minutes the first time, seconds after)"
cmake --preset release >/dev/null
cmake --build --preset release -j "${JOBS:-$(nproc)}" --target phalanx
phalanx=build/release/bin/phalanx

echo "== train: configs/demo_moe.toml, 4 ranks (threads)"
mkdir -p "$out"
"$phalanx" train configs/demo_moe.toml --text "$text" --set train.out="$out/demo" --report "$out/report.html"

prompt="ROMEO:"
if [ "$own" -eq 1 ]; then  # the first word of the text, whose characters the model knows
  prompt=$(python3 -c '
import sys
words = open(sys.argv[1], encoding="utf-8", errors="ignore").read(9999).split()
print(words[0][:20] if words else ".")' "$text")
fi
echo "== generate"
"$phalanx" generate --model "$out/demo" --prompt "$prompt" --tokens 500 --temperature 0.8 --seed 1
echo
echo "The report: $out/report.html"
echo "More text:  $phalanx generate --model $out/demo --prompt \"$prompt\" --tokens 500 --seed 2"
