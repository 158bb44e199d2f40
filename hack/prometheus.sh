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
if [ ! -x "$root/usr/bin/prometheus" ]; then
    command -v apt-get >/dev/null || { echo "prometheus is not on PATH, and there is no apt to get it from" >&2; exit 1; }
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (
        cd "$work"
        # As root, apt fetches as a user who may not write into the folder of another.
        apt-get -o APT::Sandbox::User=root -qq download prometheus >&2
        dpkg-deb -x prometheus_*.deb root
    )
    mkdir -p "$(dirname "$root")"
    mv "$work/root" "$root"
fi
echo "$root/usr/bin"
