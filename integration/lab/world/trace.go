package world

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"guywire/mesh/api"
)

// counters are what the devices of a node have carried since they were made.
type counters struct {
	at      time.Duration // of CLOCK_MONOTONIC
	devices map[string]tally
}

// A tally is what one device has carried.
type tally struct{ rx, tx, txBytes uint64 }

// Rates are what each device of a node carries.
type Rates map[string]Rate

// A Rate is in packets and bits per second; bits are those of IP packets in tunnels, and of frames elsewhere.
type Rate struct {
	RX     float64 `json:"rx_pps"`
	TX     float64 `json:"tx_pps"`
	TXBits float64 `json:"tx_bit_per_s"`
}

// parseCounters reads /proc/net/dev, see proc_net_dev(5).
func parseCounters(at time.Duration, text string) (counters, error) {
	c := counters{at, map[string]tally{}}
	for line := range strings.Lines(text) {
		name, rest, found := strings.Cut(line, ":")
		if !found {
			continue // a heading
		}
		f := strings.Fields(rest)
		const rxPackets, txBytes, txPackets = 1, 8, 9
		if len(f) <= txPackets {
			return c, fmt.Errorf("/proc/net/dev has a strange line %q", line)
		}
		rx, err1 := strconv.ParseUint(f[rxPackets], 10, 64)
		tx, err2 := strconv.ParseUint(f[txPackets], 10, 64)
		bytes, err3 := strconv.ParseUint(f[txBytes], 10, 64)
		if err := cmp.Or(err1, err2, err3); err != nil {
			return c, fmt.Errorf("/proc/net/dev has a strange line %q: %w", line, err)
		}
		c.devices[strings.TrimSpace(name)] = tally{rx, tx, bytes}
	}
	return c, nil
}

// since gives the rates between two readings. Devices that are not in both are left out.
func (c counters) since(first counters) Rates {
	seconds := (c.at - first.at).Seconds()
	r := Rates{}
	for name, now := range c.devices {
		before, ok := first.devices[name]
		if !ok || seconds <= 0 || now.rx < before.rx || now.tx < before.tx || now.txBytes < before.txBytes {
			continue
		}
		r[name] = Rate{
			RX: float64(now.rx-before.rx) / seconds, TX: float64(now.tx-before.tx) / seconds,
			TXBits: 8 * float64(now.txBytes-before.txBytes) / seconds,
		}
	}
	return r
}

// A Leg is one tunnel on the way of a flow, in the direction of the flow.
type Leg struct {
	Node   string `json:"node"`
	Device string `json:"device"`
	Peer   string `json:"peer"`
	Local  string `json:"local"`  // uplink of Node
	Remote string `json:"remote"` // uplink of Peer
}

// A Trace is the way of a flow from site to site.
type Trace []Leg

// follow finds the way of a flow of pps packets per second from one site to another in what the tunnels of all sites carry.
// No other flow of such a rate may run, except the one back.
func follow(from, to string, pps float64, carried map[string]Rates, links map[string][]api.Link) (Trace, error) {
	var way Trace
	seen := map[string]bool{}
	for at := from; at != to; {
		seen[at] = true
		next, busiest, err := leave(at, to, pps, carried[at], links[at], seen)
		if err != nil {
			return way, fmt.Errorf("flow %s → %s: %w", from, to, err)
		}
		if next == nil {
			return way, fmt.Errorf("flow %s → %s leaves %s by no tunnel: the busiest sends %.0f of %.0f packets/s", from, to, at, busiest, pps)
		}
		if got := heard(at, carried[next.Peer], links[next.Peer]); got < pps/2 {
			return way, fmt.Errorf("flow %s → %s is lost between %s and %s: %s gets %.0f of %.0f packets/s", from, to, at, next.Peer, next.Peer, got, pps)
		}
		way = append(way, Leg{at, next.Device, next.Peer, next.Local, next.Remote})
		at = next.Peer
	}
	return way, nil
}

// leave returns the tunnel by which the flow leaves a site; nil when none carries enough for it.
func leave(at, to string, pps float64, carried Rates, links []api.Link, seen map[string]bool) (*api.Link, float64, error) {
	if len(links) == 0 {
		return nil, 0, fmt.Errorf("the tunnels of %s are not known", at)
	}
	var found []*api.Link
	busiest := 0.0
	for i := range links {
		l := &links[i]
		if l.Device == "" || seen[l.Peer] { // the flow back leaves to where we come from
			continue
		}
		tx := carried[l.Device].TX
		busiest = max(busiest, tx)
		if tx >= pps/2 {
			found = append(found, l)
		}
	}
	if len(found) == 0 {
		return nil, busiest, nil
	}
	// The flow back may cross here on another way: ours is rather the one that arrives.
	return slices.MinFunc(found, func(a, b *api.Link) int {
		if a.Peer == to != (b.Peer == to) {
			if a.Peer == to {
				return -1
			}
			return 1
		}
		return cmp.Compare(carried[b.Device].TX, carried[a.Device].TX)
	}), busiest, nil
}

// heard returns the most that a site gets by any of its tunnels from another.
func heard(from string, carried Rates, links []api.Link) (pps float64) {
	for _, l := range links {
		if l.Peer == from {
			pps = max(pps, carried[l.Device].RX)
		}
	}
	return pps
}

// nodes returns the sites on the way, both ends included.
func (t Trace) nodes() []string {
	if len(t) == 0 {
		return nil
	}
	names := []string{t[0].Node}
	for _, l := range t {
		names = append(names, l.Peer)
	}
	return names
}

// Transit returns the sites between the ends.
func (t Trace) Transit() []string {
	if len(t) < 2 {
		return nil
	}
	n := t.nodes()
	return n[1 : len(n)-1]
}

// text writes the way as "mad → fra → syd", with the uplinks of those sites that have several: "sto:isp1 → nyc". A site in
// the middle that comes in by one and goes out by another uplink is "sto:isp1,isp2".
func (t Trace) text(uplinks map[string]int) string {
	if len(t) == 0 {
		return "none"
	}
	var b strings.Builder
	for i, name := range t.nodes() {
		if i > 0 {
			b.WriteString(" → ")
		}
		b.WriteString(name)
		if uplinks[name] < 2 {
			continue
		}
		var used []string
		if i > 0 {
			used = append(used, t[i-1].Remote)
		}
		if i < len(t) {
			used = append(used, t[i].Local)
		}
		b.WriteString(":" + strings.Join(slices.Compact(used), ","))
	}
	return b.String()
}
