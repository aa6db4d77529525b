#!/usr/bin/env bash
# Build runsc from gVisor's own Go module, pinned by go.mod and go.sum, as official builds are made:
# with seccomp programs that are compiled beforehand, and with the sandbox process as gvisor-bin/gvisor_sentry.
#
#   build.sh FOLDER            the release of this folder's go.mod, to FOLDER/release-YYYYMMDD.0/
#   build.sh FOLDER 20250503   an older release (releases/20250503), plain: its sentry is runsc itself
#
# Prints the folder. With the same sources built before, it does nothing else; --cached, as the first word, builds nothing and
# ends with 1 where they were not. Needs the Go that go.mod names, and the module proxy; takes two to four minutes on two cores,
# most of it for the seccomp programs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
is_cached_only=no
[[ ${1:-} != --cached ]] || { is_cached_only=yes && shift; }
target=${1:?usage: build.sh [--cached] FOLDER [RELEASE]}
module=$here${2:+/releases/$2}
upstream=$(sed -n 's/^.*gvisor\.dev\/gvisor \(v0\.0\.0-[0-9a-f-]*\)$/\1/p' "$module/go.mod")
date=${upstream#v0.0.0-}
release=release-${date:0:8}.0
folder=$target/$release

sources() {
    find "$module" "$here/build.sh" -path "$module/releases" -prune -o -type f -print0 | sort -z | xargs -0 cat | sha256sum
}
fingerprint=$(sources)
if [[ -r $folder/sources && $(<"$folder/sources") == "$fingerprint" ]]; then
    echo "$folder"
    exit
fi
[[ $is_cached_only == no ]] || exit 1

mkdir -p "$target"
# Below the target: what is finished moves there in one step. nobody must reach it, see --directfs=false in runsc.py.
work=$(mktemp -d "$target/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/release"
cp -r "$module"/{go.mod,go.sum,runsc} "$work/source"
[[ ! -e $module/sentry ]] || cp -r "$module"/{sentry,filters} "$work/source"
cd "$work/source"

# The machine's own Go settings do not count: the same sources make the same binaries.
export GOFLAGS=-mod=vendor CGO_ENABLED=0
flags=(-trimpath -buildvcs=false -ldflags "-s -w -X gvisor.dev/gvisor/runsc/version.version=$release")
GOFLAGS='' go mod vendor
if [[ -d filters ]]; then
    # Go takes no overlay below its module cache: hence the vendored copy.
    original=$PWD/vendor/gvisor.dev/gvisor/runsc/boot/filter/filter_precompiled.go
    go run ./filters "$original" "$work/filter_precompiled.go" >&2
    printf '{"Replace": {"%s": "%s"}}\n' "$original" "$work/filter_precompiled.go" >"$work/overlay.json"
    flags+=(-overlay "$work/overlay.json")
    mkdir "$work/release/gvisor-bin"
    go build "${flags[@]}" -o "$work/release/gvisor-bin/gvisor_sentry" ./sentry
fi
go build "${flags[@]}" -o "$work/release/runsc" ./runsc
echo "$fingerprint" >"$work/release/sources"
chmod -R a+rX,go-w "$work/release"
rm -rf "$folder"
mv "$work/release" "$folder"
echo "$folder"
