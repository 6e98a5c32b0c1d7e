#!/bin/sh
# dpkg calls it with `remove`, later perhaps `purge`; rpm with the number of versions left.
set -e
case "$1" in
remove | 0) rm -rf /run/guywire ;;
purge)
	rm -rf /etc/guywire /var/lib/guywire
	rm -f /etc/systemd/system/multi-user.target.wants/meshd.service /etc/systemd/system/multi-user.target.wants/meshd-dataplane.service
	! getent group guywire >/dev/null || groupdel guywire
	;;
*) exit 0 ;;
esac
[ ! -d /run/systemd/system ] || systemctl daemon-reload
