package control

import (
	"context"
	"errors"
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
	for p.sleep(jitter(pause)) {
		pause = min(2*pause, reachRetry)
		answer, err := p.askReach()
		if err != nil {
			p.logger.Debug("reachability not measured", mesh.LogError, err)
			continue
		}
		self := p.State().Nodes[p.id]
		if len(answer.Reached) > 0 {
			misses = 0
		} else if misses++; misses < reachMisses {
			continue
		} else if self.Voter {
			pause = reachEvery
			continue
		}
		if !sameSet(answer.Reached, self.Control) {
			result, err := p.Propose(p.life, store.Command{SetControl: &store.SetControl{Node: p.id, Control: answer.Reached}})
			if err == nil && result.Refused != nil {
				err = result.Refused
			}
			if err != nil {
				p.logger.Debug("reachability not recorded", mesh.LogError, err)
				continue
			}
			p.logger.Info("control port measured", mesh.LogEndpoint, answer.Reached)
		}
		pause = reachEvery
	}
}

// askReach asks one node, another one each time: a voter, or any that can be
// reached itself.
func (p *Plane) askReach() (answer reachAnswer, err error) {
	state := p.State()
	var servers []mesh.NodeID
	for id, n := range state.Nodes {
		if id != p.id && (n.Voter || len(n.Control) > 0) {
			servers = append(servers, id)
		}
	}
	if len(servers) == 0 {
		return answer, errors.New("no other node can be asked")
	}
	request := reachRequest{Port: p.listener.Addr().Port(), Candidates: p.config.advertise()}
	err = p.Do(p.life, servers[rand.IntN(len(servers))], http.MethodPost, "/v1/reach", request, &answer)
	return answer, err
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
