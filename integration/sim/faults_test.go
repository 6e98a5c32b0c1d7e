package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"guywire/mesh/core"
)

// trial is a world in which one thing after another goes wrong.
type trial struct {
	*World
	oracle *Oracle
	rng    *rand.Rand
	log    []string
	slow   map[int]time.Duration // of kernels
	away   map[int]bool          // nodes or agents that are, and will be back
	most   time.Duration         // for which a fault lasts
}

func newTrial(seed uint64, m Map, uplinks ...string) *trial {
	c := &trial{
		World: m.World(seed, uplinks...), rng: rand.New(rand.NewPCG(seed, 13)),
		slow: map[int]time.Duration{}, away: map[int]bool{},
	}
	c.KernelTime = func(n *Node) time.Duration {
		return kernelTime + time.Duration(c.rng.Int64N(int64(c.slow[n.Index])+1))
	}
	c.Told = func(n *Node, f core.Fact) {
		c.log = append(c.log, fmt.Sprintf("%9.4f n%d %s (%s)", f.At.Sub(Epoch).Seconds(), n.Index, f.Sentence, f.Cause))
	}
	return c
}

func (c *trial) note(format string, args ...any) {
	c.log = append(c.log, fmt.Sprintf("%9.4f --- ", c.now.Seconds())+fmt.Sprintf(format, args...))
}

// upTo draws a time.
func (c *trial) upTo(least, most time.Duration) time.Duration {
	return least + time.Duration(c.rng.Int64N(int64(most-least)))
}

// link draws two nodes that have one.
func (c *trial) link() (a, b int) {
	for {
		n := c.Nodes[c.rng.IntN(len(c.Nodes))]
		if len(n.tunnels) > 0 && n.Running {
			return n.Index, n.tunnels[c.rng.IntN(len(n.tunnels))].peer.Index
		}
	}
}

// node draws one that runs.
func (c *trial) node() int {
	for {
		i := c.rng.IntN(len(c.Nodes))
		if c.Nodes[i].Running && !c.away[i] {
			return i
		}
	}
}

// fault lets something go wrong and come right again.
func (c *trial) fault(kinds []string) {
	lasting := c.upTo(500*time.Millisecond, c.most)
	what := kinds[c.rng.IntN(len(kinds))]
	impair := func(i Impairment, both bool) {
		a, b := c.link()
		c.note("%s %d → %d for %v", what, a, b, lasting)
		c.Impair(a, b, i)
		if both {
			c.Impair(b, a, i)
		}
		c.After(lasting, func() { c.note("%d and %d are well", a, b); c.Heal(a, b) })
	}
	switch what {
	case "cut":
		impair(Impairment{Cut: true}, true)
	case "one way":
		impair(Impairment{Cut: true}, false)
	case "loss":
		impair(Impairment{Loss: 0.05 + 0.5*c.rng.Float64()}, c.rng.IntN(2) == 0)
	case "delay":
		impair(Impairment{More: c.upTo(20*time.Millisecond, 300*time.Millisecond)}, c.rng.IntN(2) == 0)
	case "flap":
		a, b := c.link()
		c.note("flap %d – %d for %v", a, b, lasting)
		c.Flap(a, b, c.upTo(200*time.Millisecond, 2*time.Second), c.upTo(50*time.Millisecond, time.Second), lasting)
	case "kill", "reboot":
		if slices.ContainsFunc(c.Nodes, func(n *Node) bool { return !n.Dead && !n.ready() }) {
			return // while an agent is silent, or was a moment ago, other things go wrong
		}
		i := c.node()
		c.away[i] = true
		if what == "reboot" {
			c.note("reboot %d, away for %v", i, lasting)
			c.Reboot(i, lasting)
			c.After(lasting, func() { c.note("%d is back", i); delete(c.away, i) })
			return
		}
		c.note("kill the agent of %d for %v", i, lasting)
		c.Kill(i)
		c.After(lasting, func() { c.note("agent of %d starts", i); delete(c.away, i); c.Start(i) })
	case "uplink":
		i := c.node()
		u := c.Nodes[i].host.Uplinks
		name := u[c.rng.IntN(len(u))].Name
		c.note("uplink %s of %d down for %v", name, i, lasting)
		c.SetUplink(i, name, false)
		c.After(lasting, func() { c.note("uplink %s of %d up", name, i); c.SetUplink(i, name, true) })
	case "partition":
		var side []int
		for i := range c.Nodes {
			if c.rng.IntN(2) == 0 {
				side = append(side, i)
			}
		}
		c.note("partition %v for %v", side, lasting)
		c.Partition(side...)
		c.After(lasting, func() { c.note("the partition is over"); c.Partition() })
	case "slow kernel":
		i := c.node()
		c.slow[i] = c.upTo(time.Millisecond, 300*time.Millisecond)
		c.note("kernel of %d takes up to %v for %v", i, c.slow[i], lasting)
		c.After(lasting, func() { delete(c.slow, i) })
	case "join":
		n := c.Join("isp1")
		c.note("node %d joins", n.Index)
	case "leave":
		i := c.node()
		c.note("node %d leaves", i)
		c.away[i] = true
		c.Leave(i)
	default:
		panic(what)
	}
}

// run is a life of the world: a start, faults, and peace.
func (c *trial) run(start, faults, peace time.Duration, kinds ...string) {
	c.StartAll()
	c.oracle = c.Watch(100 * time.Millisecond)
	c.Run(start)
	for end := c.now + faults; c.now < end; {
		c.fault(kinds)
		c.Run(c.upTo(time.Second, 6*time.Second))
	}
	c.Run(peace)
	for range 10 { // announcements are not cut off on their way
		if c.now-c.announced > quietBound {
			break
		}
		c.Run(quietBound)
	}
}

// problems is what is wrong at the end.
func (c *trial) problems() []string {
	out := append(append([]string(nil), c.Loops...), c.oracle.Violations...)
	if pairs, talking := c.Reachable(); talking < pairs {
		out = append(out, fmt.Sprintf("%d of %d pairs can talk at the end", talking, pairs))
	}
	if !c.Agree() {
		out = append(out, "databases differ at the end")
	}
	return out
}

// TestChaos throws faults at worlds and lets the oracle look: some seconds of
// each kind, with -all minutes of them.
func TestChaos(t *testing.T) {
	for _, test := range []struct {
		name    string
		m       Map
		uplinks []string
		kinds   string
	}{
		{"cuts", Geographic(1, 10, 0), nil, "cut,one way"},
		{"bad paths", Geographic(2, 10, 0), nil, "loss,delay"},
		{"flapping", Geographic(3, 10, 0), nil, "flap"},
		{"agents", Geographic(4, 10, 0), nil, "kill"},
		{"reboots", Geographic(5, 10, 0), nil, "reboot"},
		{"uplinks", Geographic(6, 6, 0), []string{"isp1", "isp2"}, "uplink"},
		{"partitions", Geographic(7, 10, 0), nil, "partition"},
		{"slow kernels", Geographic(8, 10, 0), nil, "slow kernel,cut,loss"},
		{"churn", Geographic(9, 16, 0), nil, "join,leave"},
		{"line", Line(8), nil, "cut,kill,loss,slow kernel"},
		{"ring", Ring(10), nil, "cut,one way,kill,reboot,slow kernel"},
		{"grid", Grid(4, 4), nil, "cut,one way,kill,reboot,flap,slow kernel"},
		{"all", Geographic(10, 20, 0.3), []string{"isp1"}, "cut,one way,loss,delay,flap,kill,reboot,partition,slow kernel,join,leave"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newTrial(*seed, test.m, test.uplinks...)
			c.Traffic = true
			kinds := strings.Split(test.kinds, ",")
			if *all {
				c.most = 15 * time.Second
				c.run(20*time.Second, 90*time.Second, 30*time.Second, kinds...)
			} else {
				c.most = 4 * time.Second
				c.run(13*time.Second, 6*time.Second/time.Duration(thin), 12*time.Second, kinds...)
			}
			t.Logf("seed %d, %d events, %d looks, %d interruptions, longest %v", *seed, c.Events, c.oracle.Looks, c.oracle.Interrupted, c.oracle.Worst)
			for i, p := range c.problems() {
				if i == 6 {
					break
				}
				t.Error(p)
			}
			if t.Failed() {
				t.Logf("to repeat: go test ./integration/sim -run '^%s$' -args -seed %d -all=%t", strings.ReplaceAll(t.Name(), "/", "$/^"), *seed, *all)
			}
			if t.Failed() && testing.Verbose() {
				t.Log("\n" + strings.Join(c.log, "\n"))
			}
		})
	}
}
