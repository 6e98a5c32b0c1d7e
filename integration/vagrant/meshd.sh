#!/bin/sh
# Install or upgrade the package that was uploaded. The interface that Vagrant
# manages the machine by has a default route, too: it is left alone.
set -eu
for d in /sys/class/net/*; do
	dev=${d##*/}
	if [ -e "$d/device" ] && ! grep -q "^nic [^ ]* $dev " /etc/lab-network; then break; fi
done
mkdir -p /etc/guywire
{
	printf 'uplinks:\n  - interface: %s\n    disabled: true\n' "$dev"
	sed -n 's/^lan \(.*\) \(.*\)/prefixes: [\1, "\2"]/p' /etc/lab-network
} >/etc/guywire/meshd.yaml
apt-get install -q -y --allow-downgrades -o Dpkg::Options::=--force-confold -o Dpkg::Use-Pty=0 /tmp/guywire/*.deb
