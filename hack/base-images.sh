#!/usr/bin/env bash
# Makes the image on which npm and PyPI packages are built, from Debian packages, for machines
# that reach no image registry. Prints its name. Needs root and a Docker engine; installs
# mmdebstrap by apt when it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

image=perch.local/base:bookworm-1
if docker image inspect "$image" >/dev/null 2>&1; then
    echo "$image"
    exit 0
fi
if ! command -v mmdebstrap >/dev/null; then
    echo "installing mmdebstrap by apt, to make a base image" >&2
    apt-get update -qq >&2 && apt-get install -y -qq --no-install-recommends mmdebstrap >&2
fi
mkdir -p target/images
root=target/images/base-root.tar
if [ ! -f "$root" ]; then
    echo "making a Debian root with Node.js and Python (about a minute)" >&2
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,nodejs,npm,python3,python3-venv \
        bookworm "${root%.tar}.new.tar" >&2
    mv "${root%.tar}.new.tar" "$root"
fi
docker import "$root" perch.local/base-root:bookworm >/dev/null
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
# The image trusts whom this machine trusts: behind a company's proxy nothing could be installed
# otherwise.
cp /etc/ssl/certs/ca-certificates.crt "$context/ca.crt"
cat >"$context/Dockerfile" <<'DOCKERFILE'
FROM perch.local/base-root:bookworm
COPY ca.crt /etc/ssl/certs/ca-certificates.crt
ENV PATH=/usr/local/bin:/usr/bin:/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN npm install --global --no-audit --no-fund --loglevel=error node@22
DOCKERFILE
docker build --quiet --tag "$image" "$context" >/dev/null
echo "$image"
