package truth

import (
	"fmt"
	"syscall"
	"testing"

	"guywire/integration/lab"
	"guywire/mesh/api"
)

// TestI07VotersGone: with every voter killed all still talk to all, traffic
// takes another path when a link is cut, and an ordinary node that was killed,
// or lost its tunnels too, comes back by itself (I7). The voters find the mesh
// as it was.
func TestI07VotersGone(t *testing.T) {
	w := build(t, lab.Options{Path: []string{bin}})
	ordinary := []string{"five", "six"}
	for _, site := range ordinary {
		w.start(site)
		w.must(site, w.tokens.Client, "join", "--name", site) // which never vote
	}
	all := append(ordinary, w.sites...)
	talking := func() string {
		for _, from := range all {
			for _, to := range all {
				if from == to {
					continue
				}
				if silent := w.talk(from, to); silent != "" {
					return silent
				}
			}
		}
		return ""
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w.until("all talk", talking)
	w.killAll()
	w.until("all talk without voters", talking)

	around := func(site string) {
		for _, link := range w.uplinks(site) {
			must(w.lab.Cut(t.Context(), link, ""))
			w.until("traffic goes around "+link, func() string { return w.talk("five", "six") + w.talk("six", "five") })
			must(w.lab.Heal(t.Context(), link))
		}
	}
	around("five")
	for _, tunnels := range []bool{true, false} { // whether they outlive the agent
		must(w.lab.Kill(t.Context(), "six", "", syscall.SIGKILL))
		if !tunnels {
			must(w.lab.KillAll(t.Context(), "six", syscall.SIGKILL))
		}
		w.start("six")
		w.until(fmt.Sprintf("six is back, with its tunnels: %v", tunnels), func() string {
			var st api.Status
			if err := w.ask("six", "status", &st); err != nil {
				return err.Error()
			}
			return w.talk("six", "five") + w.talk("five", "six") // a site without an agent makes no new tunnel
		})
		around("six")
	}

	for _, site := range w.sites {
		w.start(site)
	}
	w.settled()
	w.until("all talk again", talking)
}
