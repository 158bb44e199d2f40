#!/usr/bin/env bash
# Prints the folder that holds prometheus and promtool: the one on PATH, or that of Debian's package
# unpacked into target/, which installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    dirname "$(command -v prometheus)"
    exit
fi
root=$PWD/target/prometheus
[ -x "$root/usr/bin/prometheus" ] || hack/debian-package.sh prometheus "$root"
echo "$root/usr/bin"
