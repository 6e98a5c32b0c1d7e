package discovery

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"guywire/discovery/nattest"
)

// An end is one host of the model: its socket, its NAT and its check.
type end struct {
	host     netip.AddrPort
	nat      *nattest.Box // nil: directly on the internet
	check    *Check
	timer    time.Time
	done     bool
	doneAt   time.Time
	sentTo   map[netip.AddrPort]int
	sent     int
	received int
}

type world struct {
	t       *testing.T
	now     time.Time
	ends    [2]*end
	loss    float64
	rand    *rand.Rand
	flights []flight
	sameLAN bool
}

type flight struct {
	at       time.Time
	from, to netip.AddrPort // as on the wire, after the sender's NAT
	packet   CheckPacket
}

// arrive tells which end, if any, a packet on the wire reaches.
func (w *world) arrive(from, to netip.AddrPort) *end {
	for _, e := range w.ends {
		if e.host == to && (e.nat == nil || w.sameLAN && from.Addr().IsPrivate()) {
			return e
		}
		if e.nat != nil {
			if inside, ok := e.nat.In(from, to); ok && inside == e.host {
				return e
			}
		}
	}
	return nil
}

func (w *world) leave(e *end, dst netip.AddrPort) netip.AddrPort {
	if e.nat == nil || dst.Addr().IsPrivate() {
		return e.host
	}
	return e.nat.Out(e.host, dst)
}

func (w *world) act(e *end, r CheckReady) {
	for _, p := range r.Send {
		e.sent++
		e.sentTo[p.Peer]++
		src := w.leave(e, p.Peer)
		if w.rand.Float64() < w.loss {
			continue
		}
		delay := 20*time.Millisecond + time.Duration(w.rand.IntN(15))*time.Millisecond
		w.flights = append(w.flights, flight{at: w.now.Add(delay), from: src, to: p.Peer, packet: p})
	}
	e.timer = r.Deadline
	if r.Done && !e.done {
		e.done, e.doneAt = true, w.now
	}
}

// run moves time from event to event until both ends are done.
func (w *world) run() {
	for step := 0; !w.ends[0].done || !w.ends[1].done; step++ {
		if step > 5000 {
			w.t.Fatal("the check does not end")
		}
		next := time.Time{}
		for _, e := range w.ends {
			if !e.done && (next.IsZero() || e.timer.Before(next)) {
				next = e.timer
			}
		}
		i := -1
		for j, f := range w.flights {
			if f.at.Before(next) {
				next, i = f.at, j
			}
		}
		w.now = latest(w.now, next)
		if i >= 0 {
			f := w.flights[i]
			w.flights = slices.Delete(w.flights, i, i+1)
			if e := w.arrive(f.from, f.to); e != nil && !e.done {
				e.received++
				f.packet.Peer = f.from
				w.act(e, e.check.Receive(w.now, f.packet))
			}
			continue
		}
		for _, e := range w.ends {
			if !e.done && !e.timer.After(w.now) {
				w.act(e, e.check.Tick(w.now))
			}
		}
	}
}

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

type site func(public string) *nattest.Box

func boxes(change func(*nattest.Box)) site {
	return func(public string) *nattest.Box {
		b := nattest.New(netip.MustParseAddr(public))
		b.Keep = false
		change(b)
		return b
	}
}

var (
	open      site = func(string) *nattest.Box { return nil }
	firewall       = boxes(func(b *nattest.Box) { b.Firewall = true })
	easy           = boxes(func(*nattest.Box) {})
	easyADF        = boxes(func(b *nattest.Box) { b.Filter = nattest.ByAddress })
	fullCone       = boxes(func(b *nattest.Box) { b.Filter = nattest.None })
	symmetric      = boxes(func(b *nattest.Box) { b.Symmetric = true })
)

func newWorld(t *testing.T, seed uint64, loss float64, skew time.Duration, a, b site) *world {
	w := &world{t: t, now: time.Unix(1000, 0), loss: loss, rand: rand.New(rand.NewPCG(seed, 1))}
	stun := ap("198.51.100.1:8686")
	var cands [2][]Candidate
	for i, s := range []site{a, b} {
		public := fmt.Sprintf("203.0.113.%d", 10+i)
		e := &end{host: ap(fmt.Sprintf("10.0.%d.2:51800", i)), nat: s(public), sentTo: make(map[netip.AddrPort]int)}
		if e.nat == nil || e.nat.Firewall {
			e.host = netip.AddrPortFrom(netip.MustParseAddr(public), 51800)
		}
		cands[i] = []Candidate{{CandidateHost, e.host}}
		if mapped := w.leave(e, stun); mapped != e.host {
			cands[i] = append(cands[i], Candidate{CandidateReflexive, mapped})
		}
		w.ends[i] = e
	}
	for i, e := range w.ends {
		start := w.now.Add(time.Duration(i) * skew)
		e.check = NewCheck(CheckPlan{
			Controlling: i == 0, Remote: cands[1-i], Seed: [32]byte{byte(i)},
			Start: start, Deadline: start.Add(CheckTime),
		})
		e.timer = start
	}
	return w
}

// agree verifies with the model itself that what both ends proved is one path
// that carries packets both ways.
func (w *world) agree() error {
	var proofs [2]Proof
	for i, e := range w.ends {
		p, err := e.check.Result()
		if err != nil {
			return fmt.Errorf("end %d: %w", i, err)
		}
		proofs[i] = p
	}
	for i, e := range w.ends {
		src := w.leave(e, proofs[i].Remote)
		if got := w.arrive(src, proofs[i].Remote); got != w.ends[1-i] {
			return fmt.Errorf("end %d: packets to %s do not arrive", i, proofs[i].Remote)
		}
		if src != proofs[1-i].Remote {
			return fmt.Errorf("end %d sends from %s, the other end believes in %s", i, src, proofs[1-i].Remote)
		}
	}
	return nil
}

func (w *world) bounded() error {
	for i, e := range w.ends {
		if e.sent > 250 {
			return fmt.Errorf("end %d sent %d packets", i, e.sent)
		}
		for to, n := range e.sentTo {
			if w.ends[1-i].received == 0 && n > len(checkSchedule) {
				return fmt.Errorf("end %d sent %d packets to silent %s", i, n, to)
			}
		}
	}
	return nil
}

func TestCheckGrid(t *testing.T) {
	kinds := []struct {
		name string
		site site
	}{{"open", open}, {"firewall", firewall}, {"easy", easy}, {"easyADF", easyADF}, {"fullCone", fullCone}, {"symmetric", symmetric}}
	// Only these must fail: a symmetric NAT's port towards the other end is
	// not known to a filter that looks at ports.
	hard := func(a, b string) bool {
		return a == "symmetric" && (b == "symmetric" || b == "easy" || b == "firewall")
	}
	for _, a := range kinds {
		for _, b := range kinds {
			for _, env := range []struct {
				loss float64
				skew time.Duration
			}{{0, 0}, {0, 40 * time.Millisecond}, {0.2, 0}, {0.2, time.Second}, {0.2, -time.Second}} {
				failed := 0
				const seeds = 100
				for seed := range uint64(seeds) {
					w := newWorld(t, seed, env.loss, env.skew, a.site, b.site)
					w.run()
					if err := w.bounded(); err != nil {
						t.Errorf("%s–%s seed %d: %v", a.name, b.name, seed, err)
					}
					err := w.agree()
					if hard(a.name, b.name) || hard(b.name, a.name) {
						if !errors.Is(err, ErrNoPath) {
							t.Errorf("%s–%s seed %d: connected although it cannot: %v", a.name, b.name, seed, err)
						}
						continue
					}
					if err != nil {
						failed++
						if env.loss == 0 {
							t.Errorf("%s–%s skew %s seed %d: %v", a.name, b.name, env.skew, seed, err)
						}
					}
				}
				if failed > seeds/50 {
					t.Errorf("%s–%s loss %.0f%% skew %s: %d of %d attempts fail", a.name, b.name, env.loss*100, env.skew, failed, seeds)
				}
			}
		}
	}
}

// The port must be handed over quickly: without loss within a few round trips
// of the later start, at both ends.
func TestCheckEndsSoon(t *testing.T) {
	for _, pair := range [][2]site{{open, open}, {easy, easy}, {symmetric, open}, {open, symmetric}} {
		w := newWorld(t, 7, 0, 0, pair[0], pair[1])
		begin := w.now
		w.run()
		if err := w.agree(); err != nil {
			t.Fatal(err)
		}
		for i, e := range w.ends {
			p, _ := e.check.Result()
			if took := e.doneAt.Sub(begin); took > 600*time.Millisecond || !p.Confirmed {
				t.Errorf("end %d: took %s, confirmed %v", i, took, p.Confirmed)
			}
		}
	}
}

func TestCheckPrefersTheLAN(t *testing.T) {
	w := newWorld(t, 1, 0, 0, easy, easy)
	w.sameLAN = true
	w.run()
	for i, e := range w.ends {
		p, err := e.check.Result()
		if err != nil || p.Remote != w.ends[1-i].host {
			t.Errorf("end %d uses %s (%v), want the LAN address %s", i, p.Remote, err, w.ends[1-i].host)
		}
	}
}

// The other end hands over without our hearing its confirmation, or never
// nominates: both still end with a path.
func TestCheckLostNomination(t *testing.T) {
	now := time.Unix(1000, 0)
	peer := ap("203.0.113.9:51800")
	plan := CheckPlan{Remote: []Candidate{{CandidateHost, peer}}, Start: now, Deadline: now.Add(CheckTime)}

	controlled := NewCheck(plan)
	r := controlled.Tick(now)
	if len(r.Send) != 1 || r.Send[0].Kind != CheckRequest {
		t.Fatalf("first tick sends %v", r.Send)
	}
	now = now.Add(30 * time.Millisecond)
	controlled.Receive(now, CheckPacket{Kind: CheckResponse, Peer: peer, Tx: r.Send[0].Tx})
	r = controlled.Receive(now, CheckPacket{Kind: CheckNominate, Peer: peer, Tx: Tx{1}})
	if len(r.Send) != 1 || r.Send[0].Kind != CheckResponse || r.Done {
		t.Fatalf("a nomination gives %+v, want one answer and patience", r)
	}
	again := controlled.Receive(now.Add(100*time.Millisecond), CheckPacket{Kind: CheckNominate, Peer: peer, Tx: Tx{2}})
	if len(again.Send) != 1 || !again.Deadline.After(r.Deadline) {
		t.Fatalf("a repeated nomination gives %+v, want an answer and renewed patience beyond %s", again, r.Deadline)
	}
	if r = controlled.Tick(again.Deadline); !r.Done {
		t.Fatal("patience does not end")
	}
	if p, err := controlled.Result(); err != nil || p.Remote != peer || p.Confirmed || p.RTT != 30*time.Millisecond {
		t.Fatalf("result %+v, %v", p, err)
	}

	plan.Controlling = true
	now = plan.Start
	controlling := NewCheck(plan)
	r = controlling.Tick(now)
	r = controlling.Receive(now.Add(30*time.Millisecond), CheckPacket{Kind: CheckResponse, Peer: peer, Tx: r.Send[0].Tx})
	nominations := 0
	for !r.Done {
		now = r.Deadline
		r = controlling.Tick(now)
		for _, p := range r.Send {
			if p.Kind == CheckNominate {
				nominations++
			}
		}
	}
	if p, err := controlling.Result(); err != nil || p.Confirmed || nominations != maxNominations {
		t.Fatalf("result %+v, %v after %d nominations", p, err, nominations)
	}
}

// A member that nominates an address that is not its own gets nothing: neither
// an answer there nor a path.
func TestControlledEndNeedsProof(t *testing.T) {
	now := time.Unix(1000, 0)
	peer, victim := ap("203.0.113.9:51800"), ap("203.0.113.66:53")
	plan := CheckPlan{Remote: []Candidate{{CandidateHost, peer}}, Start: now, Deadline: now.Add(CheckTime)}
	c := NewCheck(plan)
	asked := c.Tick(now).Send[0]
	sent := 0
	for i := range 50 {
		now = now.Add(20 * time.Millisecond)
		// It knows what we asked of its own address, and answers from elsewhere.
		c.Receive(now, CheckPacket{Kind: CheckResponse, Peer: victim, Tx: asked.Tx})
		for _, p := range c.Receive(now, CheckPacket{Kind: CheckNominate, Peer: victim, Tx: Tx{byte(i)}}).Send {
			if p.Peer != victim {
				continue
			}
			if sent++; p.Kind != CheckRequest {
				t.Fatalf("an unproven address is sent a packet of kind %d", p.Kind)
			}
		}
	}
	if sent == 0 || sent > maxTriggered {
		t.Errorf("%d requests to an address that proves nothing, at most %d wanted", sent, maxTriggered)
	}
	for ready := c.Tick(now); !ready.Done; ready = c.Tick(now) {
		now = ready.Deadline
	}
	if proof, err := c.Result(); err == nil {
		t.Errorf("%s is believed", proof.Remote)
	}
}

// Who knows some of the transaction ids knows none of the others.
func TestTransactionsTellNothing(t *testing.T) {
	c := NewCheck(CheckPlan{Seed: [32]byte{7}})
	seen := map[[4]byte]bool{}
	for range 100 {
		tx := c.tx()
		for part := range slices.Chunk(tx[:], 4) {
			if seen[[4]byte(part)] {
				t.Fatalf("%x has a part of an earlier one", tx)
			}
			seen[[4]byte(part)] = true
		}
	}
}

// An authenticated but hostile peer cannot make us answer many addresses.
func TestCheckReflectionIsBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	c := NewCheck(CheckPlan{Start: now, Deadline: now.Add(CheckTime)})
	sent := 0
	for i := range 20000 {
		victim := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 53)
		r := c.Receive(now, CheckPacket{Kind: CheckRequest, Peer: victim, Tx: Tx{byte(i)}})
		sent += len(r.Send)
		now = now.Add(200 * time.Microsecond)
	}
	if limit := maxPeerReflexive * (maxResponses + maxTriggered); sent > limit {
		t.Errorf("%d packets sent, at most %d allowed", sent, limit)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add(true, []byte{1, 0, 0, 2, 0, 0, 3, 1, 1, 4, 0, 1})
	f.Add(false, []byte{2, 0, 0, 4, 0, 0})
	f.Fuzz(func(t *testing.T, controlling bool, script []byte) {
		now := time.Unix(1000, 0)
		peers := []netip.AddrPort{ap("203.0.113.9:1"), ap("10.0.0.9:2"), ap("[2001:db8::9]:3"), ap("203.0.113.10:4")}
		c := NewCheck(CheckPlan{
			Controlling: controlling, Start: now, Deadline: now.Add(CheckTime),
			Remote: []Candidate{{CandidateHost, peers[0]}, {CandidateHost, peers[1]}, {CandidateReflexive, peers[2]}},
		})
		ready, sent := c.Tick(now), 0
		var txs []Tx
		for len(script) >= 3 && !ready.Done {
			tx := Tx{script[2]}
			if len(txs) > 0 && script[2]%2 == 1 {
				tx = txs[int(script[2])%len(txs)]
			}
			now = now.Add(time.Duration(script[1]) * time.Millisecond)
			if script[0]%5 == 0 {
				ready = c.Tick(now)
			} else {
				ready = c.Receive(now, CheckPacket{Kind: CheckKind(script[0] % 5), Peer: peers[script[1]%4], Tx: tx})
			}
			for _, p := range ready.Send {
				txs = append(txs, p.Tx)
			}
			sent += len(ready.Send)
			script = script[3:]
		}
		for !ready.Done {
			if !ready.Deadline.After(now) && len(ready.Send) == 0 {
				t.Fatalf("deadline %s is not after %s and nothing happens", ready.Deadline, now)
			}
			now = latest(now, ready.Deadline)
			ready = c.Tick(now)
			sent += len(ready.Send)
		}
		if now.After(time.Unix(1000, 0).Add(CheckTime + 256*time.Millisecond)) {
			t.Fatalf("ended at %s", now)
		}
		if sent > 8*(maxResponses+maxTriggered+len(checkSchedule)+maxNominations) {
			t.Fatalf("%d packets", sent)
		}
		_, _ = c.Result()
	})
}
