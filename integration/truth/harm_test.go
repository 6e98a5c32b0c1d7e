package truth

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/disk"
	"guywire/mesh/api"
)

// A breaker breaks a mesh, and mends it.
type breaker struct {
	*world
	random *rand.Rand
	began  time.Time
	until  time.Time
}

// A fault is one way to break something at or about a site. It takes about as
// long as it is told, and leaves links, disks and clocks to be healed.
type fault func(b *breaker, site string, d time.Duration)

var faults = []fault{
	(*breaker).kill, (*breaker).crash, (*breaker).pause, (*breaker).shiftClock, (*breaker).loseClock, (*breaker).stall, (*breaker).fail,
	(*breaker).cut, (*breaker).deafen, (*breaker).part, (*breaker).killAll, (*breaker).drain, (*breaker).roll, (*breaker).rotate,
}

// harm breaks one thing after the other until the time is over, then mends
// all.
func (w *world) harm(until time.Time, random *rand.Rand) {
	w.Helper()
	b := &breaker{world: w, random: random, began: time.Now(), until: until}
	order := random.Perm(len(faults))
	for i := 0; time.Now().Before(until) && w.Context().Err() == nil; i++ {
		site := w.sites[random.IntN(len(w.sites))]
		if led := w.leader(); led != "" && random.IntN(2) == 0 {
			site = led
		}
		faults[order[i%len(order)]](b, site, time.Duration(3000+random.IntN(4000))*time.Millisecond)
		b.ok(w.lab.Heal(w.Context(), ""))
		b.rest(time.Duration(1000+random.IntN(3000)) * time.Millisecond)
	}
	b.say("all is mended")
}

func (b *breaker) say(format string, args ...any) {
	b.Helper()
	b.Logf("%5.1f s: %s", time.Since(b.began).Seconds(), fmt.Sprintf(format, args...))
}

func (b *breaker) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *breaker) rest(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.Context().Done():
	}
}

// stop ends meshd by a signal and waits until it has ended.
func (b *breaker) stop(site string, sig syscall.Signal) {
	b.Helper()
	b.ok(b.lab.Kill(b.Context(), site, "", sig))
	b.world.until("the end of meshd on "+site, func() string {
		st, err := b.lab.Status(b.Context())
		if err != nil {
			return err.Error()
		}
		n, _ := st.Node(site)
		if slices.ContainsFunc(n.Processes, func(p lab.Process) bool { return p.Name == "meshd" && p.Running }) {
			return "it runs"
		}
		return ""
	})
}

func (b *breaker) kill(site string, d time.Duration) {
	b.say("%s is killed", site)
	b.ok(b.lab.Kill(b.Context(), site, "", syscall.SIGKILL))
	b.rest(d)
	b.start(site)
}

// crash has meshd write down what it was doing.
func (b *breaker) crash(site string, d time.Duration) {
	b.say("%s crashes", site)
	b.stop(site, syscall.SIGABRT)
	b.rest(d / 4)
	b.start(site)
}

func (b *breaker) pause(site string, d time.Duration) {
	b.say("%s stands still for %s", site, d)
	b.ok(b.lab.Pause(b.Context(), site, "", d))
}

func (b *breaker) shiftClock(site string, d time.Duration) {
	offset := []time.Duration{time.Hour, -time.Hour}[b.random.IntN(2)]
	b.say("the clock of %s is off by %s", site, offset)
	b.ok(b.lab.Clock(b.Context(), site, offset, d))
}

// loseClock is what an empty battery does, or a wrong digit.
func (b *breaker) loseClock(site string, d time.Duration) {
	offset := []time.Duration{-time.Duration(time.Now().Unix()) * time.Second, 30 * 365 * 24 * time.Hour}[b.random.IntN(2)]
	b.say("the clock of %s shows %s", site, time.Now().Add(offset).Format(time.DateOnly))
	b.ok(b.lab.Clock(b.Context(), site, offset, d))
}

func (b *breaker) stall(site string, d time.Duration) {
	if time.Until(b.until) > 50*time.Second {
		d = 30 * time.Second
	}
	b.say("the disk of %s stalls for %s", site, d)
	b.ok(b.lab.Disk(b.Context(), site, disk.Stall, d))
	b.again(site)
}

func (b *breaker) fail(site string, _ time.Duration) {
	b.say("the disk of %s fails", site)
	b.ok(b.lab.Disk(b.Context(), site, disk.IO, 2*time.Second))
	b.again(site)
}

func (b *breaker) again(site string) {
	b.ok(b.lab.Kill(b.Context(), site, "", 0))
	b.start(site)
}

func (b *breaker) cut(site string, d time.Duration) {
	b.say("%s is cut off", site)
	for _, link := range b.uplinks(site) {
		b.ok(b.lab.Cut(b.Context(), link, ""))
	}
	b.rest(d)
}

func (b *breaker) deafen(site string, d time.Duration) {
	b.say("%s hears and is not heard", site)
	for _, link := range b.uplinks(site) {
		b.ok(b.lab.Cut(b.Context(), link, site))
	}
	b.rest(d)
}

func (b *breaker) part(_ string, d time.Duration) {
	b.say("west and east are parted")
	b.ok(b.lab.Partition(b.Context(), []string{"west"}, []string{"east"}))
	b.rest(d)
}

func (b *breaker) killAll(string, time.Duration) {
	b.say("all are killed")
	b.world.killAll()
	for _, site := range b.sites {
		b.start(site)
	}
}

// change asks a site for a change, which it may refuse.
func (b *breaker) change(site string, args ...string) error {
	_, err := b.inside(b.Context(), site, "", append([]string{"change"}, args...)...)
	return err
}

// drain takes the leader out of use, so that another one leads and, where there
// is one to spare, another one votes.
func (b *breaker) drain(site string, d time.Duration) {
	if led := b.leader(); led != "" {
		site = led
	}
	b.say("%s is drained (%v)", site, b.change(site, "drain", site))
	b.rest(d)
	b.world.until("the end of the drain", func() string {
		if err := b.change(site, "undrain", site); err != nil {
			return err.Error()
		}
		return ""
	})
}

// roll restarts all, one after the other, as an upgrade does.
func (b *breaker) roll(string, time.Duration) {
	b.say("all are restarted in turn")
	for _, site := range b.sites {
		b.stop(site, syscall.SIGTERM)
		b.start(site)
		b.world.until(site+" is back", func() string {
			var st api.Status
			switch err := b.ask(site, "status", &st); {
			case err != nil:
				return err.Error()
			case st.Node == nil || st.Node.Role != "voter" || st.Node.Leader == "":
				return "it does not vote for a leader"
			}
			return ""
		})
	}
}

// rotate changes the CA, and kills a site while that is under way.
func (b *breaker) rotate(site string, d time.Duration) {
	asked := b.sites[b.random.IntN(len(b.sites))]
	b.say("%s is to change the CA, and %s is killed", asked, site)
	done := make(chan error, 1)
	go func() { done <- b.change(asked, "rotate") }()
	b.rest(time.Duration(b.random.IntN(1000)) * time.Millisecond)
	b.ok(b.lab.Kill(b.Context(), site, "", syscall.SIGKILL))
	b.rest(d / 2)
	b.start(site)
	b.say("the CA is changed (%v)", <-done)
}

// leader is the site that leads, as far as any knows.
func (w *world) leader() string {
	for _, site := range w.sites {
		var st api.Status
		if w.ask(site, "status", &st) == nil && st.Node != nil && slices.Contains(w.sites, st.Node.Leader) {
			return st.Node.Leader
		}
	}
	return ""
}

// uplinks names the links of a site to routers.
func (w *world) uplinks(site string) (names []string) {
	w.Helper()
	st, err := w.lab.Status(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	n, _ := st.Node(site)
	for _, i := range n.Interfaces {
		if i.Name != "lan" {
			names = append(names, site+":"+i.Name)
		}
	}
	if len(names) == 0 {
		w.Fatalf("%s has no uplink", site)
	}
	return names
}
