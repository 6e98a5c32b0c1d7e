package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// TestLimiter holds random calls against the definition: in no span of time do
// more get through than its rate and one burst, and whoever keeps to the rate
// always does.
func TestLimiter(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		one, all := rate{1 + 9*r.Float64(), float64(1 + r.IntN(5))}, rate{5 + 20*r.Float64(), float64(5 + r.IntN(20))}
		now := time.Unix(1e9, 0)
		l := newLimiter(one, all, now)
		let := map[string][]time.Time{}
		for range 400 {
			now = now.Add(time.Duration(r.Int64N(int64(200 * time.Millisecond))))
			source := fmt.Sprint(r.IntN(6))
			if l.allow(source, now) {
				let[source], let["all"] = append(let[source], now), append(let["all"], now)
			}
		}
		for source, times := range let {
			limit := one
			if source == "all" {
				limit = all
			}
			for i := range times {
				for j := i; j < len(times); j++ {
					if most := limit.burst + limit.each*times[j].Sub(times[i]).Seconds(); float64(j-i+1) > most+1e-6 {
						t.Fatalf("seed %d: %s: %d in %s, at most %.2f", seed, source, j-i+1, times[j].Sub(times[i]), most)
					}
				}
			}
		}
		calm := newLimiter(one, rate{1e6, 1e6}, now)
		for range 50 {
			now = now.Add(time.Duration(float64(time.Second)/one.each) + 1)
			if !calm.allow("calm", now) {
				t.Fatalf("seed %d: refused within the rate", seed)
			}
		}
	}
}

func TestLimiterForgets(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	l := newLimiter(rate{1, 2}, rate{1e9, 1e9}, now)
	for i := range maxSources {
		if !l.allow(fmt.Sprint(i), now) {
			t.Fatalf("source %d is refused", i)
		}
	}
	if l.allow("one more", now) || len(l.buckets) > maxSources {
		t.Error("there is room for one source more than there may be")
	}
	if !l.allow("7", now) {
		t.Error("a known source lost its bucket")
	}
	if now = now.Add(3 * time.Second); !l.allow("one more", now) || len(l.buckets) != 1 {
		t.Errorf("%d sources are remembered after they could be forgotten", len(l.buckets))
	}
	if now = now.Add(-time.Hour); !l.allow("one more", now) || l.allow("one more", now) {
		t.Error("a clock that was set back fills or empties a bucket")
	}
}

func TestSourceOf(t *testing.T) {
	t.Parallel()
	for a, want := range map[string]string{
		"203.0.113.7":            "203.0.113.7",
		"::ffff:203.0.113.7":     "203.0.113.7",
		"2001:db8:1:2:3:4:5:6":   "2001:db8:1:2::/64",
		"fe80::1%eth0":           "fe80::/64",
		"2001:db8:1:2:ffff::abc": "2001:db8:1:2::/64",
	} {
		if got := sourceOf(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %s, want %s", a, got, want)
		}
	}
}

func TestTally(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	var said []int
	var c tally
	for range 1000 {
		if n, due := c.add(now, time.Minute); due {
			said = append(said, n)
		}
		now = now.Add(300 * time.Millisecond) // five minutes in all
	}
	if fmt.Sprint(said) != "[1 200 200 200 200]" {
		t.Errorf("reports: %v", said)
	}
}
