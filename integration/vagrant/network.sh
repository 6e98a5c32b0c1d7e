#!/bin/sh
# Make a machine of the Vagrant lab what the lines of its plan say, now and at
# each boot: network.sh NAME PLAN names the machine and installs itself with the
# plan, network.sh alone carries it out. `-` stands for none.
#
#   forward NAMESPACE                               be a router
#   nic MAC NAME NAMESPACE ADDRESS ADDRESS6 DELAY   the interface with this address
#   nat NAME MAPPING ADDRESS GATEWAY DELAY          a NAT box, in a namespace
#   default NAME GATEWAY GATEWAY6                   an uplink, best first
#   lan PREFIX PREFIX6                              a LAN, with a host in namespace host
#
# A DELAY is that of a cable, one way. The router adds both ways of it to what
# it sends down the cable.
set -eu
self=/usr/local/sbin/lab-network plan=/etc/lab-network

if [ $# -gt 0 ]; then
	command -v nft >/dev/null || {
		apt-get update -q
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y nftables
	}
	printf '%s\n' "$1" >/etc/hostname
	hostname "$1"
	sed -i '/^127\.0\.1\.1[[:space:]]/d' /etc/hosts
	printf '127.0.1.1 %s\n' "$1" >>/etc/hosts
	install -m 755 "$0" $self
	printf '%s\n' "$2" >$plan
	cat >/etc/systemd/system/lab-network.service <<-END
		[Unit]
		Wants=network-pre.target
		After=systemd-udev-settle.service systemd-sysctl.service
		Wants=systemd-udev-settle.service
		Before=network-online.target meshd.service
		[Service]
		Type=oneshot
		RemainAfterExit=yes
		ExecStart=$self
		[Install]
		WantedBy=multi-user.target
	END
	systemctl daemon-reload
	systemctl -q enable lab-network
	exec systemctl restart lab-network
fi

metric=10

inside() { # inside NAMESPACE COMMAND...
	at=$1
	shift
	[ "$at" = - ] || set -- ip netns exec "$at" "$@"
	"$@"
}

namespace() { # namespace NAME NEAR FAR: a fresh one, with a pair of interfaces into it
	ip link del "$2" 2>/dev/null || :
	ip netns del "$1" 2>/dev/null || :
	ip netns add "$1"
	ip link add "$2" type veth peer name "$3" netns "$1"
	ip link set "$2" up
	inside "$1" ip link set lo up
	inside "$1" ip link set "$3" up
}

forward() { # forward NAMESPACE
	inside "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

addresses() { # addresses NAMESPACE NAME ADDRESS...
	at=$1 dev=$2
	shift 2
	for a in "$@"; do
		case $a in
		-) ;;
		*:*) inside "$at" ip addr replace "$a" dev "$dev" nodad ;;
		*) inside "$at" ip addr replace "$a" dev "$dev" ;;
		esac
	done
}

delay() { # delay NAMESPACE NAME DELAY
	[ "$3" = 0 ] || inside "$1" tc qdisc replace dev "$2" root netem limit 10000 delay "$(twice "$3")"
}

twice() { # twice 1500us: 3000us
	unit=$(printf %s "$1" | tr -d '0-9')
	printf '%d%s' $((2 * ${1%"$unit"})) "$unit"
}

nic() {
	dev='' tries=0
	until [ -n "$dev" ]; do # one that was in a namespace comes back in a moment
		[ $((tries += 1)) -lt 50 ] || {
			echo "no interface has the address $1" >&2
			exit 1
		}
		[ $tries = 1 ] || sleep 0.2
		for d in /sys/class/net/*; do
			[ "$(tr -d : <"$d/address")" != "$1" ] || dev=${d##*/}
		done
	done
	ip link set "$dev" down
	ip addr flush dev "$dev"
	[ "$dev" = "$2" ] || ip link set "$dev" name "$2"
	[ "$3" = - ] || ip link set "$2" netns "$3"
	inside "$3" ip link set "$2" up
	addresses "$3" "$2" "$4" "$5"
	delay "$3" "$2" "$6"
}

nat() {
	random=''
	[ "$2" != symmetric ] || random=' fully-random'
	namespace "$1" "$1" wan
	forward "$1"
	addresses - "$1" "$4"
	addresses "$1" wan "$3"
	delay - "$1" "$5"
	inside "$1" ip route add default via "${4%/*}"
	# What nobody inside asked for is dropped and leaves no trace.
	inside "$1" nft -f - <<-END
		table ip nat {
			chain out {
				type nat hook postrouting priority srcnat
				oifname "wan" masquerade$random
			}
		}
		table inet filter {
			chain in {
				type filter hook input priority filter
				iifname "wan" ct state new meta l4proto { tcp, udp } drop
			}
			chain through {
				type filter hook forward priority filter
				iifname "wan" ct state new,invalid drop
			}
		}
	END
}

default() {
	# The network that Vagrant manages the machine by is no way out.
	[ $metric -gt 10 ] || while ip route del default 2>/dev/null; do :; done
	ip route replace default via "$2" dev "$1" metric $metric
	[ "$3" = - ] || ip -6 route replace default via "$3" dev "$1" metric $metric
	metric=$((metric + 1))
}

lan() {
	namespace host lan eth0
	for p in "$1" "$2"; do
		bits=${p#*/} base=${p%/*}
		base=${base%0} # 10.1.0.0 and fd86:0:0:1:: both go on with a number
		case $p in *:*) host=${base}a ;; *) host=${base}10 ;; esac
		addresses - lan "${base}1/$bits"
		addresses host eth0 "$host/$bits"
		inside host ip route add default via "${base}1"
	done
}

while read -r line; do
	# shellcheck disable=SC2086 # words
	$line
done <$plan
