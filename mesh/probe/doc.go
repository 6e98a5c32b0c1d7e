// Package probe sends and receives the datagrams inside the tunnels: probes
// and routing messages between neighbours, from link-local to link-local
// address, on one UDP socket for all links.
//
// It tells links apart by interface index, stamps arrivals with the kernel's
// receive time, and turns errors of the socket into hints about the link they
// are about. A datagram travels in one packet or not at all, so that padded
// probes find the MTU of the path. It drops whatever did not come from a
// neighbour's own socket, and decides nothing.
package probe
