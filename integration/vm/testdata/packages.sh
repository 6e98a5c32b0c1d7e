#!/bin/sh
# The life of a package on a Debian with systemd, in a machine of its own: see
# packages.go. /packages holds 1.deb, 2.deb, 1.rpm and 2.rpm, 2 with a higher version.
# The site is this machine; its peer is a second meshd in a network namespace.
set -eu
exec 2>&1

die() {
	echo "FAIL: $*"
	systemctl --no-pager --lines=0 status meshd meshd-dataplane peer || true
	journalctl --no-pager --boot -u meshd -u meshd-dataplane -u peer | tail -n 80
	exit 1
}
say() { echo "== $*"; }
until_true() { # until_true SECONDS COMMAND...
	end=$(($(date +%s) + $1))
	shift
	until "$@" >/tmp/said 2>&1; do
		[ "$(date +%s)" -lt "$end" ] || die "in time: $* ($(cat /tmp/said))"
		sleep 0.2
	done
}
pid() { systemctl show -P MainPID "$1"; }
peerctl() { ip netns exec peer /opt/peer/bin/meshctl --socket /opt/peer/run/meshd.sock "$@"; }

# What a package may leave nothing of. Names with a dash at their end are backups.
snapshot() { # snapshot FILE
	{
		ip -o link | sed 's/ qdisc.*//'
		ip -o addr | sed 's/ valid_lft.*//'
		ip route show table all
		ip -6 route show table all
		ip rule
		ip -6 rule
		ip nexthop
		nft list ruleset
		sysctl -a 2>/dev/null | grep '^net\.' | grep -v 'conntrack_count\|nf_log\|random\|stable_secret'
		cat /etc/passwd /etc/group
		find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /opt -o -path /var/log -o -path /var/tmp \
			-o -path /var/lib/dpkg -o -path /var/lib/rpm -o -path /var/lib/systemd -o -path /var/cache \) -prune -o ! -name '*-' ! -name .pwd.lock -print | sort
		find /run/guywire /run/systemd/system /run/systemd/generator* 2>/dev/null | sort
		systemctl list-unit-files --no-pager --no-legend | grep -v '^run-\|^peer' | sort
		systemctl list-units --failed --no-pager --no-legend
		systemd-sysusers --cat-config | grep -c guywire || true
		systemd-tmpfiles --cat-config | grep -c guywire || true
	} >"$1"
}

# flood counts what is lost of a flood over the mesh while something is done.
flood() { # flood INTERVAL NAME COMMAND...
	every=$1 name=$2
	shift 2
	ping -q -i "$every" 10.86.0.2 >/tmp/ping 2>&1 &
	flooding=$!
	sleep 1
	("$@") >/tmp/done 2>&1 || die "$name: $(cat /tmp/done)"
	until_true 60 meshctl status --check ready
	sleep 3
	kill -INT $flooding
	wait $flooding || true
	counts=$(sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) received.*/\1 \2/p' /tmp/ping)
	sent=${counts% *} received=${counts#* }
	[ -n "$counts" ] && [ "$sent" -gt 10 ] || die "$name: no flood: $(cat /tmp/ping)"
	echo "$kind, $mode: $name: $sent packets sent, $((sent - received)) lost"
	# The one that is on its way when ping ends may be counted as sent only.
	[ $((sent - received)) -le 1 ] || die "$name: packets were lost"
	systemctl --quiet is-active meshd.service meshd-dataplane.service || die "$name: a service does not run"
	[ "$(pid meshd-dataplane)" = "$plane" ] || die "$name: the data plane was restarted"
}
installed() { # installed VERSION: it runs
	[ "$(meshctl version --json | grep -c "\"version\": \"$1\"")" = 2 ] || die "not version $1: $(meshctl version)"
}
hang() { # until the watchdog ends it
	kill -STOP "$(pid meshd)"
	before=$(systemctl show -P NRestarts meshd)
	until_true 200 restarted "$before"
}
restarted() { [ "$(systemctl show -P NRestarts meshd)" -gt "$1" ] && systemctl --quiet is-active meshd; }
killed() {
	before=$(systemctl show -P NRestarts meshd)
	kill -KILL "$(pid meshd)"
	until_true 60 restarted "$before"
}

wire() { # two hosts on one network, each the other's gateway
	ip link set lo up
	ip netns add peer
	ip link add wan type veth peer name wan netns peer
	ip addr add 198.51.100.1/24 dev wan
	ip link set wan up
	ip route add default via 198.51.100.2
	ip -n peer link set lo up
	ip -n peer addr add 198.51.100.2/24 dev wan
	ip -n peer link set wan up
	ip -n peer route add default via 198.51.100.1
}
start_peer() {
	rm -rf /opt/peer/state /opt/peer/run
	mkdir -p /opt/peer/state /opt/peer/run
	chmod 700 /opt/peer/state
	cat >/opt/peer/meshd.yaml <<-END
		name: peer
		state: /opt/peer/state
		socket: /opt/peer/run/meshd.sock
		dataplane_socket: /opt/peer/run/dataplane.sock
		dataplane: $mode
	END
	systemd-run --quiet --unit=peer -p KillMode=process ip netns exec peer /opt/peer/bin/meshd -c /opt/peer/meshd.yaml
	until_true 60 peerctl status --check live
}
stop_peer() {
	peerctl leave --yes >/dev/null 2>&1 || true
	systemctl stop peer
	ip netns pids peer | xargs -r kill
	systemctl reset-failed peer 2>/dev/null || true
}

# What administrators type, as install.md says. rpm does not know what dpkg has installed,
# hence --nodeps.
rpm() { command rpm --dbpath /var/lib/rpm --nodeps "$@"; }
upgrade() { # upgrade VERSION: or downgrade
	case $kind in
	deb) dpkg -i "/packages/$1.deb" ;;
	rpm) rpm -U --oldpackage "/packages/$1.rpm" ;;
	esac
}
install() { # install VERSION
	upgrade "$1" && { [ $kind = deb ] || systemctl enable --now meshd meshd-dataplane; }
}
remove() {
	case $kind in
	deb) dpkg -r guywire ;;
	rpm) rpm -e guywire ;;
	esac
}
purge() {
	case $kind in
	deb) dpkg -P guywire ;;
	rpm) rpm -e guywire && rm -r /etc/guywire /var/lib/guywire && groupdel guywire ;;
	esac
}

life() { # life KIND MODE
	kind=$1 mode=$2
	say "$kind, $mode: install"
	snapshot /tmp/before
	install 1 || die install
	systemctl --quiet is-active meshd.service meshd-dataplane.service || die 'installed, but a service does not run'
	systemctl --quiet is-enabled meshd.service meshd-dataplane.service || die 'installed, but a service does not start at boot'
	until_true 1 meshctl status --check live # Type=notify: it answers already
	installed 1.0.0
	verdict=$(systemd-analyze verify --man=no meshd.service meshd-dataplane.service 2>&1)
	[ -z "$verdict" ] || die "a unit is not right: $verdict"
	[ "$(stat -c '%a %U %G' /run/guywire/meshd.sock)" = '660 root guywire' ] || die 'the socket is not for group guywire'
	echo "dataplane: $mode" >>/etc/guywire/meshd.yaml
	systemctl restart meshd
	plane=$(pid meshd-dataplane)
	start_peer
	meshctl init --name site --pool6 fd86::/48 || die init
	meshctl token create --name peer | peerctl join - || die join
	until_true 60 ping -q -c 1 -W 1 10.86.0.2
	until_true 60 meshctl status --check ready
	until_true 60 peerctl status --check ready
	meshctl links

	flood 0.01 'agent restarted' systemctl restart meshd
	flood 0.01 'agent killed' killed
	flood 0.01 upgrade upgrade 2
	installed 2.0.0
	flood 0.01 downgrade upgrade 1
	installed 1.0.0
	flood 0.2 'agent hung' hang
	journalctl --no-pager -b -u meshd | grep -i watchdog | tail -n 1
	grep -q "^dataplane: $mode" /etc/guywire/meshd.yaml || die 'an upgrade changed the configuration'

	say "$kind, $mode: remove, and install again"
	remove || die remove
	[ -z "$(ip -o link | grep gw-)" ] && ! nft list table inet guywire 2>/dev/null || die 'a removed package has something in the kernel'
	[ -d /var/lib/guywire ] || die 'remove is not purge: the keys are gone'
	[ $kind = deb ] || mv /etc/guywire/meshd.yaml.rpmsave /etc/guywire/meshd.yaml # changed above
	install 2 || die 'install again'
	until_true 60 ping -q -c 1 -W 1 10.86.0.2

	say "$kind, $mode: purge"
	stop_peer
	purge || die purge
	snapshot /tmp/after
	diff /tmp/before /tmp/after || die 'purge leaves something'
	echo "$kind, $mode: nothing is left"
}

dpkg-deb -x /packages/1.deb /tmp/peer
mkdir -p /opt/peer
mv /tmp/peer/usr/bin /opt/peer/bin
rm -rf /tmp/peer
# What loads later would bring settings of its own.
modprobe -a wireguard tun nf_tables nft_ct nft_limit nf_conntrack
wire
sleep 2 # IPv6 looks for duplicates of its addresses
life deb kernel
life deb userspace
life rpm userspace
say "systemd-analyze security"
dpkg -i /packages/1.deb >/dev/null
systemd-analyze --no-pager security meshd meshd-dataplane | grep Overall
