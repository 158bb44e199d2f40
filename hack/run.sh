#!/usr/bin/env bash
# Builds perch and runs the samples: in containers where a Docker engine answers, else as processes.
# Installs nothing, except that on a machine whose engine reaches no image registry, as root, base
# images are made from Debian packages (hack/base-images.sh).
set -euo pipefail
cd "$(dirname "$0")/.."

echo "building perch (the first time takes some minutes)"
cargo build --quiet
args=(up --apply manifests/samples/quickstart.yaml --data-dir "${PERCH_DATA_DIR:-$PWD/perch-data}")
if docker version >/dev/null 2>&1; then
    if ! docker image inspect node:22-slim python:3.13-slim >/dev/null 2>&1 &&
        ! { docker pull --quiet node:22-slim && docker pull --quiet python:3.13-slim; } >/dev/null 2>&1; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            echo "no image registry can be reached: making base images from Debian packages"
            base=$(hack/base-images.sh)
            args+=(--npm-base-image "$base" --pypi-base-image "$base")
        else
            echo "no image registry can be reached: servers run as processes"
            args+=(--runtime process)
        fi
    fi
else
    for tool in node npm python3; do
        command -v "$tool" >/dev/null || echo "warning: $tool is not on PATH, and without Docker the samples need it"
    done
fi
exec target/debug/perch "${args[@]}"
