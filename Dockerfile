# Perch in an image of its own: one static binary, the certificates of public authorities, and
# nothing else. Needs BuildKit.
#
#   docker build --tag perch .                                      builds perch in a container
#   docker buildx build --platform linux/amd64,linux/arm64 .        for both, without emulation
#   hack/image.sh                                                   takes a binary that was built here

# Where the binary comes from: `build` makes it, `prebuilt` takes it from the context.
ARG BINARY=build

FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
ARG TARGETARCH
WORKDIR /src
RUN case "$TARGETARCH" in \
        amd64) triple=x86_64-unknown-linux-gnu gcc=x86-64-linux-gnu libc=libc6-dev-amd64-cross ;; \
        arm64) triple=aarch64-unknown-linux-gnu gcc=aarch64-linux-gnu libc=libc6-dev-arm64-cross ;; \
        *) echo "no support for $TARGETARCH" >&2; exit 1 ;; \
    esac \
    && echo "$triple" >/triple \
    && if [ "$triple" != "$(rustc -vV | sed -n 's/^host: //p')" ]; then \
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "gcc-$gcc" "$libc"; \
    fi \
    && rustup target add "$triple"
COPY . .
ENV RUSTFLAGS="-C target-feature=+crt-static" \
    CC_x86_64_unknown_linux_gnu=x86_64-linux-gnu-gcc \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_LINKER=x86_64-linux-gnu-gcc \
    CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# --target keeps the flags from build scripts, which must not be static.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --locked --release --bin perch --target "$(cat /triple)" \
    && install -D "target/$(cat /triple)/release/perch" /out/perch \
    && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /out/ca-certificates.crt

FROM scratch AS prebuilt
ARG TARGETARCH
COPY linux/$TARGETARCH /out

FROM ${BINARY} AS binary

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="perch" \
    org.opencontainers.image.description="MCP servers as Kubernetes objects: operator, gateway and bridge" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
COPY --from=binary /out/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=binary /out/perch /perch
# Of no name, and nothing belongs to it. The root can be read-only.
USER 10001:10001
ENTRYPOINT ["/perch"]
