#!/bin/sh
# dpkg calls it with `configure OLD-VERSION`, rpm with the number of versions.
set -e
case "$1" in
configure | abort-upgrade | abort-remove | abort-deconfigure) upgrade=$2 deb=yes ;;
1) upgrade='' deb='' ;;
*) upgrade=yes deb='' ;;
esac

if command -v systemd-sysusers >/dev/null; then
	systemd-sysusers guywire.conf
elif ! getent group guywire >/dev/null; then
	groupadd --system guywire
fi
command -v systemctl >/dev/null || exit 0
systemd-tmpfiles --create guywire.conf

[ ! -d /run/systemd/system ] || systemctl daemon-reload
if [ -z "$upgrade" ]; then
	systemctl preset meshd-dataplane.service meshd.service # on or off is the distribution's policy
fi
[ -d /run/systemd/system ] || exit 0
# The data plane is not restarted: it carries packets.
[ -z "$upgrade" ] || systemctl try-restart meshd.service
[ -n "$deb" ] || exit 0 # who installs an rpm starts it
for unit in meshd-dataplane.service meshd.service; do
	! systemctl --quiet is-enabled "$unit" || systemctl start "$unit"
done
