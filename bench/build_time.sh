#!/usr/bin/env bash
# How long a clean build of library and command takes, how long after one file has changed, and how long
# `phalanx --help`; or a clean build of all that the preset `cuda` has. Builds in build/time without a
# compiler cache.   bench/build_time.sh [cores] [cuda]
set -euo pipefail
cd "$(dirname "$0")/.."
jobs=${1:-$(nproc)}
what=${2:-cpu}
export CCACHE_DISABLE=1
rm -rf build/time

seconds() {  # seconds command…
  local start end
  start=$(date +%s.%N)
  "$@" >/dev/null
  end=$(date +%s.%N)
  awk -v a="$start" -v b="$end" 'BEGIN { printf "%.2f", b - a }'
}

if [ "$what" = cuda ]; then
  cmake --preset cuda -B build/time >/dev/null
  printf '%-46s %8s s\n' "clean build of the preset cuda, $jobs jobs" \
    "$(seconds cmake --build build/time -j "$jobs")"
  rm -rf build/time
  exit
fi

configure() { cmake -S . -B build/time -G Ninja -DCMAKE_BUILD_TYPE=Release -DPHALANX_TESTS=OFF; }
build() { cmake --build build/time -j "$jobs" --target phalanx; }
help() { for _ in 1 2 3 4 5 6 7 8 9 10; do build/time/bin/phalanx --help; done; }

configure >/dev/null
printf '%-46s %8s s\n' "clean build of library and command, $jobs jobs" "$(seconds build)"
for file in train/step.cc model/moe.cc ops/attention_backward.cc base/config.cc; do
  touch "phalanx/$file"
  printf '%-46s %8s s\n' "again after $file" "$(seconds build)"
done
printf '%-46s %8s s\n' "phalanx --help, ten times" "$(seconds help)"
rm -rf build/time
