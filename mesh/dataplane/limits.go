package dataplane

import "time"

// Bounds of everything that others can make grow.
const (
	maxDevices     = 1024             // far above the degree of any mesh; a create beyond it is refused
	maxControl     = 16               // control connections at once; more wait in the listen backlog
	maxUAPI        = 16               // connections to one device's UAPI socket at once; more wait in the listen backlog
	maxLine        = 4096             // bytes of one control request
	maxReply       = 64 << 10         // bytes of one control reply: maxDevices names fit, or maxCarriers carriers
	maxCarriers    = 128              // carriers at once, about 200 KiB each while connected
	maxPending     = 64               // connections handed over that have not said which carrier they are for
	maxFailure     = 100              // bytes kept of why a carrier has no connection
	greetTime      = 5 * time.Second  // from a TCP connection to the agreed token
	dialTime       = 10 * time.Second // of one attempt, all in all
	tcpTimeout     = 10 * time.Second // sent and not acknowledged, then a carrier's connection ends
	tcpUnsent      = 64 << 10         // bytes that the kernel holds unsent for a carrier: beyond, the queue drops
	maxStartOutput = 4096             // bytes kept of what a starting process says
	controlIdle    = 30 * time.Second // a control connection with no request
	uapiIdle       = 10 * time.Second // a UAPI connection with no byte: a stuck `set` holds the device's configuration lock
	logInterval    = time.Second      // one log line per device in this time
	lockWait       = 5 * time.Second  // for a predecessor that is dying, or a rival that is starting
	lockPoll       = 10 * time.Millisecond
	minMTU, maxMTU = 1280, 65535 - 80 // below, the kernel takes IPv6 off the device; above, no datagram holds packet and overhead
	namePrefix     = "gw-"            // devices of others are out of reach
	maxName        = 15               // bytes, IFNAMSIZ without its zero
)
