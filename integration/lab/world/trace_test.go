package world

import (
	"slices"
	"strings"
	"testing"

	"guywire/mesh/api"
)

func link(device, peer, local, remote string) api.Link {
	return api.Link{Device: device, Peer: peer, Local: local, Remote: remote, State: api.LinkUp}
}

// The tunnels of four sites; s has two uplinks.
var meshLinks = map[string][]api.Link{
	"a": {link("ab", "b", "i", "i"), link("ac", "c", "i", "i"), link("as1", "s", "i", "x"), link("as2", "s", "i", "y"), {Peer: "z", State: api.LinkIdle}},
	"b": {link("ba", "a", "i", "i"), link("bc", "c", "i", "i"), link("bs1", "s", "i", "x"), link("bs2", "s", "i", "y")},
	"c": {link("ca", "a", "i", "i"), link("cb", "b", "i", "i"), link("cs1", "s", "i", "x"), link("cs2", "s", "i", "y")},
	"s": {link("sa1", "a", "x", "i"), link("sa2", "a", "y", "i"), link("sb1", "b", "x", "i"), link("sb2", "b", "y", "i"), link("sc1", "c", "x", "i"), link("sc2", "c", "y", "i")},
}

// carry gives each device its rate of transmission, and the far end the same of reception unless it is negative: then all
// is lost. Probes make all others a little busy.
func carry(pps map[string]float64) map[string]Rates {
	all := map[string]Rates{}
	for node, links := range meshLinks {
		all[node] = Rates{"lan": {TX: 500}}
		for _, l := range links {
			all[node][l.Device] = Rate{TX: 60 + max(pps[l.Device], -pps[l.Device])}
		}
	}
	for node, links := range meshLinks {
		for _, l := range links {
			for _, far := range meshLinks[l.Peer] {
				if far.Peer == node && far.Local == l.Remote && far.Remote == l.Local {
					r := all[l.Peer][far.Device]
					r.RX = 60 + max(pps[l.Device], 0)
					all[l.Peer][far.Device] = r
				}
			}
		}
	}
	return all
}

func TestFollow(t *testing.T) {
	uplinks := map[string]int{"a": 1, "b": 1, "c": 1, "s": 2}
	for name, c := range map[string]struct {
		from, to string
		pps      map[string]float64
		want     string // or a piece of the error
	}{
		"direct":             {"a", "b", map[string]float64{"ab": 500, "ba": 500}, "a → b"},
		"transit, both ways": {"a", "b", map[string]float64{"ac": 500, "cb": 500, "bc": 500, "ca": 500}, "a → c → b"},
		"another way back":   {"a", "b", map[string]float64{"ac": 500, "cb": 500, "bs1": 500, "sa1": 500}, "a → c → b"},
		"the uplinks of s":   {"a", "b", map[string]float64{"as1": 500, "sb2": 500, "ba": 500}, "a → s:x,y → b"},
		"into s":             {"b", "s", map[string]float64{"bs2": 500, "sb1": 500}, "b → s:y"},
		"out of s":           {"s", "b", map[string]float64{"bs2": 500, "sb1": 500}, "s:x → b"},
		// The way there is a-c-b, the way back b-c-s-a: at c both leave, to b and to s.
		"crossing":         {"a", "b", map[string]float64{"ac": 500, "cb": 490, "bc": 500, "cs1": 510, "sa1": 500}, "a → c → b"},
		"lost at a":        {"a", "b", map[string]float64{"ab": 100}, "leaves a by no tunnel: the busiest sends 160 of 500"},
		"lost in a tunnel": {"a", "b", map[string]float64{"ac": 500, "cb": -500}, "lost between c and b: b gets 60 of 500"},
		"lost on the way":  {"a", "b", map[string]float64{"ac": 500}, "leaves c by no tunnel"},
		"no loop for ever": {"a", "b", map[string]float64{"ac": 500, "cs1": 500, "sc1": 500, "sa1": 500}, "leaves s by no tunnel"},
		"unknown site":     {"q", "b", nil, "tunnels of q are not known"},
	} {
		t.Run(name, func(t *testing.T) {
			way, err := follow(c.from, c.to, 500, carry(c.pps), meshLinks)
			got := way.text(uplinks)
			if err != nil {
				got = err.Error()
			}
			if got != c.want && (err == nil || !strings.Contains(got, c.want)) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestTransit(t *testing.T) {
	way, err := follow("a", "b", 500, carry(map[string]float64{"ac": 500, "cb": 500}), meshLinks)
	if err != nil {
		t.Fatal(err)
	}
	if got := way.Transit(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("transit: %v", got)
	}
	if got := way[:1].Transit(); len(got) > 0 {
		t.Errorf("a direct flow has transit %v", got)
	}
	if got := involved([2]Trace{way, nil}, [2]Trace{way[1:], way[:1]}); strings.Join(got, " ") != "a c b" {
		t.Errorf("involved: %v", got)
	}
}
