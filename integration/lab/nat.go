package lab

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// natMapping is how long a full-cone or address-restricted box remembers a mapping, unless the network file says
// otherwise: as long as conntrack keeps an answered UDP flow.
const natMapping = 120 * time.Second

// Registers. An nftables register of 16 bytes is four of 4 bytes; a concatenation fills them one after the other.
const (
	regKey, regKey2   = 1, 9  // the first register, and its second quarter
	regData, regData2 = 2, 13 // the second register, and its second quarter
)

// translate puts the rules of a NAT box or firewall in place, all in one batch. Existing ones are replaced and their
// learned mappings are forgotten; conntrack is left alone.
func (f *fabric) translate(n *nodePlan) error {
	uplink := f.wan(n.name)
	box := &natBox{t: &n.spec.Translation, wan: uplink.iface}
	if wanAddr, ok := uplink.addr(false); ok {
		box.addr = wanAddr.Addr().AsSlice()
	}
	s := f.spaces[n.name]
	if err := s.nft(box.build); err != nil {
		return err
	}
	// Only now, because the settings exist once a rule has loaded connection tracking.
	if d := n.spec.MappingTimeout; d > 0 {
		for _, key := range []string{"udp_timeout", "udp_timeout_stream"} {
			if err := s.sysctl("net.netfilter.nf_conntrack_"+key, strconv.Itoa(int(d/time.Second))); err != nil {
				return err
			}
		}
	}
	return nil
}

// change makes another kind of the box. Flows that it knows keep their mappings, as on a box that begins to behave otherwise
// under load; others are mapped anew.
func (f *fabric) change(n *nodePlan, to Translation) error {
	was := n.spec.Translation
	if to.Mapping != EIMRandomPort {
		to.Ports = ""
	}
	if err := to.validateTranslation(n.name); err != nil {
		if fe, ok := errors.AsType[*FileError](err); ok {
			return errors.New(fe.Text)
		}
		return err
	}
	if (was.Mapping == NoNAT) != (to.Mapping == NoNAT) {
		return fmt.Errorf("%s cannot become %s: the addresses behind it would be others; make another network file", n.name, to.Mapping)
	}
	n.spec.Translation = to
	if err := f.translate(n); err != nil {
		n.spec.Translation = was
		return err
	}
	return nil
}

// wan returns the box's own end of its uplink.
func (f *fabric) wan(node string) endPlan {
	for _, l := range f.lo.linksOf(node) {
		if l.uplink != nil && l.ends[0].node == node {
			return l.ends[0]
		}
	}
	panic("lab: a nat without an uplink passed validation: " + node)
}

// forget drops every mapping of the box: rules, learned sets and connection tracking.
func (f *fabric) forget(n *nodePlan) error {
	if err := f.translate(n); err != nil {
		return err
	}
	if err := f.spaces[n.name].nl.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		return fmt.Errorf("flush connection tracking in %s: %w", n.name, err)
	}
	return nil
}

// natBox writes the rules of one box.
//
// The kernel alone gives endpoint-independent mapping with a kept port and port-dependent filtering (masquerade), or
// mapping per destination (fully-random). What it lacks is learned from outgoing packets behind the source translation:
// the outer port, or peer and outer port, as key of a map to the inside address and port that DNAT then uses.
type natBox struct {
	t    *Translation
	wan  string
	addr []byte // of the outside, IPv4
}

func (b *natBox) build(c *nftables.Conn) {
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		t := &nftables.Table{Name: tableName, Family: family}
		c.AddTable(t) // so that deleting it cannot fail
		c.DelTable(t)
	}
	b.filter(c, c.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}))
	if b.t.Mapping != NoNAT {
		b.masquerade(c, c.AddTable(&nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}))
	}
}

func chain(c *nftables.Conn, t *nftables.Table, typ nftables.ChainType, name string, hook *nftables.ChainHook, prio *nftables.ChainPriority) func(parts ...any) {
	ch := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: typ, Hooknum: hook, Priority: prio})
	return func(parts ...any) { c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: rule(parts...)}) }
}

// filter is the firewall of the box, for both families: nothing comes in that was not asked for.
func (b *natBox) filter(c *nftables.Conn, t *nftables.Table) {
	forward := chain(c, t, nftables.ChainTypeFilter, "forward", nftables.ChainHookForward, nftables.ChainPriorityFilter)
	if b.t.BlockUDP {
		forward(udp(), drop())
	}
	for _, only := range []struct {
		name     string
		protocol byte
		ports    []uint16
	}{{"udp_ports", unix.IPPROTO_UDP, b.t.UDPPorts}, {"tcp_ports", unix.IPPROTO_TCP, b.t.TCPPorts}} {
		if len(only.ports) == 0 {
			continue
		}
		ports := &nftables.Set{Table: t, Name: only.name, KeyType: nftables.TypeInetService}
		var elems []nftables.SetElement
		for _, p := range only.ports {
			elems = append(elems, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p)})
		}
		if err := c.AddSet(ports, elems); err != nil {
			panic("lab: a set of ports must encode: " + err.Error())
		}
		forward(notFrom(b.wan), transport(only.protocol), dport(regKey), &expr.Lookup{SourceRegister: regKey, SetName: ports.Name, SetID: ports.ID, Invert: true}, drop())
	}
	forward(from(b.wan), isNew(), ctBits(expr.CtKeySTATUS, ctStatusDNAT, expr.CmpOpEq), drop())
	if b.t.inputDrop() {
		input := chain(c, t, nftables.ChainTypeFilter, "input", nftables.ChainHookInput, nftables.ChainPriorityFilter)
		input(from(b.wan), isNew(), drop())
	}
}

func (b *natBox) masquerade(c *nftables.Conn, t *nftables.Table) {
	prerouting := chain(c, t, nftables.ChainTypeNAT, "prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	postrouting := chain(c, t, nftables.ChainTypeNAT, "postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	learn := chain(c, t, nftables.ChainTypeFilter, "learn", nftables.ChainHookPostrouting, nftables.ChainPriorityRef(300))

	dnat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: regData, RegProtoMin: regData2}
	if b.t.Mapping == FullCone || b.t.Hairpin {
		byPort := b.learned(c, t, "by_port", false)
		find := &expr.Lookup{SourceRegister: regKey, DestRegister: regData, IsDestRegSet: true, SetName: byPort.Name, SetID: byPort.ID}
		if b.t.Mapping == FullCone {
			prerouting(from(b.wan), toLocal(), udp(), dport(regKey), find, dnat)
		}
		if b.t.Hairpin {
			prerouting(notFrom(b.wan), toLocal(), udp(), dport(regKey), find, dnat)
			postrouting(notTo(b.wan), ctBits(expr.CtKeySTATUS, ctStatusDNAT, expr.CmpOpNeq),
				&expr.Immediate{Register: 1, Data: b.addr},
				&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1})
		}
		b.remember(learn, byPort, sport(regKey))
	}
	if b.t.Mapping == ADF {
		byPeer := b.learned(c, t, "by_peer", true)
		prerouting(from(b.wan), toLocal(), udp(), saddr(regKey), dport(regKey2),
			&expr.Lookup{SourceRegister: regKey, DestRegister: regData, IsDestRegSet: true, SetName: byPeer.Name, SetID: byPeer.ID}, dnat)
		b.remember(learn, byPeer, daddr(regKey), sport(regKey2))
	}

	switch b.t.Mapping {
	case EIMRandomPort:
		lo, hi, err := b.t.portRange()
		if err != nil {
			panic("lab: a bad port range passed validation: " + err.Error())
		}
		// As masquerade to :lo-hi would; the library does not say PROTO_SPECIFIED there.
		postrouting(to(b.wan), udp(),
			&expr.Immediate{Register: 1, Data: b.addr},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(lo)},
			&expr.Immediate{Register: 3, Data: binaryutil.BigEndian.PutUint16(hi)},
			&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2, RegProtoMax: 3, Specified: true})
	case Symmetric:
		postrouting(to(b.wan), &expr.Masq{FullyRandom: true})
	}
	postrouting(to(b.wan), &expr.Masq{})
}

// learned adds a map to inside address and port, from the outer port or from peer and outer port.
func (b *natBox) learned(c *nftables.Conn, t *nftables.Table, name string, peer bool) *nftables.Set {
	life := natMapping
	if b.t.MappingTimeout > 0 {
		life = b.t.MappingTimeout
	}
	socket := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	set := &nftables.Set{
		Table: t, Name: name, IsMap: true, Dynamic: true, HasTimeout: true, Timeout: life, Size: 65535,
		KeyType: nftables.TypeInetService, DataType: socket,
	}
	if peer {
		set.KeyType, set.Concatenation = socket, true
	}
	if err := c.AddSet(set, nil); err != nil {
		panic("lab: an empty map must encode: " + err.Error())
	}
	return set
}

// remember fills the map from what leaves. The inside end of a flow is the source of its original direction if the flow
// began inside, and the source of its reply direction if it came in through the map.
func (b *natBox) remember(learn func(...any), set *nftables.Set, key ...expr.Any) {
	for direction := range uint32(2) {
		learn(to(b.wan), udp(), ctDirection(byte(direction)), key,
			&expr.Ct{Key: expr.CtKeySRC, Register: regData, Direction: direction},
			&expr.Ct{Key: expr.CtKeyPROTOSRC, Register: regData2, Direction: direction},
			&expr.Dynset{SrcRegKey: regKey, SrcRegData: regData, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE})
	}
}
