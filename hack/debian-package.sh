#!/usr/bin/env bash
# Unpacks a package of Debian's into a folder, which installs and starts nothing:
# hack/debian-package.sh NAME FOLDER
set -euo pipefail

name=$1 folder=$2
command -v apt-get >/dev/null || { echo "$name is not on PATH, and there is no apt to get it from" >&2; exit 1; }
mkdir -p "$(dirname "$folder")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(
    cd "$work"
    # As root, apt fetches as a user who may not write into the folder of another.
    apt-get -o APT::Sandbox::User=root -qq download "$name" >&2
    dpkg-deb -x "$name"_*.deb root
)
# Whole or not at all.
mv "$work/root" "$folder"
