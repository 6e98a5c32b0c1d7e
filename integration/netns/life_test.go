package netns

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"guywire/mesh/api"
)

// member says "" when a node knows another.
func (w *world) member(at, name string) string {
	w.Helper()
	for _, n := range ask[api.Nodes](w, at, "nodes").Nodes {
		if n.Name == name {
			return ""
		}
	}
	return at + " does not know " + name
}

// TestLeave: what a node was given it gives back, the others forget it, and it
// may come again.
func TestLeave(t *testing.T) {
	w := build(t, sites("a", "b"))
	founder := w.snapshot("a")
	w.mesh("a")
	alone, clean := w.snapshot("a"), w.snapshot("b")
	for range 2 { // with a new token under the same name
		w.enter("b", "a")
		w.talk("a", "b")
		w.must("b", "", "meshctl", "leave", "--yes")
		w.nothingLeft("b", clean)
		w.until("a forgets b", func() string {
			if w.member("a", "b") == "" {
				return "b is in its list"
			}
			gone := slices.DeleteFunc(w.snapshot("a"), func(line string) bool {
				// The data plane waits for the next tunnel; the filter has been written anew.
				return strings.Contains(line, "dataplane")
			})
			return changes(alone, gone)
		})
	}

	// The only operator and voter leaves: the other one must be an operator
	// first, takes over as soon as it is known to be reached from outside, and is
	// the last to go.
	w.enter("b", "a")
	refused(t, w.ctl("a", "leave", "--yes"), api.ExitConflict, "meshctl")
	w.must("a", "", "meshctl", "node", "set", "b", "--role", "operator")
	w.until("a leaves", func() string {
		w.talk("a", "b") // a refusal changes nothing
		if o := w.ctl("a", "leave", "--yes"); o.code != 0 {
			return o.said
		}
		return ""
	})
	w.nothingLeft("a", founder)
	w.enter("a", "b")
	w.talk("a", "b")
	w.must("a", "", "meshctl", "leave", "--yes")
	w.must("b", "", "meshctl", "leave", "--yes")
	w.nothingLeft("a", founder)
	w.nothingLeft("b", clean)
	w.mesh("b", "a")
}

// TestTeardown: SIGTERM leaves everything in the kernel, teardown nothing, and
// the membership outlives both.
func TestTeardown(t *testing.T) {
	w := build(t, sites("a", "b"))
	w.stop("b", "", syscall.SIGTERM)
	clean := w.snapshot("b")
	w.start("b", "")
	w.mesh("a", "b")
	w.talk("a", "b")

	refused(t, w.do("b", "", "meshd", "teardown", "--config", w.config("b")), meshdConflict, w.state("b"), "stop")
	w.talk("a", "b")
	w.stop("b", "", syscall.SIGTERM)
	w.talk("a", "b")
	w.must("b", "", "meshd", "teardown", "--config", w.config("b"))
	if diff := changes(clean, w.snapshot("b")); diff != "" {
		t.Errorf("teardown leaves:%s", diff)
	}
	w.must("b", "", "meshd", "teardown", "--config", w.config("b")) // of nothing
	w.start("b", "")
	w.talk("a", "b")
	w.must("b", "", "meshctl", "status", "--check", "ready")
}

// TestRestart ends and starts agents under traffic. No packet may be lost.
func TestRestart(t *testing.T) {
	w := build(t, sites("a", "b"))
	w.mesh("a", "b")
	w.talk("a", "b")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			w := w.of(t)
			s := w.stream("a", "b")
			s.flows(500 * time.Millisecond)
			for _, site := range []string{"b", "a"} {
				w.stop(site, "", sig)
				w.start(site, "")
				w.until(site+" is ready", func() string {
					return w.ctl(site, "status", "--check", "ready").said
				})
				s.flows(time.Second)
			}
			r := s.stop()
			t.Logf("%d packets, longest gap %v", r.Sent, r.LongestGap)
			if r.Sent < streamPPS || r.Lost > r.LostAtReceiver+r.LostAtSend {
				t.Errorf("%d of %d packets are lost: %+v", r.Lost, r.Sent, r.Losses)
			}
		})
	}
}

// TestDataplaneKilled: the tunnels are made anew by the agent, by itself.
func TestDataplaneKilled(t *testing.T) {
	w := build(t, sites("a", "b"))
	w.mesh("a", "b")
	w.talk("a", "b")
	needUserspace(t, ask[api.Status](w, "b", "status").Dataplane)
	w.inside("b", "kill", "dataplane")
	w.until("the tunnel is missed", func() string {
		if len(w.repairs("b", 0)) == 0 {
			return "no event tells of it"
		}
		return ""
	})
	w.talk("a", "b")
}

// TestReboot kills all that runs on a site and clears its kernel, as a reboot
// does. It comes back from its cache while no voter runs.
func TestReboot(t *testing.T) {
	w := build(t, sites("a", "b", "c", "d", "e"))
	voters := []string{"a", "b", "c"}
	w.mesh(voters...)
	w.until("the first three vote", func() string {
		for _, s := range voters {
			if role := ask[api.Status](w, s, "status").Node.Role; role != "voter" {
				return s + " is a " + role
			}
		}
		return ""
	})
	w.enter("d", "a")
	w.enter("e", "a")
	for _, s := range []string{"a", "d"} {
		w.talk(s, "e")
	}
	for _, s := range []string{"d", "e"} {
		if role := ask[api.Status](w, s, "status").Node.Role; role != "follower" {
			t.Fatalf("%s is a %s", s, role)
		}
	}
	for _, s := range voters {
		w.stop(s, "", syscall.SIGKILL) // their tunnels live on
	}
	if err := w.lab.KillAll(t.Context(), "e", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.must("e", "", "meshd", "teardown", "--config", w.config("e"))
	w.start("e", "")
	w.talk("d", "e")
}
