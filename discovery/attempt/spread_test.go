package attempt

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"guywire/discovery"
)

// newSpread is a world of which the second end's box gives each destination a random
// port, and whose ends may look for a path by chance.
func newSpread(t *testing.T, seed uint64, hardBegins bool) *world {
	kinds := []string{"easy", "symmetric"}
	if hardBegins {
		kinds = []string{"symmetric", "easy"}
	}
	w := newWorld(t, seed, kinds[0], kinds[1])
	for i, e := range w.ends {
		e.box.Random = rand.New(rand.NewPCG(seed, uint64(i)))
		e.config.Spread = &Spread{Seen: []netip.Addr{w.ends[1-i].box.Public}, Budget: &discovery.SpreadBudget{}}
	}
	return w
}

// bounded verifies what a spread may cost, wherever it leads.
func bounded(t *testing.T, where string, w *world) {
	t.Helper()
	for i, e := range w.ends {
		most, sockets := discovery.SpreadPackets, 1
		if e.box.Symmetric {
			most, sockets = discovery.SpreadPacketsHard, discovery.SpreadSockets
		}
		peer := w.ends[1-i].box.Public
		if n := e.sent[peer]; n > most || len(e.sent) > 1 || n == 0 && len(e.sent) == 1 || e.sockets > sockets {
			t.Errorf("%s: end %d has sent %v from %d sockets", where, i, e.sent, e.sockets)
		}
		const rate, talk = 500, 64 // packets a second, and those that follow a match
		for j := 0; j+rate+talk < len(e.times); j++ {
			if took := e.times[j+rate+talk].Sub(e.times[j]); took < time.Second {
				t.Fatalf("%s: end %d has sent %d packets in %s", where, i, rate+talk, took)
			}
		}
		if e.verdict == nil || e.ended.Sub(begin) > MaxTime {
			t.Errorf("%s: end %d: %+v after %s", where, i, e.verdict, e.ended.Sub(begin))
		}
	}
}

// A spread finds a path as often as the birthday problem says, whoever begins; both ends
// then know one path, and it works. It costs no more than it may.
func TestSpread(t *testing.T) {
	for _, hardBegins := range []bool{false, true} {
		for _, surprised := range []bool{false, true} { // the easy end's box takes early packets for its own
			const seeds = 40
			found := 0
			for seed := range uint64(seeds) {
				w := newSpread(t, seed, hardBegins)
				for _, e := range w.ends {
					e.box.Answers = surprised
				}
				w.run()
				where := fmt.Sprintf("the hard end begins %v, seed %d", hardBegins, seed)
				bounded(t, where, w)
				problem := w.agree()
				if problem == "" {
					found++
					continue
				}
				for i, e := range w.ends {
					if v := e.verdict; !errors.Is(v.Err, discovery.ErrNoPath) || !v.Hopeless || !strings.Contains(v.Err.Error(), "by chance ports, tried") {
						t.Errorf("%s: end %d: %s; %+v", where, i, problem, v)
					}
				}
			}
			odds := discovery.SpreadOdds(discovery.SpreadSockets, discovery.SpreadProbes)
			sigma := math.Sqrt(odds * (1 - odds) / seeds)
			if got := float64(found) / seeds; math.Abs(got-odds) > 3*sigma {
				t.Errorf("the hard end begins %v: %.2f find a path, the formula says %.2f", hardBegins, got, odds)
			}
		}
	}
}

// Packets that are lost make it less likely, and nothing else.
func TestSpreadWithLoss(t *testing.T) {
	found := 0
	for seed := range uint64(20) {
		w := newSpread(t, seed, seed%2 == 0)
		w.loss, w.skew = 0.1, time.Duration(seed)*20*time.Millisecond
		w.run()
		bounded(t, fmt.Sprintf("seed %d", seed), w)
		if w.agree() == "" {
			found++
		}
	}
	if found < 10 {
		t.Errorf("%d of 20", found)
	}
}

// Nothing is sent to an address that others do not see the far end at, nor more than
// twice a day, nor between kinds that a spread is not for.
func TestSpreadIsAllowed(t *testing.T) {
	for name, change := range map[string]func(*world){
		"seen nowhere": func(w *world) { w.ends[0].config.Spread.Seen, w.ends[1].config.Spread.Seen = nil, nil },
		"seen elsewhere": func(w *world) {
			for _, e := range w.ends {
				e.config.Spread.Seen = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
			}
		},
		"in the overlay": func(w *world) {
			for _, e := range w.ends {
				e.config.Refuse = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
			}
		},
		"often today": func(w *world) {
			for i, e := range w.ends {
				for range 2 {
					if !e.config.Spread.Budget.Allow(begin.Add(-23*time.Hour), w.ends[1-i].box.Public) {
						t.Error("refused too early")
					}
				}
			}
		},
		"two easy ends":           func(w *world) { w.ends[1].config.Offer.NAT = discovery.NATEasy },
		"the peer wants none":     func(w *world) { w.ends[1].config.Spread = nil },
		"only the peer wants one": func(w *world) { w.ends[0].config.Spread = nil },
	} {
		w := newSpread(t, 1, false)
		change(w)
		w.run()
		for i, e := range w.ends {
			if e.verdict == nil || e.verdict.Err == nil || len(e.sent) > 0 {
				t.Errorf("%s: end %d: %+v, sent %v", name, i, e.verdict, e.sent)
			}
		}
	}
	w := newSpread(t, 1, false)
	for i, e := range w.ends {
		for range 2 {
			e.config.Spread.Budget.Allow(begin.Add(-25*time.Hour), w.ends[1-i].box.Public)
		}
	}
	w.run()
	if len(w.ends[0].sent) == 0 {
		t.Error("what was yesterday counts")
	}
}

// A peer that knows the credentials and lies cannot make either end send more, nor
// elsewhere.
func TestSpreadWithALyingPeer(t *testing.T) {
	for _, hard := range []bool{false, true} {
		w := newSpread(t, 1, hard)
		e, liar, victim := w.ends[0], w.ends[1], ap("192.0.2.1:53")
		theirs := liar.config.Offer
		theirs.Spread = true
		at := netip.AddrPortFrom(liar.box.Public, 40000)
		theirs.Candidates = []discovery.Candidate{{Kind: discovery.CandidateReflexive, Addr: victim}, {Kind: discovery.CandidateReflexive, Addr: at}}
		e.config.Theirs, e.config.Servers = &theirs, nil
		a := New(begin, e.config)
		sent, random := 0, rand.New(rand.NewPCG(1, 2))
		take := func(r Ready) (over bool) {
			for _, p := range r.Send {
				if sent++; p.Peer.Addr() != at.Addr() || p.Socket >= discovery.SpreadSockets {
					t.Fatalf("sent to %s from socket %d", p.Peer, p.Socket)
				}
				if hard && p.Peer.Port() < 1024 {
					t.Fatalf("sent to %s", p.Peer)
				}
			}
			return r.Verdict != nil
		}
		over := false
		for now := begin; !over && now.Before(begin.Add(2*MaxTime)); now = now.Add(time.Millisecond) {
			over = take(a.Tick(now))
			for range 5 {
				from := netip.AddrPortFrom(at.Addr(), uint16(1024+random.IntN(60000)))
				if random.IntN(3) == 0 {
					from = victim
				}
				over = over || take(a.Received(now, discovery.CheckPacket{
					Kind: discovery.CheckKind(1 + random.IntN(4)), Peer: from, Socket: random.IntN(discovery.SpreadSockets), Tx: discovery.Tx{byte(random.Uint32())},
				}))
			}
		}
		most := discovery.SpreadPackets
		if hard {
			most = discovery.SpreadPacketsHard
		}
		if !over || sent > most || sent < 100 {
			t.Errorf("hard %v: over %v, %d packets", hard, over, sent)
		}
	}
}
