package store

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
)

// thousand is a mesh of n nodes with a prefix each, and with a full trail and
// memory of requests: what a snapshot holds after some months.
func thousand(b *testing.B, n int) (*world, invite.Token) {
	b.Helper()
	w := newWorld(b)
	w.rare = 1 << 40
	nodes := map[mesh.NodeID]Node{w.root.id(): w.s.Nodes[w.root.id()]}
	for i := range n - 1 {
		j := newJoiner(fmt.Sprintf("site-%d", i), fmt.Sprint("bench", i))
		a4, a6 := nth(w.s.Mesh.Pool4, uint64(i/254*256+i%254+2)), nth(w.s.Mesh.Pool6, uint64(i/254*256+i%254+2))
		nodes[j.id()] = Node{
			ID: j.id(), Name: j.name, Identity: j.identity, Keys: []Key{j.key}, Addr4: a4, Addr6: a6, Joined: testNow, Request: j.request,
			Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i/256), byte(i), 0}), 24)},
			Control:  []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:8686")}, Site: fmt.Sprint("site", i%50),
		}
	}
	s := *w.s
	s.Nodes = nodes
	for i := range uint64(Window - 1) {
		s.Answered = append(s.Answered, answer{key: answerKey{byte(i), byte(i >> 8), 1}, index: s.Index + 1 + i})
	}
	s.Index += Window
	w.s, w.index = &s, s.Index
	for range RecentRecords {
		w.must(w.by(Command{SetControl: &SetControl{Node: w.root.id()}}))
	}
	return w, w.addToken(1, func(t *Token) { t.Uses = MaxTokenUses })
}

func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1000, 5000} {
		w, inv := thousand(b, n)
		j := newJoiner("new", "new", "192.168.5.0/24")
		for name, c := range map[string]Command{
			"control": w.signed(w.by(Command{SetControl: &SetControl{Node: w.root.id()}})),
			"grant":   w.signed(w.by(Command{Grant: &Grant{Node: w.root.id(), Prefixes: prefixes("192.168.9.0/24")}})),
			"join":    j.join(inv),
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for b.Loop() {
					if _, r := Apply(w.s, w.index+1, c); r.Refused != nil {
						b.Fatal(r.Refused)
					}
				}
			})
		}
	}
}

func BenchmarkSnapshot(b *testing.B) {
	w, _ := thousand(b, 1000)
	var size int
	for b.Loop() {
		s, err := Snapshot(w.s)
		if err != nil {
			b.Fatal(err)
		}
		size = len(s)
	}
	b.ReportMetric(float64(size), "bytes")
}

func BenchmarkRestore(b *testing.B) {
	w, _ := thousand(b, 1000)
	s, err := Snapshot(w.s)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Restore(s); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReplay is the start of a voter: what the log holds after the
// newest snapshot.
func BenchmarkReplay(b *testing.B) {
	w, _ := thousand(b, 1000)
	var entries [][]byte
	start := w.s
	for i := range 1024 {
		c := w.by(Command{SetControl: &SetControl{Node: w.root.id(), Control: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, 1}), uint16(i+1))}}})
		c.Now = testNow.Add(time.Duration(i) * time.Second)
		c = w.signed(c)
		e, err := EncodeCommand(c)
		if err != nil {
			b.Fatal(err)
		}
		entries = append(entries, e)
		w.must(c)
	}
	for b.Loop() {
		s := start
		for _, e := range entries {
			c, err := DecodeCommand(e)
			if err != nil {
				b.Fatal(err)
			}
			s, _ = Apply(s, s.Index+1, c)
		}
		if s.Audit.Head != w.s.Audit.Head {
			b.Fatal("another history")
		}
	}
}
