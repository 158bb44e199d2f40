#!/usr/bin/env bash
# Puts what the cluster harness starts into target/testbin/ (or PERCH_TESTBIN): Kubernetes and its
# companions from their Go modules, etcd, containerd, runc and the CNI plugins from Debian.
#
#   hack/cluster-tools.sh                 builds all that is missing
#   hack/cluster-tools.sh kube-apiserver  builds only the programs named
#   hack/cluster-tools.sh --level control-plane|workloads|node
#
# The first build takes 20 to 25 minutes on two busy cores; afterwards nothing is left to do.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=${PERCH_TESTBIN:-$root/target/testbin}
mkdir -p "$out"

say() { printf '== %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Program, folder under tests/cluster/tools, Go package.
tools='
kube-apiserver           kubernetes  k8s.io/kubernetes/cmd/kube-apiserver
kubectl                  kubernetes  k8s.io/kubernetes/cmd/kubectl
kube-controller-manager  kubernetes  k8s.io/kubernetes/cmd/kube-controller-manager
kube-scheduler           kubernetes  k8s.io/kubernetes/cmd/kube-scheduler
kubelet                  kubernetes  k8s.io/kubernetes/cmd/kubelet
kube-proxy               kubernetes  k8s.io/kubernetes/cmd/kube-proxy
kwok                     kwok        sigs.k8s.io/kwok/cmd/kwok
helm                     helm        helm.sh/helm/v4/cmd/helm
coredns                  coredns     .
pause                    pause       .
probe                    probe       .
opa                      opa         github.com/open-policy-agent/opa
'

control_plane='kube-apiserver kubectl httproutes.yaml'
workloads="$control_plane kube-controller-manager kube-scheduler kwok"
node="$workloads kubelet kube-proxy coredns pause probe helm"
packages='etcd-server'

case "${1:-}" in
--level)
    case "${2:-}" in
    control-plane) wanted=$control_plane ;;
    workloads) wanted=$workloads ;;
    node)
        wanted=$node
        packages='etcd-server containerd runc containernetworking-plugins iptables iproute2'
        ;;
    *) fail "the level is one of control-plane, workloads and node" ;;
    esac
    ;;
'')
    wanted="$node opa"
    packages='etcd-server containerd runc containernetworking-plugins iptables iproute2'
    ;;
*)
    wanted="$*"
    packages=
    ;;
esac

# The version of a module in its tool folder.
version_of() { sed -n "s#^\(require\)\?[[:space:]]*$2 \(v[^ ]*\).*#\2#p" "tests/cluster/tools/$1/go.mod" | head -1; }

build() {
    local name=$1 folder=$2 package=$3 version minor flags
    command -v go >/dev/null || fail "Go is needed to build $name (go.dev/doc/install)"
    flags='-s -w'
    if [ "$folder" = kubernetes ]; then
        # Programs built from a module do not know their version; clients and Helm ask for it.
        version=$(version_of kubernetes k8s.io/kubernetes)
        minor=${version#v1.}
        minor=${minor%%.*}
        for p in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
            flags="$flags -X $p.gitVersion=$version -X $p.gitMajor=1 -X $p.gitMinor=$minor -X $p.gitTreeState=clean"
        done
    fi
    say "building $name"
    (cd "tests/cluster/tools/$folder" &&
        GOFLAGS="-mod=mod -p=${PERCH_GO_JOBS:-2}" CGO_ENABLED=0 \
            go build -trimpath -buildvcs=false -ldflags="$flags" -o "$out/.$name" "$package")
    if [ "$name" = kwok ]; then
        # What it plays: the stages that come with it.
        (cd "tests/cluster/tools/kwok" && stages=$(go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage &&
            for stage in "$stages"/node/fast/node-*.yaml "$stages"/node/heartbeat-with-lease/node-*.yaml \
                "$stages"/pod/fast/pod-*.yaml; do
                echo ---
                cat "$stage"
            done) >"$out/kwok.yaml"
    fi
    mv "$out/.$name" "$out/$name"
}

while read -r name folder package; do
    [ -n "$name" ] || continue
    case " $wanted " in *" $name "*) ;; *) continue ;; esac
    [ -x "$out/$name" ] || build "$name" "$folder" "$package"
done <<<"$tools"

# The definition of HTTPRoutes, as the Gateway API publishes it.
case " $wanted " in *' httproutes.yaml '*)
    if [ ! -s "$out/httproutes.yaml" ]; then
        command -v go >/dev/null || fail "Go is needed to fetch httproutes.yaml (go.dev/doc/install)"
        say "fetching httproutes.yaml"
        (cd tests/cluster/tools/gateway-api && export GOFLAGS=-mod=mod && go mod download sigs.k8s.io/gateway-api &&
            folder=$(go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd/standard &&
            cat "$folder/gateway.networking.k8s.io_httproutes.yaml") >"$out/.httproutes.yaml"
        mv "$out/.httproutes.yaml" "$out/httproutes.yaml"
    fi
    ;;
esac

# Which Debian package has which program.
program_of() {
    case $1 in
    etcd-server) command -v etcd ;;
    containernetworking-plugins) test -x /usr/lib/cni/bridge || test -x /opt/cni/bin/bridge ;;
    iproute2) command -v ip ;;
    *) command -v "$1" ;;
    esac
}
absent=()
for p in $packages; do
    program_of "$p" >/dev/null 2>&1 || absent+=("$p")
done
if [ ${#absent[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "install these packages: ${absent[*]}"
    say "installing ${absent[*]} by apt"
    # The services of these packages must not start: the harness starts its own.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${absent[@]}" >/dev/null
fi
