package wire

import (
	"net/netip"

	"guywire/mesh"
)

// A Destination is what distances are told about: a node, or a prefix that
// several nodes announce (anycast). Exactly one field is set; the prefix is
// masked. It is comparable. The zero value is no destination.
type Destination struct {
	Node   mesh.NodeID
	Prefix netip.Prefix
}

// Compare orders nodes by id, then prefixes by address and length.
func (d Destination) Compare(e Destination) int {
	switch dn, en := d.Prefix.IsValid(), e.Prefix.IsValid(); {
	case dn && en:
		return d.Prefix.Compare(e.Prefix)
	case dn:
		return 1
	case en:
		return -1
	}
	return d.Node.Compare(e.Node)
}

// String gives the prefix or the node's id.
func (d Destination) String() string {
	if d.Prefix.IsValid() {
		return d.Prefix.String()
	}
	return d.Node.String()
}
