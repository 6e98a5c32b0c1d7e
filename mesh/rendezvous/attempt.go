package rendezvous

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

const (
	leastDelay   = 20 * time.Millisecond // beyond the way of the answer, for our own slowness
	unknownDelay = 50 * time.Millisecond
	maxReflexive = 2 // offered; more are of a symmetric NAT and of no use
)

func newAttemptID() (id discovery.AttemptID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

func newSeed() (s [32]byte) {
	_, _ = rand.Read(s[:])
	return s
}

// start is the initiator's side: gather, offer, await the answer, check.
func (a *Attempter) start(ctx context.Context, att *attempt, req Request) Result {
	uplink := req.LocalUplink
	socket, offer, err := a.prepare(ctx, att, uplink)
	if err != nil {
		return Result{Err: err}
	}
	defer socket.Close()
	offer.Delay = unknownDelay
	if req.PathRTT > 0 {
		offer.Delay = min(req.PathRTT/2+leastDelay, discovery.MaxOfferDelay).Truncate(time.Millisecond)
	}
	answer, err := a.cfg.Exchange(ctx, req.Peer, offer)
	if err == nil {
		err = offer.ValidateAnswer(time.Now(), answer)
	}
	if err != nil {
		return Result{NAT: offer.NAT, Err: fmt.Errorf("offer link to %s: %w", req.Peer, err)}
	}
	return a.check(ctx, socket, true, offer, answer, time.Now())
}

// answer is the other side: gather, hand out the answer, check.
func (a *Attempter) answer(ctx context.Context, att *attempt, offer discovery.Offer, uplink mesh.Uplink) Result {
	socket, answer, err := a.prepare(ctx, att, uplink)
	att.answer, att.err = answer, err
	close(att.ready)
	if err != nil {
		return Result{Err: err}
	}
	defer socket.Close()
	return a.check(ctx, socket, false, answer, offer, time.Now().Add(offer.Delay))
}

// prepare opens a port and makes our offer of it.
func (a *Attempter) prepare(ctx context.Context, att *attempt, uplink mesh.Uplink) (Socket, discovery.Offer, error) {
	socket, err := a.open(uplink)
	if err != nil {
		return nil, discovery.Offer{}, err
	}
	seen, nat := a.gather(ctx, socket, uplink)
	if err := ctx.Err(); err != nil {
		return nil, discovery.Offer{}, errors.Join(fmt.Errorf("gather candidates on %s: %w", uplink.Name, err), socket.Close())
	}
	epoch, key := a.cfg.Key()
	o := discovery.Offer{
		Mesh: a.cfg.Mesh, From: a.cfg.Self, To: att.link.Peer, FromUplink: att.link.Local, ToUplink: att.link.Remote,
		Attempt: att.id, NAT: nat, Epoch: epoch, Key: key,
		Candidates:  discovery.Choose(a.candidates(uplink, socket.Port(), seen), discovery.MaxCandidates),
		Credentials: discovery.Credentials{Ufrag: rand.Text()[:8], Password: rand.Text()},
		Expires:     time.Now().Add(discovery.MaxOfferLife).Truncate(time.Second).UTC(),
	}
	return socket, o, nil
}

func (a *Attempter) open(uplink mesh.Uplink) (Socket, error) {
	if !uplink.Up {
		return nil, fmt.Errorf("%w: %q is down", ErrUplink, uplink.Name)
	}
	socket, err := a.cfg.Open(uplink.Mark())
	if err != nil {
		return nil, fmt.Errorf("open port on %s: %w", uplink.Name, err)
	}
	return socket, nil
}

// gather asks the STUN servers. The NAT kind counts only servers of families
// that the uplink has a way out for.
func (a *Attempter) gather(ctx context.Context, socket Socket, uplink mesh.Uplink) ([]discovery.Reflexion, discovery.NAT) {
	servers := slices.DeleteFunc(slices.Clone(a.cfg.Servers()), func(s netip.AddrPort) bool {
		if s.Addr().Is4() {
			return !uplink.Default4
		}
		return !uplink.Default6
	})
	seen := socket.Gather(ctx, servers)
	return seen, discovery.Classify(uplink.Addrs, socket.Port(), servers, seen)
}

// candidates are the endpoints of a port that may be offered.
func (a *Attempter) candidates(uplink mesh.Uplink, port uint16, seen []discovery.Reflexion) []discovery.Candidate {
	list := hosts(uplink, port)
	for _, m := range mapped(seen, maxReflexive) {
		list = append(list, discovery.Candidate{Kind: discovery.CandidateReflexive, Addr: m})
	}
	return a.acceptable(list)
}

// acceptable drops what must not be sent to.
func (a *Attempter) acceptable(list []discovery.Candidate) []discovery.Candidate {
	return slices.DeleteFunc(slices.Clone(list), func(c discovery.Candidate) bool {
		return discovery.Usable(c.Addr) != nil ||
			slices.ContainsFunc(a.cfg.Refuse, func(p netip.Prefix) bool { return p.Contains(c.Addr.Addr()) })
	})
}

// mapped gives the different endpoints that servers saw, in the order of the
// answers, at most limit of them.
func mapped(seen []discovery.Reflexion, limit int) []netip.AddrPort {
	var list []netip.AddrPort
	for _, r := range seen {
		if len(list) < limit && !slices.Contains(list, r.Mapped) && discovery.Usable(r.Mapped) == nil {
			list = append(list, r.Mapped)
		}
	}
	return list
}

// check proves a path and frees the port.
func (a *Attempter) check(ctx context.Context, socket Socket, controlling bool, ours, theirs discovery.Offer, start time.Time) Result {
	proof, err := socket.Check(ctx, discovery.CheckPlan{
		Controlling: controlling, Remote: a.acceptable(theirs.Candidates),
		Local: ours.Credentials, Peer: theirs.Credentials, Seed: newSeed(),
		Start: start, Deadline: start.Add(discovery.CheckTime),
	})
	r := Result{
		Port: socket.Port(), Epoch: ours.Epoch, PeerEpoch: theirs.Epoch, PeerKey: theirs.Key,
		NAT: ours.NAT, PeerNAT: theirs.NAT,
	}
	if err == nil {
		err = socket.Close()
	}
	if err != nil {
		r.Err = fmt.Errorf("no direct link to %s: %w", theirs.From, err)
		if _, reason := discovery.CanConnect(ours.NAT, theirs.NAT); reason != "" && errors.Is(err, discovery.ErrNoPath) {
			r.Err = fmt.Errorf("%w (%s)", r.Err, reason)
		}
		return r
	}
	r.Endpoint, r.Local, r.Mapped, r.RTT, r.Confirmed = proof.Remote, proof.Local, proof.Mapped, proof.RTT, proof.Confirmed
	return r
}

// Survey measures an uplink: how the outside sees it and which kind of NAT it
// is behind. It blocks for at most a few seconds.
func (a *Attempter) Survey(ctx context.Context, uplink mesh.Uplink) (discovery.Uplink, error) {
	facts := discovery.Uplink{Name: uplink.Name, Metered: uplink.Metered}
	for _, c := range a.acceptable(hosts(uplink, mesh.TunnelPortFirst)) {
		if len(facts.Addrs) < discovery.MaxUplinkAddrs {
			facts.Addrs = append(facts.Addrs, c.Addr.Addr())
		}
	}
	socket, err := a.open(uplink)
	if err != nil {
		return facts, err
	}
	seen, nat := a.gather(ctx, socket, uplink)
	facts.Reflexive, facts.NAT = mapped(seen, discovery.MaxReflexive), nat
	return facts, errors.Join(ctx.Err(), socket.Close())
}

func hosts(uplink mesh.Uplink, port uint16) []discovery.Candidate {
	var list []discovery.Candidate
	for _, addr := range uplink.Addrs {
		list = append(list, discovery.Candidate{Kind: discovery.CandidateHost, Addr: netip.AddrPortFrom(addr, port)})
	}
	return list
}
