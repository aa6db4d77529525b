#!/usr/bin/env bash
# Run tests on a host of its own: Debian 13 in qemu, with systemd, cgroup v2 and Debian's kernel.
#
#   tests/vm/run.sh                      the tests of $DEFAULT_TESTS
#   tests/vm/run.sh tests/sandbox/test_timeouts.py -k hard
#
# It emulates the processor, since /dev/kvm is not usable on every machine that has it: all is 5 to
# 20 times slower. SANDFLEET_VM_KVM=1 uses KVM. It needs root, Debian, 6 GB of disk, and 5 GB of
# memory. The virtual machine has no network. Its exit code is pytest's.
#
# Kept between runs in $SANDFLEET_VM_ROOT (default /var/tmp/sandfleet-vm): the packages of the guest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly CACHE=${SANDFLEET_VM_ROOT:-/var/tmp/sandfleet-vm}
readonly TOOLS=/usr/local/lib/sandfleet/gvisor
readonly DEADLINE_SECONDS=${SANDFLEET_VM_SECONDS:-3600}
readonly DISK=6G MEMORY_MIB=4096
readonly MARK='sandfleet-vm: pytest ended with'
# What the version of cgroups decides: limits and counters, whose memory it is, what is killed.
readonly DEFAULT_TESTS=(
    tests/unit/test_cgroups.py tests/sandbox/test_memory.py tests/sandbox/test_killing.py tests/sandbox/test_limits.py
    # The units of deploy/systemd, started by the guest's own systemd.
    tests/vm/test_units.py
    # Clocks and speed mean nothing under emulation.
    -k "not output_is and not cpu_is_limited and not the_least_that_a_spec"
)
readonly PACKAGES=(
    linux-image-cloud-amd64 initramfs-tools systemd-sysv udev dbus apparmor kmod
    python3 python3-venv gcc libc6-dev make git ca-certificates
    redis-server redis-tools erofs-utils umoci skopeo mmdebstrap busybox-static zstd xz-utils procps iproute2
)

say() { printf 'vm: %s\n' "$*"; }

install_tools() {
    local missing=()
    command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
    command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
    command -v mke2fs >/dev/null || missing+=(e2fsprogs)
    ((${#missing[@]} == 0)) && return
    say "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get -q -q -y --no-install-recommends install "${missing[@]}" >/dev/null
}

# Prints the mirror that apt uses here.
mirror() {
    apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 == "main" && !/security/ && !found { found = 1; print $1 }'
}

make_packages() {
    [[ -e $CACHE/root.tar ]] && return
    say "taking Debian 13 from the mirror that apt uses here (minutes; once)"
    mkdir -p "$CACHE"
    local names
    names=$(IFS=,; echo "${PACKAGES[*]}")
    mmdebstrap --quiet --format=tar --variant=minbase --include="$names" trixie "$CACHE/root.tar.new" "$(mirror)" 2>"$CACHE/mmdebstrap.log" ||
        { tail -n 20 "$CACHE/mmdebstrap.log" >&2; return 1; }
    mv "$CACHE/root.tar.new" "$CACHE/root.tar"
}

# Fills $root: the packages, this tree, its virtual environment, runsc, the tests' images.
make_root() {
    say "setting up sandfleet in the guest's root"
    tar -C "$root" -xf "$CACHE/root.tar"
    mkdir -p "$root/sandfleet" "$root$TOOLS" "$root/images"
    git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -c | tar -C "$root/sandfleet" -x
    cp -a "$TOOLS/." "$root$TOOLS/"
    [[ ! -d /usr/local/lib/sandfleet/registry ]] || cp -a /usr/local/lib/sandfleet/registry "$root/usr/local/lib/sandfleet/"
    ln -sf "$TOOLS/bin/runsc" "$root/usr/local/bin/runsc"
    ln -sfn /sandfleet/.venv "$root/opt/sandfleet"
    cp -a "$images/." "$root/images/"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    [[ ! -e /etc/pip.conf ]] || cp -L /etc/pip.conf "$root/etc/pip.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    mount --bind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    chroot "$root" env -u TMPDIR HOME=/root GIT_CEILING_DIRECTORIES=/ /sandfleet/scripts/setup.sh --without-test-servers
    umount "$root/proc" "$root/dev"
    printf '/dev/vda / ext4 defaults 0 1\n' >"$root/etc/fstab"
    cat >"$root/etc/systemd/system/sandfleet-tests.service" <<UNIT
[Unit]
Description=The tests
After=multi-user.target
[Service]
Type=oneshot
WorkingDirectory=/sandfleet
Environment=CI=true TEST_SLOWNESS=5 TEST_IMAGES_ROOT=/images HOME=/root SANDFLEET_RUNSC__BOOT_DEADLINE_SECONDS=120
Environment=PATH=$TOOLS/bin:/sandfleet/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/sandfleet/vm-tests
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
[Install]
WantedBy=graphical.target
UNIT
    {
        echo '#!/bin/bash'
        echo 'uname -sr; stat -fc "cgroups: %T" /sys/fs/cgroup; cat /sys/fs/cgroup/cgroup.controllers; runsc --version | head -n 1'
        # Each test has ten times its usual time.
        printf '/sandfleet/.venv/bin/python -m pytest -p no:cacheprovider --timeout 1200 -m "not images"'
        printf ' %q' "$@"
        printf '\necho "%s $?"\npoweroff -ff\n' "$MARK"
    } >"$root/sandfleet/vm-tests"
    chmod +x "$root/sandfleet/vm-tests"
    mkdir -p "$root/etc/systemd/system/graphical.target.wants"
    ln -sf ../sandfleet-tests.service "$root/etc/systemd/system/graphical.target.wants/"
}

# Makes the images of the tests here: in the guest it would take many minutes.
make_images() {
    images=${TEST_IMAGES_ROOT:-$CACHE/images}
    say "making the tests' images in $images, if they are not there"
    mkdir -p "$images"
    PATH="$TOOLS/bin:$PATH" .venv/bin/python - "$images" <<'PYTHON'
import sys
from pathlib import Path

from sandfleet_worker.sandbox.image.store import ImageStore

store = ImageStore(Path(sys.argv[1]))
store.add("busybox")
store.add("python")
PYTHON
}

run_guest() {
    local accel=(-accel tcg,thread=multi -cpu max)
    [[ -z ${SANDFLEET_VM_KVM:-} ]] || accel=(-accel kvm -cpu host)
    say "booting it (${accel[1]})"
    # Without the first mask the login prompt hangs the console up, and kills whatever writes to it.
    # Without the second /tmp is in memory, where a test needs files that are not.
    timeout --foreground "$DEADLINE_SECONDS" qemu-system-x86_64 "${accel[@]}" -smp 2 -m "$MEMORY_MIB" -nographic -no-reboot -nic none \
        -kernel "$work/vmlinuz" -initrd "$work/initrd" -drive "file=$work/disk.img,if=virtio,format=raw,cache=unsafe" \
        -append "root=/dev/vda rw console=ttyS0 quiet systemd.mask=serial-getty@ttyS0.service systemd.mask=tmp.mount" </dev/null 2>&1 | tee "$work/console"
}

main() {
    (($#)) || set -- "${DEFAULT_TESTS[@]}"
    [[ $EUID -eq 0 ]] || { echo "vm: it needs root, to make the guest's disk" >&2; exit 2; }
    install_tools
    make_packages
    make_images
    work=$(mktemp -d -p "$CACHE" run-XXXXXX)
    root=$work/root
    trap 'umount "$root/proc" "$root/dev" 2>/dev/null || true; rm -rf --one-file-system "$work"' EXIT
    trap 'exit 130' INT TERM
    mkdir "$root"
    make_root "$@"
    cp "$root"/boot/vmlinuz-* "$work/vmlinuz"
    cp "$root"/boot/initrd.img-* "$work/initrd"
    mke2fs -q -t ext4 -d "$root" "$work/disk.img" "$DISK"
    run_guest
    local code
    code=$(tr -d '\r' <"$work/console" | sed -n "s/^.*$MARK \([0-9]*\).*/\1/p" | tail -n 1)
    [[ -n $code ]] || { echo "vm: the guest did not end its tests within $DEADLINE_SECONDS s" >&2; exit 3; }
    exit "$code"
}

main "$@"
