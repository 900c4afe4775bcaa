#!/usr/bin/env bash
# install_deps.sh [group…]: installs what is missing of these groups of debian-packages.txt (else "build").
# When nothing is missing it says nothing, needs no network and ends at once.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
groups=("${@:-build}")

fail() { echo "install_deps: $*" >&2; exit 1; }

packages_of() {  # the packages of group $1
  awk -v group="[$1]" '/^\[/ { on = ($1 == group) } /^[a-z0-9]/ && on { print $1 }' \
    "$here/debian-packages.txt"
}

wanted=()
for group in "${groups[@]}"; do
  mapfile -t found < <(packages_of "$group")
  [ ${#found[@]} -gt 0 ] || fail "no group [$group] in scripts/debian-packages.txt."
  wanted+=("${found[@]}")
done

command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
  fail "this machine has no apt; install by other means what these provide, then use cmake --preset dev:" \
    "${wanted[*]}"

installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null |
            awk '$1 == "installed" { print $2 }' || true)
missing=()
for package in "${wanted[@]}"; do
  grep -qxF -- "$package" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null ||
    fail "packages are missing, and this is neither root nor is there sudo; as root:" \
      "apt-get install ${missing[*]}"
  as_root=(sudo)
  [ -t 0 ] || as_root=(sudo -n)
fi

echo "Installing ${#missing[@]} Debian packages (and what they depend on):"
echo "  ${missing[*]}"
log=$(mktemp "${TMPDIR:-/tmp}/phalanx-install-deps.XXXXXX.log")
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y
     -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30
     -o DPkg::Lock::Timeout=600)
# An update that fails is not yet the end: one unreachable source of several may not matter.
"${apt[@]}" -o APT::Update::Error-Mode=any update >"$log" 2>&1 </dev/null || true
if ! "${apt[@]}" install --no-install-recommends "${missing[@]}" >>"$log" 2>&1 </dev/null; then
  fail "apt-get could not install ${missing[*]}: is this machine offline? It said" \
    "\"$(grep -m1 '^E:' "$log" || tail -n1 "$log")\" (all of it is in $log)."
fi
rm -f "$log"
echo "Installed."
