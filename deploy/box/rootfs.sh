#!/bin/sh
# Make a Debian root file system with systemd from packages: rootfs.sh TARGET
# [PACKAGE ...]. TARGET must not exist. SUITE chooses the release, MIRROR the
# source, which otherwise is the one that apt has for it on this machine.
set -eu
target=$1
shift
suite=${SUITE:-bookworm}
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' "Codename: $suite" "Created-By: Packages" 2>/dev/null | head -n 1)}
[ ! -e "$target" ] || {
	echo "$target is there already; remove it first" >&2
	exit 1
}
command -v debootstrap >/dev/null || {
	echo 'debootstrap is missing: apt-get install debootstrap' >&2
	exit 1
}
packages=systemd,systemd-sysv,dbus,udev,kmod,iproute2,nftables,iputils-ping,procps
for p in "$@"; do packages=$packages,$p; done
# Never across mounts: debootstrap has /proc and /sys in there while it works.
trap 'rm -rf --one-file-system "$target"' INT TERM EXIT
# Without $mirror debootstrap has its own.
debootstrap --variant=minbase --include="$packages" "$suite" "$target" $mirror
rm -rf "$target"/var/cache/apt/*.bin "$target"/var/cache/apt/archives/*.deb "$target"/var/lib/apt/lists/*
: >"$target/etc/machine-id" # each copy makes its own
trap - INT TERM EXIT
