#!/usr/bin/env bash
# Prints the path of docker-registry: the one on PATH, or that of Debian's package unpacked into
# target/, which installs and starts nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v docker-registry; then
    exit
fi
root=$PWD/target/registry
[ -x "$root/usr/bin/docker-registry" ] || hack/debian-package.sh docker-registry "$root"
echo "$root/usr/bin/docker-registry"
