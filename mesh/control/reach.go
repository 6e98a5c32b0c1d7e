package control

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"guywire/mesh"
	"guywire/mesh/transport"
	"guywire/store"
)

// reachRequest asks the other end to dial back.
type reachRequest struct {
	Port       uint16           `json:"port"` // at the address that the server sees
	Candidates []netip.AddrPort `json:"candidates"`
}

type reachAnswer struct {
	Reached []netip.AddrPort `json:"reached"`
}

// beReached lets other nodes measure where this node's control port can be
// reached, and records it: nobody else may say so but a voter. After several
// that do not reach it, it records that it cannot be reached. A voter does not:
// it is one until the leader says otherwise.
func (p *Plane) beReached() {
	misses, pause := 0, reachFirst
	var heard witness
	for p.sleep(jitter(pause)) {
		pause = min(2*pause, reachRetry)
		reached, err := p.askReach(&heard)
		if err != nil {
			p.logger.Debug("reachability not measured", mesh.LogError, err)
			continue
		}
		self := p.State().Nodes[p.id]
		if len(reached) > 0 {
			misses = 0
		} else if misses++; misses < reachMisses {
			continue
		} else if self.Voter {
			pause = reachEvery
			continue
		}
		if !sameSet(reached, self.Control) {
			result, err := p.Propose(p.life, store.Command{SetControl: &store.SetControl{Node: p.id, Control: reached}})
			if err == nil && result.Refused != nil {
				err = result.Refused
			}
			if err != nil {
				p.logger.Debug("reachability not recorded", mesh.LogError, err)
				continue
			}
			p.logger.Info("control port measured", mesh.LogEndpoint, reached)
		}
		pause = reachEvery
	}
}

// askReach asks one node, another one each time, and gives what may be recorded
// of its answer: a voter, for what a voter says becomes the state anyway. Only
// the one voter of a mesh must ask others.
func (p *Plane) askReach(heard *witness) ([]netip.AddrPort, error) {
	state := p.State()
	servers, voters := p.voters(), true
	if len(servers) == 0 {
		voters = false
		for id, n := range state.Nodes {
			if id != p.id && len(n.Control) > 0 {
				servers = append(servers, id)
			}
		}
	}
	if len(servers) == 0 {
		return nil, errors.New("no other node can be asked")
	}
	server := servers[rand.IntN(len(servers))]
	request := reachRequest{Port: p.listener.Addr().Port(), Candidates: p.config.advertise()}
	var answer reachAnswer
	if err := p.Do(p.life, server, http.MethodPost, "/v1/reach", request, &answer); err != nil {
		return nil, err
	}
	if len(answer.Reached) > len(request.Candidates)+1 {
		return nil, fmt.Errorf("%s reached more addresses than it was asked for", p.name(server))
	}
	if voters {
		return answer.Reached, nil
	}
	own := slices.Concat(request.Candidates, state.Nodes[p.id].Control)
	return heard.believe(server, answer.Reached, own), nil
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
	if len(request.Candidates) > maxCandidates {
		Fail(w, newError(http.StatusBadRequest, CodeMalformed, "%d addresses are more than %d", len(request.Candidates), maxCandidates))
		return
	}
	candidates := request.Candidates
	if source, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && request.Port != 0 {
		candidates = append(candidates, netip.AddrPortFrom(source.Addr().Unmap(), request.Port))
	}
	ctx, cancel := context.WithTimeout(r.Context(), callTimeout-2*time.Second)
	defer cancel()
	Reply(w, reachAnswer{Reached: p.reachable(ctx, Caller(r.Context()), candidates)})
}

// reachable dials the candidates side by side and gives those behind which the
// node itself answered, in their order. Addresses inside the mesh do not count.
func (p *Plane) reachable(ctx context.Context, id mesh.NodeID, candidates []netip.AddrPort) []netip.AddrPort {
	m := p.State().Mesh
	answers := make([]chan bool, len(candidates))
	for i, addr := range candidates {
		answers[i] = make(chan bool, 1)
		a := addr.Addr()
		if !addr.IsValid() || addr.Port() == 0 || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" ||
			m.Pool4.Contains(a) || m.Pool6.Contains(a) || slices.Contains(candidates[:i], addr) {
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
