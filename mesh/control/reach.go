package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"

	"guywire/discovery"
	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// reachRequest asks the other end to dial back.
type reachRequest struct {
	Ports      []uint16         `json:"ports"` // at the address that the server sees
	Candidates []netip.AddrPort `json:"candidates"`
}

// A reachAnswer is what one server found.
type reachAnswer struct {
	Reached []netip.AddrPort `json:"reached"`
	// Unjudged are those that the server has no way to itself: its answer says
	// nothing about them.
	Unjudged []netip.AddrPort `json:"unjudged,omitempty"`
	// STUN are the endpoints of the caller's STUN server that answered, at the
	// reached addresses; nil: the server did not ask.
	STUN []netip.AddrPort `json:"stun"`
}

// beReached lets other nodes measure where this node's control port and STUN
// server can be reached. The former is recorded: nobody else may say so but a
// voter. When nobody reaches it any more, that is recorded, too. A voter does
// not: it is one until the leader says otherwise.
func (p *Plane) beReached() {
	r := reaching{plane: p, turn: rand.Uint(), ports: memory{}, servers: memory{}}
	for pause := reachFirst; p.sleep(jitter(pause)); {
		pause = min(2*pause, reachRetry)
		settled, err := r.measure()
		if err != nil {
			p.logger.Debug("reachability not measured", mesh.LogError, err)
		}
		if settled {
			pause = reachEvery
		}
	}
}

// reaching is what a node knows from those whom it asked where it is reached.
type reaching struct {
	plane          *Plane
	turn           uint // of the judges
	answers        int
	heard          witness
	ports, servers memory // of control ports, and of STUN servers
}

// measure asks one judge and records what changes by it. settled: there is nothing
// that others should be asked about soon.
func (r *reaching) measure() (settled bool, err error) {
	p := r.plane
	answer, judges, err := p.askReach(r.turn, &r.heard)
	r.turn++
	if err != nil {
		return false, err
	}
	r.answers++
	enough := max(reachMisses, judges)
	if answer.STUN != nil {
		p.setSTUN(r.servers.take(p.STUN(), answer.STUN, stunAt(answer.Unjudged), enough))
	}
	self := p.State().Nodes[p.id]
	reached := outermost(r.ports.take(self.Control, answer.Reached, answer.Unjudged, enough))
	if !sameSet(reached, self.Control) && (len(reached) > 0 || !self.Voter) {
		result, err := p.Propose(p.life, store.Command{SetControl: &store.SetControl{Node: p.id, Control: reached}})
		if err == nil && result.Refused != nil {
			err = result.Refused
		}
		if err != nil {
			return false, err
		}
		p.logger.Info("control port measured", mesh.LogEndpoint, reached)
	}
	clear := len(answer.Reached) > 0 && len(answer.Unjudged) == 0 || r.answers >= enough
	return clear && len(r.ports) == 0 && len(r.servers) == 0, nil
}

// A memory counts the answers in a row in which a known address was missed. What
// one server cannot reach others may, and each change is written to the log: so an
// address stays until nobody has reached it for a while.
type memory map[netip.AddrPort]int

// take gives what is known after an answer, in the order in which it became known.
func (m memory) take(known, reached, unjudged []netip.AddrPort, enough int) []netip.AddrPort {
	maps.DeleteFunc(m, func(a netip.AddrPort, _ int) bool { return !slices.Contains(known, a) || slices.Contains(reached, a) })
	var now []netip.AddrPort
	for _, a := range known {
		if !slices.Contains(reached, a) && !slices.Contains(unjudged, a) {
			m[a]++
		}
		if m[a] < enough {
			now = append(now, a)
		} else {
			delete(m, a)
		}
	}
	for _, a := range reached {
		if !slices.Contains(now, a) {
			now = append(now, a)
		}
	}
	return now[:min(len(now), store.MaxControl)]
}

// outermost leaves out private addresses when there are others: they mean
// something else to most nodes.
func outermost(list []netip.AddrPort) []netip.AddrPort {
	if !slices.ContainsFunc(list, isGlobal) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(a netip.AddrPort) bool { return !isGlobal(a) })
}

func isGlobal(a netip.AddrPort) bool { return discovery.Global(a.Addr()) }

// stunAt are the endpoints of the STUN server at the addresses of a list.
func stunAt(list []netip.AddrPort) []netip.AddrPort {
	out := make([]netip.AddrPort, 0, len(list))
	for _, a := range list {
		if s := netip.AddrPortFrom(a.Addr(), mesh.StunPort); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// STUN is where this node's STUN server answers others, as far as they have
// measured it; nil: nobody has.
func (p *Plane) STUN() []netip.AddrPort {
	if list := p.stun.Load(); list != nil {
		return *list
	}
	return nil
}

func (p *Plane) setSTUN(list []netip.AddrPort) {
	if list == nil {
		list = []netip.AddrPort{}
	}
	if old := p.stun.Swap(&list); old == nil || !sameSet(*old, list) {
		p.logger.Info("STUN server measured", mesh.LogEndpoint, list)
		wake(p.updates)
	}
}

// judges are those who may be asked where this node is reached: voters, for what
// a voter says becomes the state anyway; only the one voter of a mesh must ask
// others. Who has a global address comes alone: it does not mistake a network for
// the internet.
func judges(state *store.State, self mesh.NodeID) (ids []mesh.NodeID, voters bool) {
	list := func(may func(store.Node) bool) (ids []mesh.NodeID) {
		for id, n := range state.Nodes {
			if id != self && may(n) {
				ids = append(ids, id)
			}
		}
		slices.SortFunc(ids, mesh.NodeID.Compare)
		if !slices.ContainsFunc(ids, func(id mesh.NodeID) bool { return outside(state.Nodes[id]) }) {
			return ids
		}
		return slices.DeleteFunc(ids, func(id mesh.NodeID) bool { return !outside(state.Nodes[id]) })
	}
	if ids = list(func(n store.Node) bool { return n.Voter }); len(ids) > 0 {
		return ids, true
	}
	return list(func(n store.Node) bool { return len(n.Control) > 0 }), false
}

// outside reports whether a node is reached from anywhere.
func outside(n store.Node) bool { return slices.ContainsFunc(n.Control, isGlobal) }

// askReach asks one node, each in its turn, and gives what may be believed of its
// answer, and of how many it is one.
func (p *Plane) askReach(turn uint, heard *witness) (answer reachAnswer, asked int, err error) {
	state := p.State()
	servers, voters := judges(state, p.id)
	if len(servers) == 0 {
		return answer, 0, errors.New("no other node can be asked")
	}
	server := servers[turn%uint(len(servers))]
	known := state.Nodes[p.id].Control
	request := reachRequest{Ports: p.ports()}
	for _, a := range slices.Concat(known, p.advertise()) {
		if len(request.Candidates) < maxCandidates && !slices.Contains(request.Candidates, a) {
			request.Candidates = append(request.Candidates, a)
		}
	}
	if err := p.Do(p.life, server, http.MethodPost, "/v1/reach", request, &answer); err != nil {
		return answer, 0, err
	}
	if len(answer.Reached) > len(request.Candidates)+len(request.Ports) {
		return answer, 0, fmt.Errorf("%s reached more addresses than it was asked for", p.name(server))
	}
	if !voters {
		answer.Reached = heard.believe(server, answer.Reached, request.Candidates)
	}
	if answer.STUN != nil {
		there := stunAt(answer.Reached)
		answer.STUN = slices.DeleteFunc(answer.STUN, func(a netip.AddrPort) bool { return !slices.Contains(there, a) })
	}
	return answer, len(servers), nil
}

// ports are those of the control port that are open.
func (p *Plane) ports() []uint16 {
	ports := []uint16{p.listener.Addr().Port()}
	for _, a := range p.listener.Also() {
		if len(ports) < maxPorts && !slices.Contains(ports, a.Port()) {
			ports = append(ports, a.Port())
		}
	}
	return ports
}

// advertise is where this node may be reached: its addresses, with the port that the
// configuration says first and then, at the same ones, further ports that are open.
func (p *Plane) advertise() []netip.AddrPort {
	all := slices.Clone(p.config.advertise())
	for _, port := range p.ports()[1:] {
		for _, a := range all {
			if more := netip.AddrPortFrom(a.Addr(), port); len(all) < maxCandidates && !slices.Contains(all, more) {
				all = append(all, more)
			}
		}
	}
	return all
}

// A witness is the last ordinary member that said where this node is reached,
// and where.
type witness struct {
	node    mesh.NodeID
	reached []netip.AddrPort
}

// believe gives what is to be believed of what an ordinary member says: the
// addresses that this node knows as its own, and others that a second member
// says, too.
func (w *witness) believe(node mesh.NodeID, reached, own []netip.AddrPort) []netip.AddrPort {
	before := *w
	*w = witness{node, reached}
	return slices.DeleteFunc(slices.Clone(reached), func(a netip.AddrPort) bool {
		return !slices.Contains(own, a) && (before.node == node || !slices.Contains(before.reached, a))
	})
}

// serveReach tells the caller at which of its candidates it answers.
func (p *Plane) serveReach(w http.ResponseWriter, r *http.Request) {
	var request reachRequest
	if err := Decode(r, &request); err != nil {
		Fail(w, err)
		return
	}
	if n := len(request.Candidates) + len(request.Ports); n > maxCandidates+maxPorts {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "%d addresses are more than %d", n, maxCandidates+maxPorts))
		return
	}
	candidates := request.Candidates
	if source, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		for _, port := range request.Ports {
			candidates = append(candidates, netip.AddrPortFrom(source.Addr().Unmap(), port))
		}
	}
	var answer reachAnswer
	candidates = slices.DeleteFunc(candidates, func(a netip.AddrPort) bool {
		if !p.reachable(a) {
			return true
		}
		judged := p.config.routed(a.Addr())
		if !judged {
			answer.Unjudged = append(answer.Unjudged, a)
		}
		return !judged
	})
	ctx, cancel := context.WithTimeout(r.Context(), reachDial)
	defer cancel()
	answer.Reached = p.reach(ctx, Caller(r.Context()), candidates)
	if keys := p.Shared().STUN; p.config.AskSTUN != nil && len(keys) > 0 {
		// Only where the node itself was found: nobody is sent packets by another's wish.
		ctx, cancel := context.WithTimeout(r.Context(), reachSTUN)
		defer cancel()
		found, err := p.config.AskSTUN(ctx, stunAt(answer.Reached), keys[0])
		if err != nil {
			p.logger.Debug("the STUN server of another node could not be asked", mesh.LogNode, p.name(Caller(ctx)), mesh.LogError, err)
		} else {
			answer.STUN = append([]netip.AddrPort{}, found...)
		}
	}
	Reply(w, answer)
}

// reachable reports whether an address can be one of a control port for others.
// Addresses inside the mesh cannot, nor private ones for a node that is reached
// from anywhere: those are of its own network, whoever else has them, too.
func (p *Plane) reachable(addr netip.AddrPort) bool {
	state, a := p.State(), addr.Addr()
	switch {
	case !addr.IsValid(), addr.Port() == 0, a.IsUnspecified(), a.IsMulticast(), a.Is4In6(), a.Zone() != "",
		state.Mesh.Pool4.Contains(a), state.Mesh.Pool6.Contains(a):
		return false
	}
	return isGlobal(addr) || !outside(state.Nodes[p.id])
}

// reach dials the candidates side by side and gives those behind which the node
// itself answered, in their order.
func (p *Plane) reach(ctx context.Context, id mesh.NodeID, candidates []netip.AddrPort) []netip.AddrPort {
	answers := make([]chan bool, len(candidates))
	for i, addr := range candidates {
		answers[i] = make(chan bool, 1)
		if slices.Contains(candidates[:i], addr) {
			answers[i] <- false
			continue
		}
		go func() { // ends with ctx
			conn, err := p.dialer.DialNode(ctx, addr, id, transport.Control)
			if err == nil {
				conn.Close()
			}
			answers[i] <- err == nil
		}()
	}
	var reached []netip.AddrPort
	for i, answer := range answers {
		if <-answer {
			reached = append(reached, candidates[i])
		}
	}
	return reached
}

func sameSet(a, b []netip.AddrPort) bool {
	if len(a) != len(b) {
		return false
	}
	return !slices.ContainsFunc(a, func(x netip.AddrPort) bool { return !slices.Contains(b, x) })
}
