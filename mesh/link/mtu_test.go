package link

import (
	"testing"
	"time"
)

func (p *pair) mtus(limit int) {
	for _, l := range p.ends {
		l.SetMTU(limit)
	}
}

func (p *pair) wantMTU(t *testing.T, least, most int) {
	t.Helper()
	for i, l := range p.ends {
		if size, searched := l.MTU(); size < least || size > most || !searched {
			t.Errorf("end %d: %d bytes, searched %t; the path carries %d of at most %d", i, size, searched, p.mtu, l.mtu.limit)
		}
	}
}

// The search ends within a step below what the path carries, never above, and
// costs less than 40 kB.
func TestMTUIsFound(t *testing.T) {
	for _, limit := range []int{1200, 1280, 1281, 1350, 1420, 1440, 8920} {
		for _, mtu := range []int{1280, 1284, 1300, 1352, 1419, 1420, 1500, 9000} {
			p := newPair()
			p.mtus(limit)
			p.mtu = mtu
			p.run(100 * time.Millisecond)
			if size, searched := p.ends[0].MTU(); size != baseMTU || searched && limit > baseMTU {
				t.Fatalf("%d bytes before anything came back", size)
			}
			p.run(2 * time.Second)
			p.forget()
			for range 20 {
				p.run(200 * time.Millisecond)
			}
			best := max(min(limit, mtu), baseMTU)
			p.wantMTU(t, max(best-mtuStep+1, baseMTU), best)
			if p.mtu < limit && p.ends[0].loss.slow > 0 {
				t.Errorf("the search shows as %d lost probes", p.ends[0].loss.slow)
			}
		}
	}
}

func TestMTUSearchIsCheap(t *testing.T) {
	p, plain := newPair(), newPair()
	p.mtus(1420)
	p.mtu = 1330
	p.run(20 * time.Second)
	plain.run(20 * time.Second)
	extra := p.bytes[0] - plain.bytes[0]
	t.Logf("%d bytes more in 20 s, beside %d", extra, plain.bytes[0])
	if extra > 40_000 {
		t.Errorf("the search cost %d bytes", extra)
	}
}

// A path that stops carrying the size in use is noticed although small probes
// pass, and one that carries more again, too.
func TestMTUBlackHole(t *testing.T) {
	p := newPair()
	p.mtus(1420)
	p.run(5 * time.Second)
	p.wantMTU(t, 1420, 1420)
	p.mtu = 1380
	p.run(10 * time.Second)
	p.wantMTU(t, 1380-mtuStep+1, 1380)
	p.want(t, Up, Up)
	p.mtu = 1500
	p.run(raiseEvery + 10*time.Second)
	p.wantMTU(t, 1420, 1420)
	if len(p.history) > 2 {
		t.Errorf("%v", p.history)
	}
}

// Loss alone is no black hole.
func TestMTUAndLoss(t *testing.T) {
	p := newPair()
	p.mtus(1420)
	p.run(2 * time.Second)
	p.loss = [2]float64{0.2, 0.2}
	for range 20 * 240 {
		p.run(50 * time.Millisecond)
		if size, _ := p.ends[0].MTU(); size != 1420 {
			t.Fatalf("%d bytes on a path with a fifth of loss", size)
		}
	}
	p = newPair()
	p.loss = [2]float64{0.1, 0.1}
	p.mtus(1420)
	p.mtu = 1400
	p.run(20 * time.Second)
	p.wantMTU(t, baseMTU, 1400)
}

// Another limit begins another search; the same does not.
func TestMTULimit(t *testing.T) {
	p := newPair()
	p.mtus(1420)
	p.run(2 * time.Second)
	p.mtus(1420)
	p.wantMTU(t, 1420, 1420)
	p.mtus(1340)
	p.run(2 * time.Second)
	p.wantMTU(t, 1340, 1340)
}

// The padding is what the far end reports, whatever the order of arrival.
func TestPaddedCopiesAreNotProbes(t *testing.T) {
	p := newPair()
	p.mtus(1420)
	p.jitter = uniform(12 * time.Millisecond)
	p.run(time.Minute)
	p.wantMTU(t, 1420, 1420)
	for i, l := range p.ends {
		if rx, tx := l.Loss(); rx > 0 || tx > 0.001 {
			t.Errorf("end %d measures %.2f %% and %.2f %% of loss", i, 100*rx, 100*tx)
		}
	}
}
