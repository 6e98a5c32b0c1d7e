// Package portmap asks the gateway of an uplink to let UDP packets in to a port, by
// PCP (RFC 6887) or, where the gateway speaks nothing newer, NAT-PMP (RFC 6886).
//
// It sends to the one address that it is given and believes nobody else. IPv4 only:
// what stands before IPv6 addresses is a firewall, and both ends' packets open that.
package portmap
