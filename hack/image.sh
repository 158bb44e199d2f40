#!/usr/bin/env bash
# Builds Perch's image from a static binary that is built here, so no image registry is needed.
#
#   hack/image.sh [--tag NAME] [--profile release|dev] [--binary FILE] [--sbom]
#
# Prints the image's name; what happens on the way goes to standard error, with the sizes. --sbom
# also writes target/perch.cdx.json: every crate in the binary, as CycloneDX.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
tag=perch.local/perch:$version
profile=release
binary=
sbom=
while [ $# -gt 0 ]; do
    case "$1" in
    --tag) tag=$2 && shift 2 ;;
    --profile) profile=$2 && shift 2 ;;
    --binary) binary=$2 && shift 2 ;;
    --sbom) sbom=yes && shift ;;
    *) fail "there is no option $1: see the first lines of $0" ;;
    esac
done

triple=$(rustc -vV | sed -n 's/^host: //p')
case "$triple" in
x86_64-*) arch=amd64 ;;
aarch64-*) arch=arm64 ;;
*) fail "no image for $triple" ;;
esac

if [ -z "$binary" ]; then
    say "building a static perch ($profile)"
    # As hack/test.sh does, so that they share what they build.
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked --profile "$profile" --bin perch \
        --target "$triple" --target-dir target/static
    binary=target/static/$triple/${profile/dev/debug}/perch
fi
[ -f "$binary" ] || fail "$binary does not exist"
# A program that names an interpreter is not static, and does not start in an empty image.
if readelf --program-headers "$binary" | grep -q INTERP; then
    fail "$binary is not static: build it with RUSTFLAGS='-C target-feature=+crt-static' and --target $triple"
fi

certificates=/etc/ssl/certs/ca-certificates.crt
[ -f "$certificates" ] || fail "$certificates is missing: install ca-certificates"
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
mkdir -p "$context/linux/$arch"
install -m 755 "$binary" "$context/linux/$arch/perch"
install -m 644 "$certificates" "$context/linux/$arch/ca-certificates.crt"
[ "$profile" = release ] || strip --strip-debug "$context/linux/$arch/perch"

say "building $tag"
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
cp Dockerfile "$context/"
# The builder of old goes through the stages up to the target and no further, BuildKit takes those
# that it needs: neither looks at the stage that needs a registry.
docker build --quiet --tag "$tag" --target prebuilt --build-arg TARGETARCH="$arch" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" "$context" >&2
say "$(docker run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges "$tag" --version) starts in it"
size=$(docker image inspect --format '{{.Size}}' "$tag")
packed=$(docker save "$tag" | gzip | wc -c)
say "size: $((size / 1000000)) MB, $((packed / 1000000)) MB to transfer"

if [ -n "$sbom" ]; then
    tool=$PWD/target/tools/bin/cargo-cyclonedx
    if [ ! -x "$tool" ]; then
        say "installing cargo-cyclonedx into target/tools"
        cargo install --quiet --locked --root target/tools cargo-cyclonedx@0.5.9 >&2
    fi
    # It writes beside Cargo.toml.
    "$tool" cyclonedx --quiet --format json --spec-version 1.5 --target "$triple" --override-filename perch.cdx
    # Where it was built is nobody's business.
    sed "s|path+file://$PWD#|pkg:cargo/|g" perch.cdx.json >target/perch.cdx.json
    rm perch.cdx.json
    say "bill of materials: target/perch.cdx.json, $(grep -c '"purl"' target/perch.cdx.json) packages"
fi
echo "$tag"
