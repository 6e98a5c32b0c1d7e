package firewall

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"guywire/mesh"
	"guywire/mesh/kernel"

	"golang.org/x/sys/unix"
)

// Counts are packets and their bytes.
type Counts struct{ Packets, Bytes uint64 }

// A Counter says what was dropped, and why, since the table or the tunnel was
// made, or replaced by an earlier process.
type Counter struct {
	// Reason is "unlisted" (a tunnel that the filter does not know), "held",
	// "own" (our own source from outside), "outside" (a mesh source that did
	// not come by a tunnel), "probe" (a probe that did not come by a tunnel),
	// or "source": a source that may not arrive over Device.
	Reason string
	Device string // for "source"
	Counts
}

// Counters gives what was dropped, in a stable order. The counts go on when
// the table is replaced.
func (f *Firewall) Counters(ctx context.Context) ([]Counter, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := f.list.counts()
	if err != nil {
		return nil, fmt.Errorf("read nft counters: %w", err)
	}
	var out []Counter
	for name, c := range now {
		c.add(f.before[name])
		counter := Counter{Reason: name, Counts: c}
		if strings.HasPrefix(name, mesh.InterfacePrefix) {
			counter.Reason, counter.Device = "source", name
		}
		out = append(out, counter)
	}
	slices.SortFunc(out, func(a, b Counter) int {
		return strings.Compare(a.Reason+a.Device, b.Reason+b.Device)
	})
	return out, nil
}

func (c *Counts) add(d Counts) {
	c.Packets += d.Packets
	c.Bytes += d.Bytes
}

// keepCounts saves the counts of a table that is about to be replaced.
func (f *Firewall) keepCounts() {
	now, err := f.list.counts()
	if err != nil {
		return // no table, or none that can be read: nothing to keep
	}
	for name, c := range now {
		c.add(f.before[name])
		f.before[name] = c
	}
}

// forgetCounts forgets devices that are gone.
func (f *Firewall) forgetCounts(next kernel.Filter) {
	devices := listed(next)
	maps.DeleteFunc(f.before, func(name string, _ Counts) bool {
		return strings.HasPrefix(name, mesh.InterfacePrefix) && !slices.Contains(devices, name)
	})
}

// counts reads the named counters of our table.
func (l *lister) counts() (map[string]Counts, error) {
	msgs, err := l.get(unix.NFT_MSG_GETOBJ, unix.NLM_F_DUMP, tableAttr())
	if err != nil {
		return nil, err
	}
	out := map[string]Counts{}
	for _, m := range msgs {
		attrs, err := parseAttrs(m)
		if err != nil {
			return nil, err
		}
		data, err := parseAttrs(attrs[unix.NFTA_OBJ_DATA])
		if err != nil {
			return nil, err
		}
		if text(attrs[unix.NFTA_OBJ_TABLE]) == mesh.FilterTable {
			out[text(attrs[unix.NFTA_OBJ_NAME])] = Counts{
				Packets: uint64Of(data[unix.NFTA_COUNTER_PACKETS]), Bytes: uint64Of(data[unix.NFTA_COUNTER_BYTES]),
			}
		}
	}
	return out, nil
}

func uint64Of(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}
