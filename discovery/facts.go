package discovery

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"guywire/mesh"
	"guywire/routing/topology/coordinate"
)

// Limits of what a node may say about itself.
const (
	MaxUplinks          = mesh.MaxUplinks
	MaxUplinkAddrs      = 8  // host addresses per uplink
	MaxReflexive        = 4  // reflexive endpoints per uplink
	MaxForwarded        = 4  // forwarded addresses per uplink
	MaxServices         = 8  // control or STUN endpoints
	MaxVersion          = 64 // bytes of software version
	MaxRoundTrips       = 64
	MaxFacts            = 4096
	factsVersion   byte = 3
	// factsBefore is read as well: it knows neither kinds of NAT of IPv6 nor
	// forwarded addresses and lifetimes.
	factsBefore byte = 2
)

// maxRoundTrip bounds a believable round trip.
const maxRoundTrip = 10 * time.Second

// factsDomain separates the signature of facts from every other signature of
// the same key.
const factsDomain = "guywire facts v1\x00"

// Facts are what a node says about itself for others.
type Facts struct {
	Mesh mesh.MeshID
	Node mesh.NodeID
	// Serial orders a node's statements; the newer one wins. It is the node's
	// clock in microseconds since 1970, and grows strictly even when the clock
	// does not.
	Serial  uint64
	Uplinks []Uplink
	Control []netip.AddrPort // where its control listener answers on the underlay
	STUN    []netip.AddrPort // where it serves STUN; empty on nodes behind NAT
	Version string           // of the software
	// Distances is how far others are, and where the node lies among them; zero
	// while it knows too little.
	Distances coordinate.Report
}

// An Uplink is what others may know of one uplink of a node.
type Uplink struct {
	Name      string           `json:"name"`
	Addrs     []netip.Addr     `json:"addrs,omitempty"`     // the host's own
	Reflexive []netip.AddrPort `json:"reflexive,omitempty"` // as STUN servers saw it; the port is the measuring socket's
	NAT       NAT              `json:"nat"`                 // of IPv4
	NAT6      NAT              `json:"nat6"`                // of IPv6
	// Forwarded are outside addresses at which packets to the host's tunnel ports are
	// let in unasked, because the operator or the gateway saw to that.
	Forwarded []netip.Addr `json:"forwarded,omitempty"`
	Lifetime  Lifetime     `json:"lifetime,omitempty"`  // of IPv4
	Lifetime6 Lifetime     `json:"lifetime6,omitempty"` // of IPv6
	Metered   bool         `json:"metered,omitempty"`
}

// SameOutside reports whether nothing differs that links between uplinks depend on.
// The ports of reflexive endpoints are other ones in each measurement.
func (u Uplink) SameOutside(v Uplink) bool {
	seen := func(u Uplink) []netip.Addr {
		var list []netip.Addr
		for _, r := range u.Reflexive {
			list = append(list, r.Addr())
		}
		slices.SortFunc(list, netip.Addr.Compare)
		return slices.Compact(list)
	}
	return u.NAT == v.NAT && u.NAT6 == v.NAT6 && slices.Equal(u.Addrs, v.Addrs) && slices.Equal(u.Forwarded, v.Forwarded) && slices.Equal(seen(u), seen(v))
}

// LifetimeOf gives the lifetime of an address's family.
func (u Uplink) LifetimeOf(a netip.Addr) Lifetime {
	if a.Is4() {
		return u.Lifetime
	}
	return u.Lifetime6
}

// NextSerial gives the serial after last at the clock reading micros.
func NextSerial(last, micros uint64) uint64 { return max(last+1, micros) }

// Encode gives the one encoding of f, or says which limit f breaks.
func (f Facts) Encode() ([]byte, error) {
	w := &writer{}
	w.byte(factsVersion)
	w.bytes(f.Mesh[:])
	w.bytes(f.Node[:])
	w.uint64(f.Serial)
	w.count("uplinks", len(f.Uplinks), MaxUplinks)
	for _, u := range f.Uplinks {
		w.text("uplink name", u.Name, 32)
		w.byte(byte(u.NAT))
		w.byte(byte(u.NAT6))
		w.bool(u.Metered)
		w.count("uplink addresses", len(u.Addrs), MaxUplinkAddrs)
		for _, a := range u.Addrs {
			w.addr(a)
		}
		w.addrPorts("reflexive endpoints", u.Reflexive, MaxReflexive)
		w.count("forwarded addresses", len(u.Forwarded), MaxForwarded)
		for _, a := range u.Forwarded {
			w.addr(a)
		}
		w.uint16(uint16(u.Lifetime))
		w.uint16(uint16(u.Lifetime6))
	}
	w.addrPorts("control endpoints", f.Control, MaxServices)
	w.addrPorts("STUN endpoints", f.STUN, MaxServices)
	w.text("version", f.Version, MaxVersion)
	here := f.Distances.Coordinate
	w.bool(!here.IsZero())
	if !here.IsZero() {
		for _, x := range append(here.Vector[:], here.Height, here.Adjustment) {
			w.uint32(uint32(x))
		}
		w.byte(here.Error)
	}
	w.count("round trips", len(f.Distances.RTT), MaxRoundTrips)
	for _, id := range slices.SortedFunc(maps.Keys(f.Distances.RTT), mesh.NodeID.Compare) {
		w.bytes(id[:])
		w.uint32(uint32(min(f.Distances.RTT[id]/time.Microsecond, math.MaxUint32)))
	}
	if w.err == nil {
		w.err = f.check()
	}
	if w.err == nil && len(w.b) > MaxFacts {
		w.fail("%d bytes of facts, at most %d", len(w.b), MaxFacts)
	}
	if w.err != nil {
		return nil, fmt.Errorf("encode facts: %w", w.err)
	}
	return w.b, nil
}

// DecodeFacts reads what Encode writes, and what it wrote in the version before.
func DecodeFacts(b []byte) (Facts, error) {
	if len(b) > MaxFacts {
		return Facts{}, fmt.Errorf("decode facts: %w: %d bytes, at most %d", ErrMalformed, len(b), MaxFacts)
	}
	r := &reader{b: b}
	version := r.byte()
	if version != factsVersion && version != factsBefore {
		r.fail("version %d", version)
	}
	f := Facts{Mesh: mesh.MeshID(r.take(8)), Node: mesh.NodeID(r.take(8)), Serial: r.uint64()}
	for range r.count("uplinks", MaxUplinks) {
		u := Uplink{Name: r.text("uplink name", 32), NAT: NAT(r.byte())}
		if version != factsBefore {
			u.NAT6 = NAT(r.byte())
		}
		u.Metered = r.bool()
		for range r.count("uplink addresses", MaxUplinkAddrs) {
			u.Addrs = append(u.Addrs, r.addr())
		}
		u.Reflexive = r.addrPorts("reflexive endpoints", MaxReflexive)
		if version != factsBefore {
			for range r.count("forwarded addresses", MaxForwarded) {
				u.Forwarded = append(u.Forwarded, r.addr())
			}
			u.Lifetime, u.Lifetime6 = Lifetime(r.uint16()), Lifetime(r.uint16())
		}
		f.Uplinks = append(f.Uplinks, u)
		if r.err != nil {
			break
		}
	}
	f.Control = r.addrPorts("control endpoints", MaxServices)
	f.STUN = r.addrPorts("STUN endpoints", MaxServices)
	f.Version = r.text("version", MaxVersion)
	if r.bool() {
		here := &f.Distances.Coordinate
		for i := range here.Vector {
			here.Vector[i] = int32(r.uint32())
		}
		here.Height, here.Adjustment = int32(r.uint32()), int32(r.uint32())
		here.Error = r.byte()
		if here.IsZero() {
			r.fail("a coordinate that says nothing")
		}
	}
	last := mesh.NodeID{}
	for range r.count("round trips", MaxRoundTrips) {
		id, rtt := mesh.NodeID(r.take(8)), time.Duration(r.uint32())*time.Microsecond
		if id.Compare(last) <= 0 {
			r.fail("round trips out of order")
			break
		}
		last = id
		if f.Distances.RTT == nil {
			f.Distances.RTT = map[mesh.NodeID]time.Duration{}
		}
		f.Distances.RTT[id] = rtt
	}
	err := r.end()
	if err == nil {
		err = f.check()
	}
	if err != nil {
		return Facts{}, fmt.Errorf("decode facts: %w", err)
	}
	return f, nil
}

// check holds what Encode refuses to write and DecodeFacts to read, beyond
// the limits of the encoding.
func (f Facts) check() error {
	if err := f.Distances.Coordinate.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	for id, rtt := range f.Distances.RTT {
		if id.IsZero() || rtt < time.Microsecond || rtt > maxRoundTrip {
			return fmt.Errorf("%w: round trip of %s to %s", ErrMalformed, rtt, id)
		}
	}
	names := make(map[string]bool, len(f.Uplinks))
	for _, u := range f.Uplinks {
		if err := mesh.CheckName(u.Name); err != nil {
			return fmt.Errorf("%w: uplink %w", ErrMalformed, err)
		}
		if names[u.Name] {
			return fmt.Errorf("%w: uplink %q twice", ErrMalformed, u.Name)
		}
		names[u.Name] = true
		if u.NAT >= natEnd || u.NAT6 >= natEnd {
			return fmt.Errorf("%w: uplink %q has NAT kinds %d and %d", ErrMalformed, u.Name, u.NAT, u.NAT6)
		}
		for _, a := range slices.Concat(u.Addrs, u.Forwarded) {
			if err := Usable(netip.AddrPortFrom(a, 1)); err != nil {
				return err
			}
		}
	}
	lists := [][]netip.AddrPort{f.Control, f.STUN}
	for _, u := range f.Uplinks {
		lists = append(lists, u.Reflexive)
	}
	for _, list := range lists {
		for _, a := range list {
			if err := Usable(a); err != nil {
				return err
			}
		}
	}
	if !utf8.ValidString(f.Version) || strings.ContainsFunc(f.Version, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("%w: version %q is not plain text", ErrMalformed, f.Version)
	}
	return nil
}

// Sign encodes f and signs it. The function signs with the identity key of
// f.Node.
func (f Facts) Sign(sign func(message []byte) []byte) (Signed, error) {
	body, err := f.Encode()
	if err != nil {
		return Signed{}, err
	}
	return Signed{Body: body, Signature: sign(append([]byte(factsDomain), body...))}, nil
}
