package peers

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"guywire/integration/lab/world"
)

// A Contender is a routing system that can run on the sites of a world.
type Contender struct {
	Name     string
	Settings string        // in words, as far as they are not the defaults
	Rest     time.Duration // after a change, before it is as quick as ever
	Slow     bool          // one cut takes the better part of a minute

	// daemons gives what runs on a site beside the tunnels made by hand; nil: the mesh, which makes its own.
	daemons func(node) []daemon
	// programs that must be there, with the Debian package that has them.
	programs []program
}

type program struct{ name, pkg string }

// A daemon is one process of a contender on a site.
type daemon struct {
	name   string
	argv   []string
	config map[string]string // files in the node's directory
}

// All returns the contenders, Guywire first: the others get tunnels of the kind and MTU that it has.
func All() []Contender {
	return []Contender{
		{
			Name: "guywire", Settings: "defaults", Rest: time.Second,
		},
		{
			Name: "frr-ospf-bfd", Settings: "FRR ospfd, bfdd 50 ms x 3", Rest: lsaInterval,
			daemons: frrBFD, programs: []program{{zebra, "frr"}, {"ospfd", "frr"}, {"bfdd", "frr"}},
		},
		{
			Name: "frr-ospf", Settings: "FRR ospfd, dead after 1 s", Rest: lsaInterval,
			daemons: frrHello, programs: []program{{zebra, "frr"}, {"ospfd", "frr"}},
		},
		{
			Name: "bird-ospf-bfd", Settings: "BIRD ospf, bfd 50 ms x 3", Rest: lsaInterval,
			daemons: bird, programs: []program{{"bird", "bird2"}},
		},
		{
			Name: "babeld", Settings: "defaults", Rest: time.Second, Slow: true,
			daemons: babeld, programs: []program{{"babeld", "babeld"}},
		},
	}
}

// Patience is how long a contender may take to leave a dead path: OSPF's dead interval without BFD, some hellos of babeld.
const Patience = time.Minute

// lsaInterval is longer than OSPF's MinLSInterval (RFC 2328, appendix B): a router that has just announced a link waits as
// long before it announces that the link is gone.
const lsaInterval = 6 * time.Second

// Missing says what to install; empty: nothing is missing.
func (c Contender) Missing() string {
	for _, p := range c.programs {
		if find(p.name) == "" {
			return fmt.Sprintf("%s is not installed; install the Debian package %s", p.name, p.pkg)
		}
	}
	return ""
}

// find returns the path of a program, also where the PATH of a plain user does not lead; empty: there is none.
func find(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/lib/frr", "/usr/libexec/frr", "/usr/sbin", "/usr/local/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	return ""
}

// Tunnels are what a contender's network has.
type Tunnels struct {
	Kind string // of the devices: kernel or userspace
	MTU  int
}

// Start starts the contender on all sites of a world without agents, between each two of which it gets one tunnel, and
// returns when every site's kernel routes to every other's LAN and the hosts there talk. The mesh makes its own tunnels.
func (c Contender) Start(ctx context.Context, w *world.World, tunnels Tunnels) error {
	if c.daemons == nil {
		for _, s := range w.Sites {
			if _, err := w.Lab.Start(ctx, s.Name, "", nil); err != nil {
				return err
			}
		}
		if _, err := w.JoinAll(ctx); err != nil {
			return err
		}
		return w.Settle(ctx)
	}
	if err := w.ConnectByHand(ctx, tunnels.Kind, tunnels.MTU, false, w.AllPairs()...); err != nil {
		return err
	}
	for _, n := range nodes(w) {
		for _, d := range c.daemons(n) {
			for name, text := range d.config {
				if err := os.WriteFile(filepath.Join(n.dir, name), []byte(text), 0o644); err != nil {
					return err
				}
			}
			if _, err := w.Lab.Start(ctx, n.name, d.name, d.argv); err != nil {
				return err
			}
		}
	}
	err := w.UntilRouted(ctx)
	if err == nil {
		err = w.UntilTalk(ctx, false) // OSPFv2 is for IPv4 alone
	}
	if err != nil {
		return cmp.Or(ended(ctx, w), err)
	}
	return c.refused(w)
}

// refused finds settings that a daemon did not understand and left out.
func (c Contender) refused(w *world.World) error {
	for _, n := range nodes(w) {
		for _, d := range c.daemons(n) {
			said, err := os.ReadFile(filepath.Join(n.dir, d.name+".log"))
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(said)) {
				if strings.Contains(line, "No such command") {
					return fmt.Errorf("%s does not understand its settings: %s", d.name, strings.TrimSpace(line))
				}
			}
		}
	}
	return nil
}

// ended tells of a process of the lab that has ended by itself, with the last that it said.
func ended(ctx context.Context, w *world.World) error {
	st, err := w.Lab.Status(ctx)
	if err != nil {
		return nil // it says less than the error that made us ask
	}
	for _, n := range st.Nodes {
		for _, p := range n.Processes {
			if p.Running {
				continue
			}
			said, _ := os.ReadFile(p.Log)
			lines := strings.Split(strings.TrimSpace(string(said)), "\n")
			return fmt.Errorf("%s on %s has ended with code %d: %s", p.Name, n.Name, p.Exit, lines[len(lines)-1])
		}
	}
	return nil
}

// Ready waits until traffic between two sites takes their own tunnel, and the contender is as quick as ever.
func (c Contender) Ready(ctx context.Context, w *world.World, a, b *world.Site) error {
	if c.daemons == nil {
		if err := w.UntilHealthy(ctx, "the link is back", w.Sites); err != nil {
			return err
		}
	}
	if err := w.UntilDirect(ctx, a, b, healLimit); err != nil {
		return err
	}
	return world.Pause(ctx, c.Rest)
}

// healLimit is how long a healed link may take to be used again: babeld waits for some hellos of 4 s, and prefers for a
// while what it has.
const healLimit = 2 * time.Minute

// Stop kills what runs on the sites. The lab's end does it, too.
func (c Contender) Stop(ctx context.Context, w *world.World) error {
	for _, s := range w.Sites {
		if err := w.Lab.KillAll(ctx, s.Name, 0); err != nil {
			return err
		}
	}
	return w.Until(ctx, c.Name+" has ended", stopLimit, func(ctx context.Context) (string, error) {
		st, err := w.Lab.Status(ctx)
		if err != nil {
			return "", err
		}
		for _, n := range st.Nodes {
			for _, p := range n.Processes {
				if _, site := w.ByName[n.Name]; site && p.Running {
					return p.Name + " runs on " + n.Name, nil
				}
			}
		}
		return "", nil
	})
}

// stopLimit is how long killed processes may take to be gone.
const stopLimit = 10 * time.Second
