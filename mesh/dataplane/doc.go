// Package dataplane is the process that holds the userspace WireGuard tunnels,
// and the carriers over TLS of tunnels that UDP does not reach, while agents
// come and go.
//
// Run owns TUN devices, each with an embedded wireguard-go, and serves the
// standard UAPI socket of every device in UAPIDir, so that wgctrl and `wg`
// see them like any other WireGuard device. What a tunnel is (keys, ports,
// peers) is told over that socket; the control socket of this package only
// makes, lists and removes devices and carriers. The process knows nothing else:
// no routing, no store, no file. Each feature here would be a reason to restart
// it, and a restart of this process is the only thing that interrupts traffic.
//
// A Carrier is a UDP socket on the loopback, which is the tunnel's endpoint,
// whoever made the tunnel, and a TLS connection to another such process. This
// end dials, and goes on dialling, or takes what HandOver brings: the process
// listens on no port, so a new connection comes in only while an agent runs
// that does. One that is there needs no agent. The process makes a key when it
// starts and is known by it (Client.Pin); a far end is known by its own.
//
// It promises: a device ends, without trace, when it is deleted over the
// control socket, when its link is deleted by anyone, when its UAPI socket is
// removed, and when the process stops; nothing else ends a device. The
// process does not depend on who started it (own session, no terminal, no
// SIGHUP, no SIGPIPE) and cleans up what a killed predecessor left.
//
// It differs from the wireguard-go program in what a host with many devices
// needs: one netlink listener for all devices instead of two for each, which
// also survives an overflow of its socket; a rate limit on its log; peers of
// a UAPI socket are checked and may not block it.
package dataplane
