package firewall

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"net/netip"
	"slices"
	"strings"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// answerSeconds bounds the wait for the kernel's answer.
const answerSeconds = 5

// dumpTries bounds how often a listing is repeated that changes interrupted.
const dumpTries = 8

// sizeofHeader is that of struct nfgenmsg. It holds the generation, so it is
// no part of what a listing says.
const sizeofHeader = 4

// A lister reads nftables with plain dumps: the library that writes the rules
// cannot read back all of them.
type lister struct{ sockets map[int]*nl.SocketHandle }

func newLister() (*lister, error) {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	wait := &unix.Timeval{Sec: answerSeconds}
	if err := errors.Join(s.SetSendTimeout(wait), s.SetReceiveTimeout(wait)); err != nil {
		s.Close()
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	return &lister{map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}}, nil
}

func (l *lister) close() { l.sockets[unix.NETLINK_NETFILTER].Close() }

// get sends a request for objects of our table and gives the answers' bodies.
func (l *lister) get(kind, flags int, attrs ...nl.NetlinkRequestData) ([][]byte, error) {
	var msgs [][]byte
	var err error
	for range dumpTries {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
		req.Sockets = l.sockets
		req.AddRawData([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0})
		for _, a := range attrs {
			req.AddRawData(a.Serialize())
		}
		msgs, err = req.Execute(unix.NETLINK_NETFILTER, 0)
		if !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	for i, m := range msgs {
		if len(m) < sizeofHeader {
			return nil, errShort
		}
		msgs[i] = m[sizeofHeader:]
	}
	return msgs, err
}

var errShort = errors.New("short nftables message")

// generation gives the number that every transaction of anyone increments.
func (l *lister) generation() (uint32, error) {
	msgs, err := l.get(unix.NFT_MSG_GETGEN, 0)
	if err != nil {
		return 0, fmt.Errorf("read nftables generation: %w", err)
	}
	for _, m := range msgs {
		attrs, err := parseAttrs(m)
		if id := attrs[unix.NFTA_GEN_ID]; err == nil && len(id) == 4 {
			return binary.BigEndian.Uint32(id), nil
		}
	}
	return 0, errShort
}

// A listing is what the kernel holds of our table.
type listing struct {
	exists bool
	sets   map[string][]element
	marks  []string // names of chains that are marks
	sum    [32]byte // of other chains, rules, sets, elements and the names of counters
	frame  [32]byte // the same without the elements of held, which change in a failover
}

// An element is one element of a set.
type element struct {
	key  []byte
	end  bool // ends an interval
	data []byte
}

// tableAttr gives the attribute that limits a dump to our table. It has the
// same number, 1, for all kinds of objects.
func tableAttr() nl.NetlinkRequestData {
	return nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(mesh.FilterTable))
}

func (l *lister) table() (listing, error) {
	if _, err := l.get(unix.NFT_MSG_GETTABLE, 0, tableAttr()); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return listing{}, nil
		}
		return listing{}, err
	}
	t := listing{exists: true, sets: map[string][]element{}}
	sum, frame := sha256.New(), sha256.New()
	for _, kind := range []int{unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_GETRULE, unix.NFT_MSG_GETSET, unix.NFT_MSG_GETOBJ} {
		msgs, err := l.get(kind, unix.NLM_F_DUMP, tableAttr())
		if err != nil {
			return listing{}, err
		}
		for _, m := range msgs {
			attrs, err := parseAttrs(m)
			if err != nil {
				return listing{}, err
			}
			// Old kernels dump other tables too.
			if text(attrs[unix.NFTA_RULE_TABLE]) != mesh.FilterTable {
				continue
			}
			still := m
			switch kind {
			case unix.NFT_MSG_GETCHAIN:
				if name := attrs[unix.NFTA_CHAIN_NAME]; isMark(name) {
					t.marks = append(t.marks, text(name))
					continue
				}
			case unix.NFT_MSG_GETOBJ: // holds counts, which change
				m = attrs[unix.NFTA_OBJ_NAME]
				still = m
			case unix.NFT_MSG_GETSET:
				name := text(attrs[unix.NFTA_SET_NAME])
				if t.sets[name], err = l.elements(name); err != nil {
					return listing{}, err
				}
				still = fmt.Appendf(nil, "%s %x", name, attrs[unix.NFTA_SET_FLAGS])
				m = fmt.Appendf(nil, "%s %v", still, t.sets[name])
				if name != setHeld {
					still = m
				}
			}
			for _, part := range []struct {
				of   hash.Hash
				body []byte
			}{{sum, m}, {frame, still}} {
				_ = binary.Write(part.of, binary.BigEndian, uint32(kind)<<16|uint32(len(part.body)))
				part.of.Write(part.body)
			}
		}
	}
	sum.Sum(t.sum[:0])
	frame.Sum(t.frame[:0])
	return t, nil
}

// elements gives the elements of a set in a stable order.
func (l *lister) elements(set string) ([]element, error) {
	msgs, err := l.get(unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, tableAttr(),
		nl.NewRtAttr(unix.NFTA_SET_ELEM_LIST_SET, nl.ZeroTerminated(set)))
	if err != nil {
		return nil, err
	}
	var out []element
	for _, m := range msgs {
		found, err := parseElements(m)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	slices.SortFunc(out, compareElements)
	return out, nil
}

// compareElements orders by key; where one interval ends another may begin.
func compareElements(a, b element) int {
	if c := bytes.Compare(a.key, b.key); c != 0 || a.end == b.end {
		return c
	}
	if a.end {
		return -1
	}
	return 1
}

// parseElements reads the body of an NFT_MSG_NEWSETELEM message.
func parseElements(m []byte) ([]element, error) {
	attrs, err := parseAttrs(m)
	if err != nil {
		return nil, err
	}
	var out []element
	err = eachAttr(attrs[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, item []byte) error {
		fields, err := parseAttrs(item)
		if err != nil {
			return err
		}
		key, err := parseAttrs(fields[unix.NFTA_SET_ELEM_KEY])
		if err != nil {
			return err
		}
		e := element{key: key[unix.NFTA_DATA_VALUE], data: fields[unix.NFTA_SET_ELEM_DATA]}
		if flags := fields[unix.NFTA_SET_ELEM_FLAGS]; len(flags) == 4 {
			e.end = binary.BigEndian.Uint32(flags)&unix.NFT_SET_ELEM_INTERVAL_END != 0
		}
		out = append(out, e)
		return nil
	})
	return out, err
}

// decode reads the filter out of the sets. What is missing there is missing in
// the filter.
func (t listing) decode() kernel.Filter {
	f := kernel.Filter{Own: t.prefixes(setOwn), Mesh: t.prefixes(setMesh)}
	for _, e := range t.sets[setListed] {
		l := kernel.FilterLink{Device: text(e.key)}
		l.Sources = t.prefixes(l.Device + suffixSources)
		l.Held = slices.ContainsFunc(t.sets[setHeld], func(h element) bool { return bytes.Equal(h.key, e.key) })
		f.Links = append(f.Links, l)
	}
	slices.SortFunc(f.Links, func(a, b kernel.FilterLink) int { return strings.Compare(a.Device, b.Device) })
	return f
}

func (t listing) prefixes(set string) []netip.Prefix {
	return kernel.Aggregate(append(prefixesOf(decodeIntervals(t.sets[named(set, false)], 4)), prefixesOf(decodeIntervals(t.sets[named(set, true)], 16))...))
}

// intervals gives what each interval set is made of.
func (t listing) intervals() map[string][]interval {
	out := map[string][]interval{}
	for name, elements := range t.sets {
		size := map[bool]int{false: 4, true: 16}[strings.HasSuffix(name, "6")]
		out[name] = decodeIntervals(elements, size)
	}
	return out
}

// decodeIntervals reads sorted elements; those of another size are not ours.
func decodeIntervals(elements []element, size int) []interval {
	var out []interval
	open := false
	for _, e := range elements {
		a, ok := netip.AddrFromSlice(e.key)
		switch {
		case !ok || len(e.key) != size:
		case e.end && open:
			out[len(out)-1].last = a.Prev()
			open = false
		case !e.end:
			// Without an end it reaches to the last address.
			out = append(out, interval{a, lastOf(netip.PrefixFrom(a, 0).Masked())})
			open = true
		}
	}
	return out
}

// text gives a string without its terminating zeros.
func text(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

// attrTypeMask cuts the flags off an attribute's type (NLA_TYPE_MASK).
const attrTypeMask = 0x3fff

func parseAttrs(b []byte) (map[uint16][]byte, error) {
	attrs := map[uint16][]byte{}
	err := eachAttr(b, func(kind uint16, value []byte) error {
		attrs[kind] = value
		return nil
	})
	return attrs, err
}

func eachAttr(b []byte, f func(kind uint16, value []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofNlAttr || n > len(b) {
			return errShort
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&attrTypeMask, b[unix.SizeofNlAttr:n]); err != nil {
			return err
		}
		b = b[min(len(b), (n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1)):]
	}
	return nil
}
