package attempt

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
	"guywire/discovery/nattest"
	"guywire/mesh"
)

// Of every pair of kinds, with and without loss, both ends come to the same end,
// and to a path wherever there can be one.
func TestPairs(t *testing.T) {
	var names []string
	for name := range sites {
		names = append(names, name)
	}
	slices.Sort(names)
	hard := func(a, b string) bool {
		return a == "symmetric" && slices.Contains([]string{"symmetric", "easy", "changed", "firewall"}, b)
	}
	const seeds = 60
	for _, a := range names {
		for _, b := range names {
			for _, env := range []struct {
				loss   float64
				signal time.Duration
				skew   time.Duration
			}{{0, 5 * time.Millisecond, 0}, {0, 150 * time.Millisecond, 0}, {0, 30 * time.Millisecond, 300 * time.Millisecond}, {0.1, 30 * time.Millisecond, 0}, {0.3, 30 * time.Millisecond, 60 * time.Millisecond}} {
				failed := 0
				for seed := range uint64(seeds) {
					w := newWorld(t, seed, a, b)
					w.loss, w.signal, w.skew = env.loss, env.signal, env.skew
					w.run()
					where := fmt.Sprintf("%s–%s, loss %.0f %%, signalling %s, seed %d", a, b, env.loss*100, env.signal, seed)
					for i, e := range w.ends {
						if e.verdict == nil {
							t.Fatalf("%s: end %d has no verdict", where, i)
						}
						if took := e.ended.Sub(begin); took > MaxTime {
							t.Errorf("%s: end %d took %s", where, i, took)
						}
						total := e.asked
						for _, n := range e.sent {
							total += n
						}
						if total > 160 {
							t.Errorf("%s: end %d sent %d packets", where, i, total)
						}
					}
					problem := w.agree()
					switch {
					case hard(a, b) || hard(b, a):
						if v := w.ends[0].verdict; v.Err == nil || v.Theirs.From == v.Ours.To && a != "firewall" && b != "firewall" && !v.Hopeless {
							t.Errorf("%s: %+v", where, v)
						}
					case problem != "":
						failed++
						if env.loss == 0 {
							t.Errorf("%s: %s", where, problem)
						}
					case env.loss == 0 && w.ends[0].ended.Sub(begin) > 3*time.Second:
						t.Errorf("%s: took %s", where, w.ends[0].ended.Sub(begin))
					}
				}
				if failed > seeds/10 {
					t.Errorf("%s–%s, loss %.0f %%: %d of %d fail", a, b, env.loss*100, failed, seeds)
				}
			}
		}
	}
}

// B40: a box that remembers a packet nobody waits for takes our port towards that
// sender, so that the path we offered leads nowhere. The responder's first packets
// open its own box before the initiator's can surprise it; and the initiator's are
// off before the responder begins.
func TestEarlyPackets(t *testing.T) {
	surprised := box(func(b *nattest.Box) { b.Answers = true })
	for _, signal := range []time.Duration{2 * time.Millisecond, 30 * time.Millisecond, 200 * time.Millisecond} {
		for seed := range uint64(50) {
			w := newWorld(t, seed, "easy", "easy")
			for i := range w.ends {
				w.ends[i].box = surprised(w.ends[i].box.Public)
			}
			w.signal = signal
			for i := range w.ends {
				w.ends[i].config.PathRTT = 2 * signal
			}
			w.run()
			if problem := w.agree(); problem != "" {
				t.Errorf("signalling %s, seed %d: %s", signal, seed, problem)
			}
		}
	}
}

// Whatever happens or does not, there is one verdict, in time.
func TestAlwaysEnds(t *testing.T) {
	for name, spoil := range map[string]func(*world){
		"nothing gets through": func(w *world) { w.loss = 1 },
		"no answer":            func(w *world) { w.signal = time.Hour },
		"no server":            func(w *world) { w.ends[0].config.Servers, w.ends[1].config.Servers = nil, nil },
		"no candidates": func(w *world) {
			for _, e := range w.ends {
				e.config.Servers, e.config.Own = nil, nil
			}
		},
		"an answer to something else": func(w *world) { w.ends[1].config.Offer.Attempt = discovery.AttemptID{1} },
	} {
		w := newWorld(t, 1, "easy", "easy")
		spoil(w)
		w.run()
		v := w.ends[0].verdict
		if v == nil || v.Err == nil || v.Hopeless || w.ends[0].ended.Sub(begin) > MaxTime {
			t.Errorf("%s: %+v after %s", name, v, w.ends[0].ended.Sub(begin))
		}
	}
}

func TestCancel(t *testing.T) {
	w := newWorld(t, 1, "easy", "easy")
	cause := errors.New("no longer wanted")
	a := New(begin, w.ends[0].config)
	a.Tick(begin)
	if r := a.Cancel(cause); r.Verdict == nil || !errors.Is(r.Verdict.Err, cause) {
		t.Errorf("%+v", r)
	}
	for what, r := range map[string]Ready{
		"cancelled again": a.Cancel(cause), "ticked": a.Tick(begin.Add(time.Hour)),
		"refused": a.Refused(begin, cause), "answered": a.Answered(begin, discovery.Offer{}),
		"received": a.Received(begin, discovery.CheckPacket{Kind: discovery.CheckRequest, Peer: ap("203.0.113.9:1")}),
	} {
		if r.Verdict != nil || r.Send != nil || r.Offer != nil || r.Ask != nil {
			t.Errorf("after the end, %s: %+v", what, r)
		}
	}
}

// Members together cannot aim a node at a victim, over however many attempts: what
// one address gets that never answers is bounded.
func TestVictimIsSpared(t *testing.T) {
	victim := ap("192.0.2.1:53")
	budget := &discovery.Budget{}
	got, now := 0, begin
	for n := range 300 { // ten minutes of offers, one every two seconds
		w := newWorld(t, uint64(n), "public", "public")
		w.now = now
		e := w.ends[0]
		theirs := w.ends[1].config.Offer
		theirs.Expires = now.Add(time.Minute)
		for port := range uint16(discovery.MaxCandidates) {
			theirs.Candidates = append(theirs.Candidates, discovery.Candidate{Kind: discovery.CandidateHost, Addr: netip.AddrPortFrom(victim.Addr(), 53+port)})
		}
		e.config.Theirs, e.config.Budget, e.config.Servers = &theirs, budget, nil
		a := New(now, e.config)
		for at, end := now, now.Add(6*time.Second); at.Before(end); at = at.Add(10 * time.Millisecond) {
			got += len(a.Tick(at).Send)
		}
		now = now.Add(2 * time.Second)
		if n == 5 && got > 130 {
			t.Errorf("%d packets in ten seconds", got)
		}
	}
	if got > 250 || got < 60 {
		t.Errorf("%d packets in ten minutes", got)
	}
}

// Only what several servers say, or is known already, is offered.
func TestLyingServerIsOutvoted(t *testing.T) {
	victim := ap("192.0.2.1:53")
	for _, known := range []bool{false, true} {
		w := newWorld(t, 1, "easy", "easy")
		c := w.ends[0].config
		if known {
			c.Outside = []netip.Addr{w.ends[0].box.Public}
		}
		c.Servers = append(c.Servers, ap("198.51.100.3:8686"))
		a := New(begin, c)
		r := a.Tick(begin)
		for i, q := range slices.Backward(r.Ask) {
			mapped := victim
			if i < 2 && !known || i == 0 { // the others tell the truth
				mapped = ap("203.0.113.10:51800")
			}
			r = a.Received(begin.Add(10*time.Millisecond), discovery.CheckPacket{Kind: discovery.ServerResponse, Peer: q.Server, Tx: q.Tx, Mapped: mapped})
		}
		if r.Offer == nil {
			r = a.Tick(r.Deadline)
		}
		if r.Offer == nil {
			t.Fatal("no offer")
		}
		if !slices.ContainsFunc(r.Offer.Candidates, func(c discovery.Candidate) bool { return c.Addr == ap("203.0.113.10:51800") }) ||
			slices.ContainsFunc(r.Offer.Candidates, func(c discovery.Candidate) bool { return c.Addr == victim }) {
			t.Errorf("known %v: %v", known, r.Offer.Candidates)
		}
	}
}

// Addresses of the overlay are neither offered nor checked nor learned.
func TestOverlayIsRefused(t *testing.T) {
	inside := netip.MustParsePrefix("10.86.0.0/16")
	w := newWorld(t, 1, "public", "public")
	for _, e := range w.ends {
		e.config.Refuse = []netip.Prefix{inside}
		e.config.Own = append(e.config.Own, discovery.Candidate{Kind: discovery.CandidateHost, Addr: ap("10.86.0.1:51800")})
	}
	w.ends[1].config.Refuse = nil // the other end does not keep to it
	w.run()
	if problem := w.agree(); problem != "" {
		t.Error(problem)
	}
	for i, e := range w.ends {
		if e.sent[netip.MustParseAddr("10.86.0.1")] > 0 && i == 0 {
			t.Errorf("end %d sent into the overlay", i)
		}
	}
	c := w.ends[0].config
	theirs := w.ends[1].config.Offer
	theirs.Candidates = nil
	c.Theirs, c.Servers = &theirs, nil
	a := New(begin, c)
	a.Tick(begin)
	r := a.Received(begin, discovery.CheckPacket{Kind: discovery.CheckRequest, Peer: ap("10.86.0.7:51800"), Tx: discovery.Tx{1}})
	if len(r.Send) > 0 {
		t.Errorf("a check from the overlay is answered: %+v", r.Send)
	}
}

func TestVerdictSaysWhy(t *testing.T) {
	w := newWorld(t, 1, "symmetric", "symmetric")
	w.run()
	for _, e := range w.ends {
		if v := e.verdict; !errors.Is(v.Err, discovery.ErrNoPath) || !v.Hopeless || !strings.Contains(v.Err.Error(), "symmetric") {
			t.Errorf("%+v", v)
		}
	}
}

// FuzzAttempt: whatever arrives in whatever order, the machine neither fails nor
// goes on for ever, and sends nothing to addresses that nobody named.
func FuzzAttempt(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7}, true)
	f.Add([]byte{5, 5, 3, 0, 1, 1, 1, 4, 2}, false)
	f.Fuzz(func(t *testing.T, script []byte, initiates bool) {
		w := newWorld(t, 1, "easy", "public")
		c := w.ends[0].config
		theirs := w.ends[1].config.Offer
		theirs.Candidates = w.ends[1].config.Own
		if !initiates {
			c.Theirs = &theirs
		}
		now := begin
		a := New(now, c)
		named := append(slices.Clone(c.Servers), w.ends[1].host)
		verdicts := 0
		take := func(r Ready) {
			for _, p := range r.Send {
				if !slices.Contains(named, p.Peer) {
					t.Fatalf("sent to %s", p.Peer)
				}
			}
			if r.Verdict != nil {
				verdicts++
			}
		}
		var last discovery.Tx
		for _, b := range script {
			now = now.Add(time.Duration(b>>3) * 20 * time.Millisecond)
			from := named[int(b>>3)%len(named)]
			switch b & 7 {
			case 0:
				r := a.Tick(now)
				for _, q := range r.Ask {
					last = q.Tx
				}
				for _, p := range r.Send {
					last = p.Tx
				}
				take(r)
			case 1:
				take(a.Received(now, discovery.CheckPacket{Kind: discovery.ServerResponse, Peer: from, Tx: last, Mapped: ap("203.0.113.10:7")}))
			case 2, 3, 4, 5:
				take(a.Received(now, discovery.CheckPacket{Kind: discovery.CheckKind(b&7) - 1, Peer: from, Tx: last, Mapped: ap("203.0.113.10:7")}))
			case 6:
				take(a.Answered(now, theirs))
			default:
				take(a.Refused(now, errors.New("refused")))
			}
		}
		for range 1000 {
			if verdicts > 0 {
				break
			}
			r := a.Tick(now)
			take(r)
			now = r.Deadline
		}
		if verdicts != 1 || now.Sub(begin) > MaxTime+time.Duration(len(script))*time.Second {
			t.Fatalf("%d verdicts after %s", verdicts, now.Sub(begin))
		}
	})
}

// An attempt that is to find something better ends without a path where there is
// only what is known, at both ends; and with one where there is.
func TestOnlyBetterPaths(t *testing.T) {
	for kind, better := range map[string]bool{"easy": false, "public": true} {
		for _, loss := range []float64{0, 0.2} {
			w := newWorld(t, 1, "easy", kind)
			w.loss = loss
			w.ends[0].config.Offer.Below = discovery.ClassTranslated
			w.run()
			if problem := w.agree(); (problem == "") != better && loss == 0 {
				t.Errorf("%s: %q", kind, problem)
			}
			for i, e := range w.ends {
				if !better && e.verdict.Err == nil {
					t.Errorf("%s, loss %.0f %%: end %d takes a path that is no better", kind, 100*loss, i)
				}
			}
		}
	}
}

// What neighbours see of other ports is offered for this one where no server answers,
// and only there.
func TestLikelyEndpoints(t *testing.T) {
	at := netip.MustParseAddrPort
	server := at("198.51.100.1:8686")
	for name, c := range map[string]struct {
		mapped string // by the server; empty: there is none
		want   []netip.AddrPort
	}{
		"no server":      {"", []netip.AddrPort{at("203.0.113.5:51900"), at("[2001:db8::5]:51900")}},
		"an IPv4 server": {"203.0.113.5:40001", []netip.AddrPort{at("203.0.113.5:40001"), at("[2001:db8::5]:51900")}},
	} {
		cfg := Config{
			Offer:  discovery.Offer{From: mesh.NodeID{1}, To: mesh.NodeID{2}},
			Likely: []netip.AddrPort{at("203.0.113.5:51900"), at("[2001:db8::5]:51900"), at("10.86.0.1:51900")},
			Refuse: []netip.Prefix{netip.MustParsePrefix("10.86.0.0/16")},
		}
		if c.mapped != "" {
			cfg.Servers = []netip.AddrPort{server}
		}
		a := New(begin, cfg)
		ready := a.Tick(begin)
		for _, q := range ready.Ask {
			ready = a.Received(begin.Add(time.Millisecond), discovery.CheckPacket{Kind: discovery.ServerResponse, Peer: server, Tx: q.Tx, Mapped: at(c.mapped)})
		}
		if ready.Offer == nil {
			t.Fatalf("%s: no offer: %+v", name, ready)
		}
		var got []netip.AddrPort
		for _, o := range ready.Offer.Candidates {
			if o.Kind != discovery.CandidateReflexive {
				t.Errorf("%s: %s is offered as %s", name, o.Addr, o.Kind)
			}
			got = append(got, o.Addr)
		}
		slices.SortFunc(got, netip.AddrPort.Compare)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: offered %v, want %v", name, got, c.want)
		}
	}
}
