package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/carrier"
	"guywire/mesh/config"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/mesh/keyring"
	"guywire/store/disk"
)

// Options are what an agent is made from.
type Options struct {
	Config  config.Config
	Log     *slog.Logger
	Version string
	Outside Outside
}

// An Agent is meshd: it answers the API, and runs this node's member while it
// belongs to a mesh. It implements api.Backend.
type Agent struct {
	config  config.Config
	log     *slog.Logger
	version string
	outside Outside
	started time.Time
	journal *journal
	names   *names

	ctx  context.Context // ends with Run
	stop context.CancelCauseFunc
	dir  *disk.Dir
	ring *keyring.Ring // nil: this machine has no identity yet
	api  *api.Server

	changing sync.Mutex // held during init, join, leave, teardown
	mu       sync.Mutex // guards current
	current  *running
	failed   error // torn down: why no member runs although this machine is one
}

// running is a member and its end.
type running struct {
	*member
	stop  context.CancelFunc
	ended chan struct{}
	err   error // set before ended is closed
}

// New makes an agent. It locks the state directory; Close releases it.
func New(o Options) (*Agent, error) {
	a := &Agent{
		config: o.Config, log: o.Log, version: o.Version, outside: o.Outside,
		started: time.Now(), journal: newJournal(time.Now()),
		names: newNames(o.Config, o.Outside.Lookup, o.Log),
	}
	a.api = api.NewServer(a, a.log)
	var err error
	if a.dir, err = disk.Open(o.Config.State); err != nil {
		return nil, err
	}
	a.ring, err = keyring.Open(a.dir)
	if err != nil && !errors.Is(err, keyring.ErrNoIdentity) {
		return nil, errors.Join(err, a.dir.Close())
	}
	return a, nil
}

// Close releases the state directory.
func (a *Agent) Close() error {
	var err error
	if a.ring != nil {
		err = a.ring.Close()
	}
	return errors.Join(err, a.dir.Close())
}

// Run answers the API until ctx ends. A machine that is a member takes up its
// place at once; another one waits for init or join. At the end the kernel is
// left as it is, so that traffic goes on. A member that cannot run ends Run
// with the reason: to try again is for whoever supervises this process. When the
// API answers and the member has begun, ready is called, unless it is nil.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	a.ctx, a.stop = context.WithCancelCause(ctx)
	defer a.stop(nil)
	listener, err := api.Listen(a.config.Socket, a.log)
	if err != nil {
		return err
	}
	var lookups sync.WaitGroup
	lookups.Go(func() { a.names.run(a.ctx, a.renamed) })
	defer func() { a.stop(nil); lookups.Wait() }()
	if a.ring != nil {
		if err := a.resume(); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	if ready != nil {
		ready()
	}
	err = a.api.Serve(a.ctx, listener)
	if r := a.running(); r != nil {
		r.stop()
		<-r.ended
	}
	if cause := context.Cause(a.ctx); ctx.Err() == nil && err == nil {
		err = cause
	}
	return err
}

// Alive returns nil when the loop that decides for the member has come around
// once more, or when there is no member. While the agent hangs, so does Alive.
func (a *Agent) Alive(ctx context.Context) error {
	r := a.running()
	if r == nil {
		return nil
	}
	if err := r.query(ctx, func(*core.Node) {}); !errors.Is(err, errStopped) {
		return err
	}
	return nil // it ends, and what is cleaned up then has limits of its own
}

// resume takes up the membership that the state directory holds.
func (a *Agent) resume() error {
	plane, err := control.Open(a.control())
	if errors.Is(err, control.ErrNotEnrolled) {
		return nil
	}
	if errors.Is(err, control.ErrRemoved) {
		a.changing.Lock()
		defer a.changing.Unlock()
		a.log.Warn("the mesh removed this node while it was away", mesh.LogReason, err)
		a.journal.add(api.Event{Kind: "removed", Sentence: "the mesh removed this node"})
		return a.clean(a.ctx, nil)
	}
	if err != nil {
		return err
	}
	if err := a.start(plane); err != nil {
		return errors.Join(err, plane.Close())
	}
	return nil
}

// fit says why this process cannot run a member here.
func (a *Agent) fit() error {
	err := a.outside.Check()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EADDRINUSE):
		return api.Errorf(api.CodePortInUse, "", "%v", err)
	default:
		return api.Errorf(api.CodePrivilege, "", "%v", err)
	}
}

// start runs a member on a plane, which it takes over unless it fails.
func (a *Agent) start(plane *control.Plane) error {
	if err := a.fit(); err != nil {
		return err
	}
	m, err := a.open(plane)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(a.ctx)
	r := &running{member: m, stop: stop, ended: make(chan struct{})}
	m.done = ctx.Done()
	a.mu.Lock()
	a.current, a.failed = r, nil
	a.mu.Unlock()
	go func() {
		r.err = m.run(ctx, stop)
		a.ended(r)
		close(r.ended)
		stop()
	}()
	return nil
}

// ended looks at why a member stopped.
func (a *Agent) ended(r *running) {
	// Until all is cleaned up nobody may begin another membership.
	defer func() {
		a.mu.Lock()
		a.current = nil
		a.mu.Unlock()
	}()
	switch {
	case r.err == nil || a.ctx.Err() != nil || errors.Is(r.err, control.ErrLeft):
	case errors.Is(r.err, control.ErrRemoved):
		a.journal.add(api.Event{Kind: "removed", Sentence: "the mesh removed this node"})
		if err := a.clean(context.WithoutCancel(a.ctx), nil); err != nil {
			a.log.Error("leftovers of the membership; run meshd teardown", mesh.LogError, err)
		}
	default:
		a.stop(r.err)
	}
}

// running is the member that runs now; nil: none.
func (a *Agent) running() *running {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// troubled reports whether this machine is a member that does not run well, as
// opposed to one that is in no mesh.
func (a *Agent) troubled() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current != nil || a.failed != nil
}

// member is running for callers of the API.
func (a *Agent) member() (*running, error) {
	if r := a.running(); r != nil {
		return r, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return nil, convert(a.failed)
	}
	return nil, api.Errorf(api.CodeNotEnrolled, "make a mesh with meshctl init, or join one with meshctl join", "This machine is in no mesh")
}

// control is the configuration of the control plane.
func (a *Agent) control() control.Config {
	host := ""
	if a.config.Control.Listen.IsValid() {
		host = a.config.Control.Listen.String()
	}
	address := func(port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
	c := control.Config{
		State: a.dir, Ring: a.ring, Logger: a.log,
		Listen:    address(a.config.Control.Port),
		Advertise: a.advertise,
		AskSTUN:   a.askSTUN,
	}
	for _, port := range a.config.Control.Also {
		c.Also = append(c.Also, address(port))
	}
	if a.outside.HandOver != nil {
		c.Divert = map[string]func(context.Context, *net.TCPConn){carrier.ALPN: a.handOver}
	}
	return c
}

// handOver gives the data plane a connection that wants a carrier.
func (a *Agent) handOver(ctx context.Context, conn *net.TCPConn) {
	if err := a.outside.HandOver(ctx, conn); err != nil {
		a.log.Debug("a connection for a carrier was not taken", mesh.LogEndpoint, conn.RemoteAddr().String(), mesh.LogError, err)
	}
}

// advertise is where the control port may be reached: what the operator says,
// else every uplink's addresses.
func (a *Agent) advertise() []netip.AddrPort {
	if list := a.config.Control.Advertise; len(list) > 0 {
		a.names.await(a.ctx)
		var out []netip.AddrPort
		for _, e := range list {
			for _, addr := range a.names.of(e.Host) {
				out = append(out, netip.AddrPortFrom(addr, e.Port))
			}
		}
		return out
	}
	host, err := a.outside.Observe(a.ctx)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, u := range host.Uplinks {
		for _, addr := range u.Addrs {
			out = append(out, netip.AddrPortFrom(addr, a.config.Control.Port))
		}
	}
	return out
}

// renamed is called when a name of the configuration has other addresses.
func (a *Agent) renamed() {
	r := a.running()
	if r == nil {
		return // a member that begins asks for them
	}
	r.declare()
}

// name is the node name to use: asked for, configured, else the host's.
func (a *Agent) name(asked string) string {
	if asked != "" {
		return asked
	}
	if a.config.Name != "" {
		return a.config.Name
	}
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	return host
}
