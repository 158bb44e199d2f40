#!/usr/bin/env bash
# Renders manifests/install.yaml from charts/perch. With --check it changes nothing, and fails when
# the file is not current. Needs Helm 3.17 or newer: on the path, or built by hack/cluster-tools.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

helm=${PERCH_TESTBIN:-target/testbin}/helm
[ -x "$helm" ] || helm=$(command -v helm) || fail "no helm: hack/cluster-tools.sh helm builds it"

render() {
    cat manifests/install/head.yaml
    # A file that is read by people needs no notes on who rendered it.
    "$helm" template perch charts/perch --namespace perch-system --values manifests/install/values.yaml \
        --skip-tests | sed -e '/^ *helm\.sh\/chart: /d' -e '/^ *app\.kubernetes\.io\/managed-by: Helm$/d' -e '/^ *$/d'
}

new=$(mktemp)
trap 'rm -f "$new"' EXIT
render >"$new"
if [ "${1:-}" = --check ]; then
    cmp --silent "$new" manifests/install.yaml || fail "manifests/install.yaml is stale: run hack/manifests.sh"
else
    cp "$new" manifests/install.yaml
    chmod 644 manifests/install.yaml
fi
