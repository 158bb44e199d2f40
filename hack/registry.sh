#!/usr/bin/env bash
# Prints the path of docker-registry: the one on PATH, or that of Debian's package unpacked into
# target/, which installs and starts nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v docker-registry; then
    exit
fi
root=$PWD/target/registry
if [ ! -x "$root/usr/bin/docker-registry" ]; then
    command -v apt-get >/dev/null || { echo "docker-registry is not on PATH, and there is no apt to get it from" >&2; exit 1; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (
        cd "$work"
        # As root, apt fetches as a user who may not write into the folder of another.
        apt-get -o APT::Sandbox::User=root -qq download docker-registry >&2
        dpkg-deb -x docker-registry_*.deb root
    )
    mkdir -p "$(dirname "$root")"
    mv "$work/root" "$root"
fi
echo "$root/usr/bin/docker-registry"
