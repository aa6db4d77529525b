#!/usr/bin/env bash
# Build versitygw, a real S3 server for the tests, from its Go module: build.sh [--cached] FOLDER
#
# Prints where the binary is. Builds it only if go.mod or go.sum changed; with --cached it builds nothing and ends with
# 1 then. It needs the Go that go.mod names, and the module proxy; takes two to five minutes on two cores, once.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
is_cached_only=no
[[ ${1:-} != --cached ]] || { is_cached_only=yes && shift; }
target=${1:?usage: build.sh [--cached] FOLDER}
fingerprint=$(cat "$here"/{go.mod,go.sum,build.sh} | sha256sum)
if [[ -r $target/sources && $(<"$target/sources") == "$fingerprint" ]]; then
    echo "$target/versitygw"
    exit
fi
[[ $is_cached_only == no ]] || exit 1

mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$work"' EXIT
cp "$here"/{go.mod,go.sum} "$work"
cd "$work"
# The machine's own Go settings do not count: the same sources make the same binary.
GOFLAGS=-mod=readonly CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o versitygw \
    github.com/versity/versitygw/cmd/versitygw
echo "$fingerprint" >sources
chmod -R a+rX,go-w .
rm -rf "$target"
trap - EXIT
mv "$work" "$target"
echo "$target/versitygw"
