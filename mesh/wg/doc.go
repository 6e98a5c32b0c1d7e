// Package wg makes kernel.Tunnels real: WireGuard devices, in the kernel or in
// the data-plane process, through wgctrl and netlink.
//
// It is a kernel.Backend. It keeps no state of its own: Observe reads what is
// there, made by whichever maker, by this process or one before it, and an
// agent that starts adopts it by that. A device is ours when its name begins
// with mesh.InterfacePrefix and its alias is one of ours; devices of others are
// never changed, removed or taken over. Private keys pass through to the
// device and are not kept.
package wg
