package firewall

import (
	"fmt"
	"hash"
	"net/netip"
	"slices"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names inside the table. Those of a device's sets and counter begin with the
// device.
const (
	setOwn, setMesh          = "own", "mesh" // + "4" or "6"
	setListed, setHeld       = "listed", "held"
	mapLinks                 = "links"
	suffixSources            = "-from" // + "4" or "6"
	suffixChain              = "-check"
	countUnlisted, countHeld = "unlisted", "held"
	countOwn, countOutside   = "own", "outside"
	countProbe               = "probe"
)

// elementsPerMessage keeps a message below the 64 KiB of a netlink attribute.
const elementsPerMessage = 1000

func table() *nftables.Table {
	return &nftables.Table{Name: mesh.FilterTable, Family: nftables.TableFamilyINet}
}

// A writer collects one transaction.
type writer struct {
	conn   *nftables.Conn
	table  *nftables.Table
	parts  map[string][]interval // what interval sets are made of, by name, sorted
	layout hash.Hash             // of chains and rules; nil: not wanted
	err    error
}

// end makes the transaction.
func (f *Firewall) end(w *writer) error {
	if w.err != nil {
		return w.err
	}
	err := w.conn.Flush()
	if err == nil {
		f.parts = w.parts
	}
	return err
}

// replace writes the whole table anew, in one transaction.
func (f *Firewall) replace(filter kernel.Filter) error {
	f.conn.AddTable(table()) // so that deleting one that is not there succeeds
	f.conn.DelTable(table())
	w := &writer{conn: f.conn, table: f.conn.AddTable(table()), parts: map[string][]interval{}}
	w.all(filter)
	return f.end(w)
}

// all makes everything that is in the table.
func (w *writer) all(filter kernel.Filter) {
	for _, c := range []string{countUnlisted, countHeld, countOwn, countOutside, countProbe} {
		w.counter(c)
	}
	w.addrs(setOwn, filter.Own)
	w.addrs(setMesh, filter.Mesh)
	w.add(deviceSet(w.table, setListed), nil)
	w.add(deviceSet(w.table, setHeld), deviceElements(held(filter)))
	w.add(linkMap(w.table), nil)
	for _, l := range filter.Links {
		w.list(l)
	}

	transit := w.chain("transit", nil)
	w.rule(transit, iif(), lookup(setHeld), count(countHeld), drop())
	w.fromTunnel(transit)
	local := w.chain("local", nil)
	w.rule(local, iif(), lookup(setListed), family(), inFamily(true), source(true), linkLocal(), equal(linkLocalNet), accept())
	w.fromTunnel(local)

	forward := w.chain("forward", nftables.ChainHookForward)
	w.rule(forward, iif(), isTunnel(), jump(transit))
	w.fromElsewhere(forward)
	w.rule(forward, clamp(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1})...)
	w.rule(forward, clamp(iif())...)

	input := w.chain("input", nftables.ChainHookInput)
	w.rule(input, iif(), isTunnel(), jump(local))
	w.rule(input, iif(), notTunnel(), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_UDP}),
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: 1},
		equal(binaryutil.BigEndian.PutUint16(mesh.ProbePort)), count(countProbe), drop())
	w.fromElsewhere(input)

	// A device greets the multicast groups of its address when it comes up.
	// Through a tunnel that would begin a WireGuard handshake, perhaps from
	// both ends at once, and then both fail and wait five seconds.
	output := w.chain("output", nftables.ChainHookOutput)
	w.rule(output, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, isTunnel(), family(), inFamily(true),
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 1, DestRegister: 1}, equal([]byte{0xff}), drop())
}

// fromTunnel ends a chain for packets from gw- devices: our own sources never,
// then the device's check, then nothing else.
func (w *writer) fromTunnel(c *nftables.Chain) {
	for _, v6 := range []bool{false, true} {
		w.rule(c, family(), inFamily(v6), source(v6), lookup(named(setOwn, v6)), count(countOwn), drop())
	}
	w.rule(c, iif(), &expr.Lookup{SourceRegister: 1, DestRegister: 0, IsDestRegSet: true, SetName: mapLinks})
	w.rule(c, count(countUnlisted), drop())
}

// fromElsewhere drops mesh sources that are not ours and come by neither a
// tunnel nor the loopback device.
func (w *writer) fromElsewhere(c *nftables.Chain) {
	for _, v6 := range []bool{false, true} {
		w.rule(c, iif(), notTunnel(), iif(), differ(ifname("lo")), family(), inFamily(v6), source(v6),
			lookup(named(setMesh, v6)), missing(named(setOwn, v6)), count(countOutside), drop())
	}
}

// list makes a device known: its counter, its sources and the chain that its
// packets end in, where what is not among the sources is dropped and the rest
// goes back to the base chain.
func (w *writer) list(l kernel.FilterLink) {
	w.addrs(l.Device+suffixSources, l.Sources)
	w.counter(l.Device)
	c := w.chain(l.Device+suffixChain, nil)
	for _, v6 := range []bool{false, true} {
		w.rule(c, family(), inFamily(v6), source(v6), missing(named(l.Device+suffixSources, v6)), count(l.Device), drop())
	}
	w.note(w.conn.SetAddElements(linkMap(w.table), linkElements(l.Device)))
	w.note(w.conn.SetAddElements(deviceSet(w.table, setListed), deviceElements([]string{l.Device})))
}

func listed(filter kernel.Filter) (names []string) {
	for _, l := range filter.Links {
		names = append(names, l.Device)
	}
	return names
}

func held(filter kernel.Filter) (names []string) {
	for _, l := range filter.Links {
		if l.Held {
			names = append(names, l.Device)
		}
	}
	return names
}

func (w *writer) note(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *writer) counter(name string) {
	w.conn.AddObj(counterObject(w.table, name))
}

func counterObject(t *nftables.Table, name string) *nftables.NamedObj {
	return &nftables.NamedObj{Table: t, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}}
}

// add makes a set with its elements.
func (w *writer) add(s *nftables.Set, elements []nftables.SetElement) {
	w.note(w.conn.AddSet(s, nil))
	for chunk := range slices.Chunk(elements, elementsPerMessage) {
		w.note(w.conn.SetAddElements(s, chunk))
	}
}

func deviceSet(t *nftables.Table, name string) *nftables.Set {
	return &nftables.Set{Table: t, Name: name, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian}
}

// linkMap leads from a device to its chain.
func linkMap(t *nftables.Table) *nftables.Set {
	m := deviceSet(t, mapLinks)
	m.IsMap, m.DataType = true, nftables.TypeVerdict
	return m
}

func linkElements(device string) []nftables.SetElement {
	return []nftables.SetElement{{Key: ifname(device), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: device + suffixChain}}}
}

func deviceElements(devices []string) []nftables.SetElement {
	elements := make([]nftables.SetElement, len(devices))
	for i, d := range devices {
		elements[i].Key = ifname(d)
	}
	return elements
}

// addrs makes two interval sets, one of each family.
func (w *writer) addrs(name string, ps []netip.Prefix) {
	for _, v6 := range []bool{false, true} {
		set := addrSet(w.table, name, v6)
		w.parts[set.Name] = intervals(ps, v6)
		w.add(set, intervalElements(w.parts[set.Name]))
	}
}

func addrSet(t *nftables.Table, name string, v6 bool) *nftables.Set {
	s := &nftables.Set{Table: t, Name: named(name, v6), Interval: true, KeyType: nftables.TypeIPAddr}
	if v6 {
		s.KeyType = nftables.TypeIP6Addr
	}
	return s
}

// intervalElements gives the begin and the end above of each interval; one
// that reaches to the last address has no end.
func intervalElements(list []interval) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, iv := range list {
		elements = append(elements, nftables.SetElement{Key: iv.first.AsSlice()})
		if end := iv.last.Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

func (w *writer) chain(name string, hook *nftables.ChainHook) *nftables.Chain {
	c := &nftables.Chain{Name: name, Table: w.table}
	if hook != nil {
		c.Hooknum, c.Priority, c.Type = hook, nftables.ChainPriorityFilter, nftables.ChainTypeFilter
		c.Policy = new(nftables.ChainPolicyAccept)
	}
	if w.layout != nil {
		fmt.Fprintf(w.layout, "chain %s %t\n", name, hook != nil)
	}
	return w.conn.AddChain(c)
}

func (w *writer) rule(c *nftables.Chain, exprs ...expr.Any) {
	if w.layout != nil {
		for _, e := range exprs {
			b, err := expr.Marshal(unix.NFPROTO_INET, e)
			w.note(err)
			fmt.Fprintf(w.layout, "%x ", b)
		}
		fmt.Fprintf(w.layout, "in %s\n", c.Name)
	}
	w.conn.AddRule(&nftables.Rule{Table: w.table, Chain: c, Exprs: exprs})
}

// The expressions below all work in register 1.

func iif() expr.Any { return &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1} }

// isTunnel compares only the beginning of the name.
func isTunnel() expr.Any  { return equal([]byte(mesh.InterfacePrefix)) }
func notTunnel() expr.Any { return differ([]byte(mesh.InterfacePrefix)) }

func equal(data []byte) expr.Any  { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
func differ(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }

func lookup(set string) expr.Any { return &expr.Lookup{SourceRegister: 1, SetName: set} }
func missing(set string) expr.Any {
	return &expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}
}

func count(name string) expr.Any { return &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name} }
func drop() expr.Any             { return &expr.Verdict{Kind: expr.VerdictDrop} }
func accept() expr.Any           { return &expr.Verdict{Kind: expr.VerdictAccept} }

func family() expr.Any { return &expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1} }

func inFamily(v6 bool) expr.Any {
	if v6 {
		return equal([]byte{unix.NFPROTO_IPV6})
	}
	return equal([]byte{unix.NFPROTO_IPV4})
}

// source loads the source address.
func source(v6 bool) expr.Any {
	if v6 {
		return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16, DestRegister: 1}
	}
	return &expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4, DestRegister: 1}
}

// linkLocalNet is fe80::, linkLocal cuts an address to its first 64 bits.
var linkLocalNet = netip.MustParseAddr("fe80::").AsSlice()

func linkLocal() expr.Any {
	mask := make([]byte, 16)
	for i := range 8 {
		mask[i] = 0xff
	}
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 16, Mask: mask, Xor: make([]byte, 16)}
}

// clamp lowers the MSS of TCP connections over tunnels, in the packet that
// announces it, to what the route's MTU allows: the smaller of both ways.
func clamp(device expr.Any) []expr.Any {
	const syn, rst = 0x02, 0x04
	return []expr.Any{
		device, isTunnel(),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP}),
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		equal([]byte{syn}),
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Op: expr.ExthdrOpTcpopt, Type: unix.TCPOPT_MAXSEG, Offset: 2, Len: 2},
	}
}

func jump(c *nftables.Chain) expr.Any {
	return &expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}
}

// ifname gives a device name as nft compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func named(set string, v6 bool) string {
	if v6 {
		return set + "6"
	}
	return set + "4"
}
