#!/bin/sh
# Build the .deb and the .rpm into out/packages, for this machine or for GOARCH.
# Two builds of one commit give the same bytes, unless VERSION says otherwise.
# OUT is another folder, KINDS fewer packages.
set -eu
umask 022
cd "$(dirname "$0")/.."
VERSION=${VERSION:-$(deploy/version.sh)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
GOARCH=${GOARCH:-$(go env GOARCH)}
export VERSION SOURCE_DATE_EPOCH
out=${OUT:-out/packages}
stage=out/packages/stage # as nfpm.yaml has it
rm -rf "$stage"
mkdir -p "$stage/host" "$out"
programs() { # programs DIR GOARCH: static, without what only a debugger reads
	GOARCH=$2 CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X guywire/mesh/api.version=$VERSION" -o "$1/" ./cmd/meshd ./cmd/meshctl
}
programs "$stage" "$GOARCH"
programs "$stage/host" "$(go env GOHOSTARCH)" # what runs here writes the manual
for program in meshd meshctl; do
	"$stage/host/$program" man | gzip -9n >"$stage/$program.8.gz"
done
for shell in bash zsh fish; do
	"$stage/host/meshctl" completion "$shell" >"$stage/meshctl.$shell"
done
"$stage/host/meshd" --example >"$stage/meshd.yaml"
gzip -9nc docs/cli.md >"$stage/cli.md.gz"
for kind in ${KINDS:-deb rpm}; do
	ARCH=$GOARCH go tool -modfile=integration/nfpm.mod nfpm package -f deploy/nfpm.yaml -p "$kind" -t "$out/"
done
rm -rf "$stage"
