package dataplane

import "runtime/debug"

// What a device weighs on the heap: wireguard-go reads in batches of 128
// packets from the TUN device and from each of two UDP sockets, into buffers
// of 64 KiB. Untouched, they are not resident, and a tunnel of small packets
// touches only the first page of each; but the garbage collector counts them in
// full, and would allow as much garbage again.
const (
	deviceHeap = 3 * 128 * 64 << 10
	garbage    = 64 << 20 // allowed between two collections, however many devices
)

// paceGC sets the collector's target for n devices.
func paceGC(n int) {
	percent := 100
	if n > 0 {
		percent = max(1, min(percent, 100*garbage/(n*deviceHeap)))
	}
	debug.SetGCPercent(percent)
}
