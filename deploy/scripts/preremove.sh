#!/bin/sh
# dpkg calls it with `remove` or `upgrade`, rpm with the number of versions left.
set -e
case "$1" in
remove | 0) ;;
*) exit 0 ;; # upgrades and downgrades leave everything running
esac
live=''
[ ! -d /run/systemd/system ] || live=yes
[ -z "$live" ] || systemctl stop meshd.service
# Without an agent tunnels and routes would be nobody's. The node stays a member.
meshd teardown || echo 'guywire: not everything of the mesh could be removed from the kernel' >&2
[ -z "$live" ] || systemctl stop meshd-dataplane.service
if [ "$1" = 0 ] && command -v systemctl >/dev/null; then
	systemctl --quiet disable meshd.service meshd-dataplane.service
fi
