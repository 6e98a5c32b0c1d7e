package agent

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/mesh/link"
)

// seenBody says where the tunnels of a third node are seen.
type seenBody struct {
	Addrs []netip.Addr `json:"addrs"`
}

// errUnseen: a node may be anywhere, as far as others tell.
var errUnseen = errors.New("too few other members see the far end")

// serveSeen tells another node where a third one is seen: a hint, by which it decides
// whether to send packets there that nobody has asked for.
func (m *member) serveSeen(w http.ResponseWriter, r *http.Request) {
	var node mesh.NodeID
	if err := node.UnmarshalText([]byte(r.URL.Query().Get("node"))); err != nil {
		control.Fail(w, &control.Error{Status: http.StatusBadRequest, Code: control.CodeMalformed, Message: "which node? " + err.Error()})
		return
	}
	if !m.mayAsk(control.Caller(r.Context()), time.Now()) {
		control.Fail(w, &control.Error{Status: http.StatusTooManyRequests, Code: control.CodeBusy, Message: "one such question a second; try again"})
		return
	}
	var links []core.LinkView
	if err := m.query(r.Context(), func(n *core.Node) { links = n.Links() }); err != nil {
		control.Fail(w, err)
		return
	}
	control.Reply(w, seenBody{vouched(links, node, r.URL.Query().Get("uplink"), time.Now())})
}

// mayAsk bounds what one node costs this one.
func (m *member) mayAsk(caller mesh.NodeID, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.witnessed, func(_ mesh.NodeID, last time.Time) bool { return now.Sub(last) >= witnessEvery })
	if _, lately := m.witnessed[caller]; lately {
		return false
	}
	m.witnessed[caller] = now
	return true
}

// vouched gives the outside IPv4 addresses at which an uplink of a node has been for a
// while, with a tunnel that works: packets that it sends from a made-up address take
// the tunnel down, since nothing comes back.
func vouched(links []core.LinkView, node mesh.NodeID, uplink string, now time.Time) (list []netip.Addr) {
	for _, l := range links {
		id, at := l.Record.Link, l.Traffic.Endpoint
		if id.Peer != node || id.Remote != uplink || !l.Tunnel || !l.Usable || l.State != link.Up || l.Record.Class == discovery.ClassCarrier {
			continue
		}
		settled := now.Sub(l.Since) >= witnessSettled && now.Sub(l.Roamed) >= witnessSettled
		if a := at.Addr(); settled && discovery.Usable(at) == nil && a.Is4() && discovery.Global(a) && !slices.Contains(list, a) {
			list = append(list, a)
		}
	}
	return list
}

// seenAt asks members to whom a node says that it has links where it is, and gives what
// two of them agree on, or one where there is only one other.
func (m *member) seenAt(ctx context.Context, node mesh.NodeID, uplink string) ([]netip.Addr, error) {
	var adjacent []mesh.NodeID
	if err := m.query(ctx, func(n *core.Node) { adjacent = n.Adjacent(node) }); err != nil {
		return nil, err
	}
	nodes := m.standing.Load().state.Nodes
	third := func(id mesh.NodeID) bool { _, member := nodes[id]; return member && id != m.self && id != node }
	others := 0
	for id := range nodes {
		if third(id) {
			others++
		}
	}
	ask := slices.DeleteFunc(adjacent, func(id mesh.NodeID) bool { return !third(id) })
	slices.SortFunc(ask, mesh.NodeID.Compare)
	ask = slices.Compact(ask)
	rand.Shuffle(len(ask), func(i, j int) { ask[i], ask[j] = ask[j], ask[i] })
	ask = ask[:min(len(ask), maxWitnesses)]

	ctx, cancel := context.WithTimeout(ctx, witnessPatience)
	defer cancel()
	said := make(chan seenBody)
	path := "/v1/link/seen?" + url.Values{"node": {node.String()}, "uplink": {uplink}}.Encode()
	for _, id := range ask {
		go func() { // ends with ctx, at the latest
			var b seenBody
			if err := m.plane.Do(ctx, id, http.MethodGet, path, nil, &b); err != nil {
				b = seenBody{} // it saw nothing
			}
			said <- b
		}()
	}
	var words [][]netip.Addr
	for range ask {
		words = append(words, (<-said).Addrs)
	}
	if list := agreed(words, min(2, others)); len(list) > 0 {
		return list, nil
	}
	return nil, errUnseen
}

// agreed gives the addresses that enough witnesses name, each of whom counts once.
func agreed(words [][]netip.Addr, enough int) (list []netip.Addr) {
	count := map[netip.Addr]int{}
	for _, w := range words {
		w = slices.Clone(w)
		slices.SortFunc(w, netip.Addr.Compare)
		for _, a := range slices.Compact(w) {
			if count[a]++; count[a] == max(enough, 1) {
				list = append(list, a)
			}
		}
	}
	return list
}
