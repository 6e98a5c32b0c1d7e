package firewall

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"github.com/google/nftables"
)

// update changes the table from one filter to another, element by element, in
// one transaction, and does not touch what both have. A table replaced as a
// whole loses packets: a rule of the old generation that looks into a map while
// the transaction ends finds nothing there, because each look reads anew which
// generation counts (until Linux 6.17).
func (f *Firewall) update(from, to kernel.Filter) error {
	w := &writer{conn: f.conn, table: table(), parts: maps.Clone(f.parts)}
	before := map[string]kernel.FilterLink{}
	for _, l := range from.Links {
		before[l.Device] = l
	}
	w.moveDevices(held(from), held(to))
	for _, l := range to.Links {
		if old, ok := before[l.Device]; ok {
			w.moveAddrs(l.Device+suffixSources, old.Sources, l.Sources)
		} else {
			w.list(l)
		}
		delete(before, l.Device)
	}
	for _, l := range from.Links {
		if _, gone := before[l.Device]; gone {
			w.unlist(l.Device)
		}
	}
	w.moveAddrs(setOwn, from.Own, to.Own)
	w.moveAddrs(setMesh, from.Mesh, to.Mesh)
	return f.end(w)
}

// unlist undoes list.
func (w *writer) unlist(device string) {
	w.note(w.conn.SetDeleteElements(deviceSet(w.table, setListed), deviceElements([]string{device})))
	w.note(w.conn.SetDeleteElements(linkMap(w.table), linkElements(device)))
	c := &nftables.Chain{Table: w.table, Name: device + suffixChain}
	w.conn.FlushChain(c)
	w.conn.DelChain(c)
	for _, v6 := range []bool{false, true} {
		set := addrSet(w.table, device+suffixSources, v6)
		w.conn.DelSet(set)
		delete(w.parts, set.Name)
	}
	w.conn.DeleteObject(counterObject(w.table, device))
}

// moveDevices changes which devices are held.
func (w *writer) moveDevices(from, to []string) {
	set := deviceSet(w.table, setHeld)
	if gone := without(from, to); len(gone) > 0 {
		w.note(w.conn.SetDeleteElements(set, deviceElements(gone)))
	}
	if added := without(to, from); len(added) > 0 {
		w.note(w.conn.SetAddElements(set, deviceElements(added)))
	}
}

// moveAddrs changes two interval sets, one of each family. Intervals that are
// wanted as a whole stay as they are, even where they could be joined with new
// ones: of one that is deleted and added with another end in one transaction, the
// one that does not count can hide the other while both are in the set's tree.
func (w *writer) moveAddrs(name string, from, to []netip.Prefix) {
	if slices.Equal(from, to) {
		return
	}
	for _, v6 := range []bool{false, true} {
		set := addrSet(w.table, name, v6)
		wanted := intervals(to, v6)
		var kept, gone []interval
		for _, iv := range w.parts[set.Name] {
			if covered(iv, wanted) {
				kept = append(kept, iv)
			} else {
				gone = append(gone, iv)
			}
		}
		added := uncovered(wanted, kept)
		for chunk := range slices.Chunk(intervalElements(gone), elementsPerMessage) {
			w.note(w.conn.SetDeleteElements(set, chunk))
		}
		for chunk := range slices.Chunk(intervalElements(added), elementsPerMessage) {
			w.note(w.conn.SetAddElements(set, chunk))
		}
		w.parts[set.Name] = sorted(append(kept, added...))
	}
}

// without gives what is in list and not in other, in its order.
func without[T comparable](list, other []T) []T {
	in := make(map[T]bool, len(other))
	for _, x := range other {
		in[x] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(x T) bool { return in[x] })
}

// markPrefix begins the name of an empty chain that tells the next process that
// the table is as one of ours left it, so that it need not be replaced.
const markPrefix = "mark-"

// layout is what the chains and rules look like that this version writes.
func layout() [32]byte {
	w := &writer{conn: &nftables.Conn{}, table: table(), layout: sha256.New(), parts: map[string][]interval{}}
	w.all(kernel.Filter{Links: []kernel.FilterLink{{Device: mesh.InterfacePrefix}}})
	return [32]byte(w.layout.Sum(nil))
}

// markOf is the mark of a table with these chains, rules and elements.
func (f *Firewall) markOf(t listing) string {
	sum := sha256.Sum256(slices.Concat(f.layout[:], t.frame[:]))
	return markPrefix + hex.EncodeToString(sum[:16])
}

// mark leaves the mark of t, which was listed in generation gen. It is no
// part of what an observation says.
func (f *Firewall) mark(t listing, gen uint32) error {
	name := f.markOf(t)
	if slices.Equal(t.marks, []string{name}) {
		return nil
	}
	for _, old := range t.marks {
		f.conn.DelChain(&nftables.Chain{Table: table(), Name: old})
	}
	f.conn.AddChain(&nftables.Chain{Table: table(), Name: name})
	if err := f.conn.Flush(); err != nil {
		return fmt.Errorf("mark nft table: %w", err)
	}
	after, err := f.list.generation()
	if err == nil && after == gen+1 {
		f.gen = after
	}
	return err
}

// isMark reports whether a chain of that name is a mark.
func isMark(name []byte) bool {
	return bytes.HasPrefix(name, []byte(markPrefix))
}
