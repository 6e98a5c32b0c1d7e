package vagrant

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"guywire/integration/lab"
	"guywire/integration/lab/flow"
)

const (
	// Exe is where this program is in the machines.
	Exe = "/var/tmp/meshlab"
	// router is the machine that has the router and the NAT boxes.
	router = "router"
	// hostSpace is the namespace of a site's machine in which the host of its LAN is.
	hostSpace = "host"
)

// Machines are those of a network that run. They implement world.Nodes; links are named by NODE:INTERFACE of the site.
type Machines struct {
	network *lab.Network
	sites   []string
	dir     string // settings and sockets of ssh, logs

	ctx    context.Context // of what Start has left running
	cancel context.CancelFunc
	left   sync.WaitGroup

	mu    sync.Mutex // guards the rest
	ahead map[string]time.Duration
}

// quiet takes a site off the mesh and keeps systemd from ending or starting anything by itself: an emulated machine may be
// late for the watchdog, and what a step kills stays dead. loud undoes the latter.
const (
	quiet = `for unit in meshd meshd-dataplane; do
	mkdir -p /run/systemd/system/$unit.service.d
	printf '[Service]\nRestart=no\nWatchdogSec=0\n' >/run/systemd/system/$unit.service.d/lab.conf
done
systemctl daemon-reload
systemctl stop meshd
meshd teardown
systemctl restart meshd-dataplane
rm -rf /var/lib/guywire/*
systemctl start meshd`
	loud = `rm -f /run/systemd/system/meshd.service.d/lab.conf /run/systemd/system/meshd-dataplane.service.d/lab.conf
systemctl daemon-reload
systemctl start meshd-dataplane meshd`
)

// Open prepares the router's machine and those of some sites: this program is copied there, and the sites leave the mesh they
// are in without a word. All must run. said is told what is done.
func Open(ctx context.Context, network *lab.Network, sites []string, said func(format string, args ...any)) (*Machines, error) {
	dir, err := os.MkdirTemp("", "vagrant-")
	if err != nil {
		return nil, err
	}
	m := &Machines{network: network, sites: sites, dir: dir, ahead: map[string]time.Duration{}}
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := m.prepare(ctx, said); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Machines) prepare(ctx context.Context, said func(format string, args ...any)) error {
	names := append([]string{router}, m.sites...)
	said("vagrant ssh-config")
	settings, err := output(ctx, "vagrant", append([]string{"ssh-config"}, names...)...)
	if err != nil {
		return fmt.Errorf("%w; run `vagrant up %s`", err, strings.Join(names, " "))
	}
	if err := os.WriteFile(m.settings(), settings, 0o600); err != nil {
		return err
	}
	path, err := os.Executable()
	if err != nil {
		return err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return m.each(names, func(name string) error {
		said("%s is prepared", name)
		for _, space := range []string{"", hostSpace} {
			if err := m.connect(ctx, name, space); err != nil && (space == "" || name != router) {
				return fmt.Errorf("ssh to %s: %w", name, err)
			}
		}
		if err := m.install(ctx, name, program); err != nil {
			return fmt.Errorf("copy this program to %s: %w", name, err)
		}
		if err := m.measure(ctx, name); err != nil {
			return fmt.Errorf("read the clock of %s: %w", name, err)
		}
		if name == router {
			return m.Heal(ctx, "")
		}
		if err := m.shell(ctx, name, quiet); err != nil {
			return fmt.Errorf("take %s off the mesh: %w", name, err)
		}
		return nil
	})
}

// each does something for all machines side by side.
func (m *Machines) each(names []string, do func(string) error) error {
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() { errs[i] = do(name) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (m *Machines) settings() string { return filepath.Join(m.dir, "ssh") }

// A connection has a limited number of sessions, so a site's host has one of its own.
func (m *Machines) socket(machine, space string) string {
	if space == hostSpace {
		machine += "-host"
	}
	return "ControlPath=" + filepath.Join(m.dir, machine)
}

// connect opens a connection to a machine, which lives in a process of its own.
func (m *Machines) connect(ctx context.Context, machine, space string) error {
	return exec.CommandContext(ctx, "ssh", "-F", m.settings(), "-o", m.socket(machine, space), "-o", "ControlMaster=yes",
		"-o", "ControlPersist=yes", "-N", "-f", machine).Run()
}

// ssh is a command in a machine, over a connection that is open.
func (m *Machines) ssh(ctx context.Context, machine, space, command string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ssh", "-F", m.settings(), "-o", m.socket(machine, space), "-T", machine, command)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// install copies this program to a machine, unless it is there.
func (m *Machines) install(ctx context.Context, machine string, program []byte) error {
	sum := sha256.Sum256(program)
	have, err := m.ssh(ctx, machine, "", "sha256sum "+Exe+" 2>/dev/null || true").Output()
	if err != nil || strings.HasPrefix(string(have), hex.EncodeToString(sum[:])) {
		return err
	}
	cmd := m.ssh(ctx, machine, "", "cat >"+Exe+".new && chmod 755 "+Exe+".new && mv "+Exe+".new "+Exe)
	cmd.Stdin = bytes.NewReader(program)
	return cmd.Run()
}

// measure finds by how much the clock of this machine is ahead of another's: the answer that came soonest was half way
// when it was written.
func (m *Machines) measure(ctx context.Context, machine string) error {
	const times = 20
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := m.ssh(ctx, machine, "", Exe+" inside clock")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewReader(out)
	var best, ahead time.Duration
	for range times {
		sent := flow.Monotonic()
		if _, err := io.WriteString(in, "\n"); err != nil {
			return err
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			return err
		}
		took := flow.Monotonic() - sent
		theirs, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return err
		}
		if best == 0 || took < best {
			best, ahead = took, sent+took/2-time.Duration(theirs)
		}
	}
	_ = in.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ahead[machine] = ahead
	return cmd.Wait()
}

// Synchronise measures the clocks of all machines again: those of emulated ones run at speeds of their own.
func (m *Machines) Synchronise(ctx context.Context) error {
	return m.each(append([]string{router}, m.sites...), func(name string) error { return m.measure(ctx, name) })
}

// place says where a node is: the machine, and the namespace in it.
func (m *Machines) place(node string) (machine, space string, err error) {
	site, isHost := strings.CutSuffix(node, "-host")
	n := m.network.Nodes[site]
	switch {
	case slices.Contains(m.sites, site) && isHost:
		return site, hostSpace, nil
	case slices.Contains(m.sites, node):
		return node, "", nil
	case node == router:
		return router, "", nil
	case n != nil && n.Kind == lab.NAT:
		return router, node, nil
	}
	return "", "", fmt.Errorf("no machine has the node %s", node)
}

// Exec runs a command on a node, as [lab.Lab.Exec].
func (m *Machines) Exec(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer) (int, error) {
	return m.ExecSignals(ctx, node, argv, stdin, stdout, stderr, nil)
}

// ExecSignals is Exec that passes the signals on to the command.
func (m *Machines) ExecSignals(ctx context.Context, node string, argv []string, stdin io.Reader, stdout, stderr io.Writer, signals <-chan os.Signal) (int, error) {
	machine, space, err := m.place(node)
	if err != nil {
		return 0, err
	}
	o := order{Argv: argv}
	if stdin != nil {
		data, err := io.ReadAll(stdin)
		if err != nil {
			return 0, err
		}
		o.Stdin = string(data)
	}
	m.mu.Lock()
	o.Ahead = int64(m.ahead[machine])
	m.mu.Unlock()
	line, err := json.Marshal(o)
	if err != nil {
		return 0, err
	}
	command := "sudo " + Exe + " inside " + runVerb
	if space != "" {
		command = "sudo ip netns exec " + space + " " + Exe + " inside " + runVerb
	}
	cmd := m.ssh(ctx, machine, space, command)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	over := make(chan struct{})
	defer close(over)
	go func() { // ends with the command
		_, _ = in.Write(append(line, '\n'))
		for {
			select {
			case <-over:
				return
			case sig := <-signals:
				if s, ok := sig.(syscall.Signal); ok {
					_, _ = fmt.Fprintln(in, int(s))
				}
			}
		}
	}()
	err = cmd.Wait()
	const sshFailed = 255
	exit, isExit := errors.AsType[*exec.ExitError](err)
	switch {
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case isExit && exit.ExitCode() != sshFailed && exit.ExitCode() >= 0:
		return exit.ExitCode(), nil
	case err != nil:
		return 0, fmt.Errorf("ssh to %s: %w", machine, err)
	}
	return 0, nil
}

// shell runs a script on a node; a code other than 0 is an error.
func (m *Machines) shell(ctx context.Context, node, script string) error {
	var out bytes.Buffer
	code, err := m.Exec(ctx, node, []string{"sh", "-euc", script}, nil, &out, &out)
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d on %s: %s", code, node, bytes.TrimSpace(out.Bytes()))
	}
	return err
}

// Start starts a program on the node and leaves it running until Close. An empty argv starts the site's meshd, and its data
// plane if that is dead. The process id is 0.
func (m *Machines) Start(ctx context.Context, node, process string, argv []string) (int, error) {
	if len(argv) == 0 {
		return 0, m.shell(ctx, node, "systemctl start meshd-dataplane meshd")
	}
	log, err := os.Create(filepath.Join(m.dir, node+"-"+cmp.Or(process, filepath.Base(argv[0]))+".log"))
	if err != nil {
		return 0, err
	}
	m.left.Go(func() {
		defer log.Close()
		_, _ = m.Exec(m.ctx, node, argv, nil, log, log)
	})
	return 0, nil
}

// Kill kills the site's meshd and returns when it is gone. Its data plane lives.
func (m *Machines) Kill(ctx context.Context, node, process string, sig syscall.Signal) error {
	if process != "" || sig != 0 {
		return fmt.Errorf("in machines only meshd is killed, by SIGKILL: %w", errors.ErrUnsupported)
	}
	return m.shell(ctx, node, killing("meshd"))
}

// KillAll kills the site's meshd and its data plane.
func (m *Machines) KillAll(ctx context.Context, node string, sig syscall.Signal) error {
	if sig != 0 {
		return fmt.Errorf("in machines all is killed by SIGKILL: %w", errors.ErrUnsupported)
	}
	return m.shell(ctx, node, killing("meshd meshd-dataplane"))
}

func killing(units string) string {
	return fmt.Sprintf("systemctl kill --kill-who=main --signal=KILL %s\nwhile systemctl -q is-active %[1]s; do sleep 0.05; done", units)
}

// cable finds the uplink of a site, the node of the router's machine where it ends, and its interface there.
func (m *Machines) cable(link string) (node, iface string, err error) {
	site, uplink, _ := strings.Cut(link, ":")
	if n := m.network.Nodes[site]; n != nil && n.Kind == lab.Site {
		for _, u := range n.Uplinks {
			if u.Name == uplink {
				return u.To, site + "-" + uplink, nil
			}
		}
	}
	return "", "", fmt.Errorf("no site has the uplink %s", link)
}

// cuts is the prefix of the nft tables that drop what passes a cable.
const cuts = "cut-"

// Cut makes packets on a site's uplink vanish, both ways, while its carrier stays up.
func (m *Machines) Cut(ctx context.Context, link, from string) error {
	node, iface, err := m.cable(link)
	if err != nil {
		return err
	}
	if from != "" {
		return fmt.Errorf("in machines cables are cut both ways: %w", errors.ErrUnsupported)
	}
	return m.shell(ctx, node, fmt.Sprintf(`nft -f - <<'END'
table inet %[1]s%[2]s {
	chain in {
		type filter hook prerouting priority -400
		iifname "%[2]s" drop
	}
	chain out {
		type filter hook postrouting priority 400
		oifname "%[2]s" drop
	}
}
END`, cuts, iface))
}

// Heal undoes what Cut or Carrier did to an uplink; an empty one means all of them.
func (m *Machines) Heal(ctx context.Context, link string) error {
	if link != "" {
		node, iface, err := m.cable(link)
		if err != nil {
			return err
		}
		return errors.Join(m.shell(ctx, node, "nft delete table inet "+cuts+iface+" 2>/dev/null || :"), m.Carrier(ctx, link, true))
	}
	var errs []error
	for _, site := range m.sites {
		for _, u := range m.network.Nodes[site].Uplinks {
			errs = append(errs, m.Heal(ctx, site+":"+u.Name))
		}
	}
	return errors.Join(errs...)
}

// Carrier unplugs a site's uplink, or plugs it in again: the provider does it.
func (m *Machines) Carrier(ctx context.Context, link string, up bool) error {
	_, iface, err := m.cable(link)
	if err != nil {
		return err
	}
	site, _, _ := strings.Cut(link, ":")
	return plug(ctx, site, "guywire-"+iface, up)
}

// Status describes the network; the interfaces of the router's machine have other names.
func (m *Machines) Status(context.Context) (*lab.Status, error) { return m.network.Describe() }

// Logs brings the journals of all meshd here, as nodes/SITE/meshd.log.
func (m *Machines) Logs(ctx context.Context) (dir string, err error) {
	return m.dir, m.each(m.sites, func(site string) error {
		to := filepath.Join(m.dir, "nodes", site)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		f, err := os.Create(filepath.Join(to, "meshd.log"))
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = m.Exec(ctx, site, []string{"journalctl", "-b", "-o", "cat", "-u", "meshd", "-u", "meshd-dataplane"}, nil, f, nil)
		return err
	})
}

// lastWords is how long Close may take for a machine that does not answer.
const lastWords = time.Minute

// Close heals the cables, lets systemd guard the services again and leaves the machines running, in the mesh they are in.
func (m *Machines) Close() error {
	m.cancel()
	m.left.Wait()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), lastWords)
	defer cancel()
	err := errors.Join(m.Heal(ctx, ""), m.each(m.sites, func(site string) error { return m.shell(ctx, site, loud) }))
	// A slow machine may have taken all that time; to end a connection takes none.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(m.ctx), lastWords)
	defer cancel()
	sockets, _ := filepath.Glob(filepath.Join(m.dir, "*"))
	for _, path := range sockets {
		if info, statErr := os.Lstat(path); statErr == nil && info.Mode()&os.ModeSocket != 0 {
			_ = exec.CommandContext(ctx, "ssh", "-F", m.settings(), "-o", "ControlPath="+path, "-O", "exit", router).Run()
		}
	}
	return errors.Join(err, os.RemoveAll(m.dir))
}

// output runs a program here and gives what it printed.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return out, nil
}
