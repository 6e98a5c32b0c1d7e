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
	"guywire/discovery/attempt"
	"guywire/mesh"
)

func newAttemptID() (id discovery.AttemptID) {
	_, _ = rand.Read(id[:]) // never fails
	return id
}

func newSeed() (s [32]byte) {
	_, _ = rand.Read(s[:])
	return s
}

// run is one attempt from its port to its result. theirs is the offer that it
// answers; nil: this end initiates.
func (a *Attempter) run(ctx context.Context, att *active, uplink mesh.Uplink, req Request, theirs *discovery.Offer) Result {
	if req.Carrier || theirs != nil && theirs.Carrier != nil {
		return a.carry(ctx, att, uplink, theirs)
	}
	var terms *attempt.Spread
	if req.Spread {
		var done func()
		var err error
		if terms, done, err = a.spreading(ctx, att); err != nil {
			return Result{Spread: true, Hopeless: !errors.Is(err, ErrBusy), Err: err}
		}
		defer done()
	}
	socket, err := a.open(uplink)
	if err != nil {
		return Result{Spread: req.Spread, Err: err}
	}
	sockets := newFan(socket, func() (Socket, error) { return a.open(uplink) })
	defer func() { _ = sockets.Close() }()
	cfg := a.config(ctx, att, sockets, uplink, req, theirs)
	cfg.Spread = terms
	v := a.drive(ctx, att, sockets, attempt.New(time.Now(), cfg))
	if v.Err == nil {
		v.Err = sockets.Close()
	}
	packets, bytes := sockets.Sent()
	return Result{
		Packets: packets, Bytes: bytes, Spread: req.Spread,
		Port: sockets.portOf(v.Proof), Endpoint: v.Proof.Remote, Local: v.Proof.Local, Mapped: v.Proof.Mapped, RTT: v.Proof.RTT,
		Confirmed: v.Proof.Confirmed, Class: discovery.Candidate{Kind: v.Proof.Kind, Addr: v.Proof.Remote}.Class(), First: v.First, Hopeless: v.Hopeless,
		Epoch: v.Ours.Epoch, PeerEpoch: v.Theirs.Epoch, PeerKey: v.Theirs.Key, Err: v.Err,
	}
}

func (a *Attempter) config(ctx context.Context, att *active, socket Socket, uplink mesh.Uplink, req Request, theirs *discovery.Offer) attempt.Config {
	c := attempt.Config{
		Offer: a.offer(att, uplink, req.Below), Theirs: theirs, Own: hosts(uplink, socket.Port()), Servers: a.servers(uplink), PathRTT: req.PathRTT,
		Refuse: a.cfg.Refuse, Budget: &a.budget, Seed: newSeed(),
	}
	if a.cfg.Declared != nil {
		for _, addr := range a.cfg.Declared(uplink.Name) {
			c.Own = append(c.Own, discovery.Candidate{Kind: discovery.CandidateDeclared, Addr: netip.AddrPortFrom(addr, socket.Port())})
		}
	}
	if a.cfg.Map != nil {
		if at, ok := a.cfg.Map(ctx, uplink.Name, socket.Port()); ok {
			c.Own = append(c.Own, discovery.Candidate{Kind: discovery.CandidateMapped, Addr: at})
		}
	}
	if a.cfg.PortsKept != nil {
		for _, addr := range a.cfg.PortsKept(uplink.Name) {
			c.Likely = append(c.Likely, netip.AddrPortFrom(addr, socket.Port()))
		}
	}
	for _, r := range a.cfg.Surveyed(uplink.Name).Reflexive {
		c.Outside = append(c.Outside, r.Addr())
	}
	return c
}

// offer is what this end says before it knows of any endpoint.
func (a *Attempter) offer(att *active, uplink mesh.Uplink, below discovery.PathClass) discovery.Offer {
	epoch, key := a.cfg.Key()
	known := a.cfg.Surveyed(uplink.Name)
	return discovery.Offer{
		Mesh: a.cfg.Mesh, From: a.cfg.Self, To: att.link.Peer, FromUplink: att.link.Local, ToUplink: att.link.Remote,
		Lane: att.link.Lane, Below: below, Attempt: att.id, NAT: known.NAT, NAT6: known.NAT6, Epoch: epoch, Key: key,
		Credentials: discovery.Credentials{Ufrag: rand.Text()[:8], Password: rand.Text()},
		Expires:     time.Now().Add(discovery.MaxOfferLife).Truncate(time.Second).UTC(),
	}
}

// reply is the other end's word on our offer.
type reply struct {
	answer discovery.Offer
	err    error
}

// drive is the attempt's hands: it carries out what the machine says until there
// is a verdict.
func (a *Attempter) drive(ctx context.Context, att *active, socket Socket, m *attempt.Attempt) attempt.Verdict {
	replies := make(chan reply, 1)
	timer := time.NewTimer(0)
	defer timer.Stop()
	ready := m.Tick(time.Now())
	for {
		socket.Expect(m.Keys())
		for _, q := range ready.Ask {
			if !socket.Ask(q) {
				m.Unreachable(q.Server)
				ready.Deadline = time.Now()
			}
		}
		for _, p := range ready.Send {
			socket.Send(p, m.Keys())
		}
		if ready.Offer != nil && m.Initiates() {
			offer := *ready.Offer // ready is another one soon
			go func() {           // ends with ctx
				answer, err := a.cfg.Exchange(ctx, att.link.Peer, offer)
				replies <- reply{answer, err}
			}()
		} else if ready.Offer != nil {
			att.reply(*ready.Offer, nil)
		}
		if ready.Verdict != nil {
			return *ready.Verdict
		}
		timer.Reset(time.Until(ready.Deadline))
		select {
		case <-ctx.Done():
			ready = m.Cancel(context.Cause(ctx))
		case <-timer.C:
			ready = m.Tick(time.Now())
		case r := <-replies:
			if r.err != nil {
				ready = m.Refused(time.Now(), r.err)
			} else {
				ready = m.Answered(time.Now(), r.answer)
			}
		case arrival := <-socket.Arrivals():
			ready = m.Received(arrival.At, arrival.Packet)
		}
	}
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

// servers gives the STUN servers to ask, of families that the uplink has a way
// out for.
func (a *Attempter) servers(uplink mesh.Uplink) (list []netip.AddrPort) {
	var four, six []netip.AddrPort
	for _, s := range a.cfg.Servers() {
		switch {
		case s.Addr().Is4() && uplink.Default4:
			four = append(four, s)
		case s.Addr().Is6() && uplink.Default6:
			six = append(six, s)
		}
	}
	return append(a.ranking.choose(four), a.ranking.choose(six)...)
}

// A Survey is how the outside sees an uplink, and who said so.
type Survey struct {
	Uplink  discovery.Uplink
	Asked   []netip.AddrPort // STUN servers
	Answers []discovery.Reflexion
}

// Survey measures an uplink: how the outside sees it and which kind of NAT it
// is behind. It blocks for at most a few seconds.
func (a *Attempter) Survey(ctx context.Context, uplink mesh.Uplink) (Survey, error) {
	facts := discovery.Uplink{Name: uplink.Name, Metered: uplink.Metered}
	for _, c := range hosts(uplink, mesh.TunnelPortFirst) {
		if len(facts.Addrs) < discovery.MaxUplinkAddrs && a.acceptable(c.Addr) {
			facts.Addrs = append(facts.Addrs, c.Addr.Addr())
		}
	}
	socket, err := a.open(uplink)
	if err != nil {
		return Survey{}, err
	}
	g := discovery.NewGathering(time.Now(), a.servers(uplink), 2, newSeed())
	if err := gather(ctx, socket, g); err != nil {
		return Survey{}, err
	}
	port, answers := socket.Port(), g.Answers()
	if err := socket.Close(); err != nil {
		return Survey{}, fmt.Errorf("survey %s: %w", uplink.Name, err)
	}
	a.ranking.note(g)
	agreed := discovery.Agreed(answers)
	facts.Reflexive = agreed[:min(len(agreed), discovery.MaxReflexive)]
	facts.NAT = classify(uplink.Addrs, port, g, uplink.Default4, true)
	facts.NAT6 = classify(uplink.Addrs, port, g, uplink.Default6, false)
	return Survey{facts, g.Servers(), answers}, nil
}

// Answering asks STUN servers from a socket and gives those that answer: after 2.3 s
// at the latest, or with an error when ctx ends. More than discovery.MaxServers are
// not asked.
func Answering(ctx context.Context, socket Socket, servers []netip.AddrPort) (list []netip.AddrPort, err error) {
	g := discovery.NewGathering(time.Now(), servers, len(servers), newSeed())
	err = gather(ctx, socket, g)
	for _, a := range g.Answers() {
		list = append(list, a.Server)
	}
	return list, err
}

// gather runs a gathering; it fails only when ctx ends.
func gather(ctx context.Context, socket Socket, g *discovery.Gathering) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ready := g.Tick(time.Now()); !ready.Done; {
		for _, q := range ready.Ask {
			if !socket.Ask(q) {
				g.Unreachable(q.Server)
				ready.Deadline = time.Now()
			}
		}
		timer.Reset(time.Until(ready.Deadline))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			ready = g.Tick(time.Now())
		case p := <-socket.Arrivals():
			ready = g.Answered(p.At, p.Packet.Peer, p.Packet.Tx, p.Packet.Mapped)
		}
	}
	return nil
}

// classify tells the kind of NAT of one address family.
func classify(local []netip.Addr, port uint16, g *discovery.Gathering, there, four bool) discovery.NAT {
	if !there {
		return discovery.NATAbsent
	}
	asked := slices.DeleteFunc(g.Servers(), func(s netip.AddrPort) bool { return s.Addr().Is4() != four })
	answers := slices.DeleteFunc(slices.Clone(g.Answers()), func(r discovery.Reflexion) bool { return r.Server.Addr().Is4() != four })
	return discovery.Classify(local, port, asked, answers)
}

func (a *Attempter) acceptable(e netip.AddrPort) bool {
	return discovery.Usable(e) == nil && !slices.ContainsFunc(a.cfg.Refuse, func(p netip.Prefix) bool { return p.Contains(e.Addr()) })
}

func hosts(uplink mesh.Uplink, port uint16) []discovery.Candidate {
	var list []discovery.Candidate
	for _, addr := range uplink.Addrs {
		list = append(list, discovery.Candidate{Kind: discovery.CandidateHost, Addr: netip.AddrPortFrom(addr, port)})
	}
	return list
}
