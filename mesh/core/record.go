package core

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"

	"guywire/discovery"
	"guywire/mesh"
)

// A Record is what must be remembered of a link over a restart, so that its
// tunnel can be adopted, or made again on the same port.
type Record struct {
	Link       mesh.LinkID         `json:"link"`
	Device     string              `json:"device"`
	Slot       uint16              `json:"slot"`       // 1 and up; its next-hop id is NextHopBase + Slot
	Generation uint64              `json:"generation"` // id of the attempt that proved Port and Endpoint
	Port       uint16              `json:"port"`
	Endpoint   netip.AddrPort      `json:"endpoint"`         // follows the far end when it roams
	Class      discovery.PathClass `json:"class,omitempty"`  // of the path that the attempt proved
	Carrier    discovery.AttemptID `json:"carrier,omitzero"` // of ClassCarrier: what the stream is called
	Order      uint64              `json:"order,omitempty"`  // of two lanes the higher one is newer
	Epoch      mesh.Epoch          `json:"epoch"`            // of our key
	Peer       mesh.WireGuardKey   `json:"peer"`
	// Alive says, at start, that the tunnel was found in the kernel.
	Alive bool `json:"-"`
}

// Alias is the device alias that marks the tunnel as ours and says what it is.
func (r Record) Alias() string {
	return fmt.Sprintf("guywire %s epoch %d generation %x", r.Link, r.Epoch, r.Generation)
}

// OwnsAlias reports whether a device alias is one that Alias wrote.
func OwnsAlias(alias string) bool { return strings.HasPrefix(alias, "guywire ") }

// deviceName is a short name for a link's device: the neighbour's name for
// people, and a hash of the link, salted until it is free.
func deviceName(peerName string, id mesh.LinkID, taken func(string) bool) string {
	if len(peerName) > 6 {
		peerName = strings.TrimRight(peerName[:6], "-")
	}
	for salt := 0; ; salt++ {
		sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", id, salt))
		hash := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:5]
		if name := mesh.InterfacePrefix + peerName + "-" + hash; !taken(name) {
			return name
		}
	}
}
