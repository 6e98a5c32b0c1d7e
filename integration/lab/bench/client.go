package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"guywire/integration/lab/flow"
	"guywire/integration/lab/world"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/mesh/keyring"
	"guywire/store"
	"guywire/store/disk"
)

// The verbs below world.InsideVerb.
const (
	writeVerb  = "write"
	redeemVerb = "redeem"
)

// InsideCommands returns what the package needs inside nodes.
func InsideCommands() []*cobra.Command {
	return []*cobra.Command{writeCommand(), redeemCommand(), stunCommand()}
}

// An attempt is one thing that a client asked of the mesh. Times are flow.Monotonic.
type attempt struct {
	Call   time.Duration `json:"call_mono_ns"`
	Return time.Duration `json:"return_mono_ns"`
	Error  string        `json:"error,omitempty"` // empty: it was done
}

// attempts are what clients did, side by side.
type attempts struct {
	mu   sync.Mutex
	list []attempt // by their end
}

// do makes an attempt.
func (a *attempts) do(f func() error) {
	call := flow.Monotonic()
	err := f()
	a.mu.Lock()
	defer a.mu.Unlock()
	made := attempt{Call: call, Return: flow.Monotonic()}
	if err != nil {
		made.Error = err.Error()
	}
	a.list = append(a.list, made)
}

const (
	socket = "/run/guywire/meshd.sock"
	// writeLimit is how long one write may take.
	writeLimit = 20 * time.Second
	// reservedNet is the third byte of the IPv4 addresses that clients write about.
	reservedNet = 200
)

// A writer says what clients write.
type writer struct {
	block   int           // of addresses, one for each writer on the mesh
	workers int           // clients; at most 254
	every   time.Duration // one of them begins a write; 0: each does as soon as its last one has ended
	span    time.Duration // nothing begins after it; 0: until a signal
}

// writeCommand writes by the API of the daemon beside it: each client reserves an address of its own, again and again, which
// is a change of the log each time, and no more of the state than the first one.
func writeCommand() *cobra.Command {
	var w writer
	c := &cobra.Command{Use: writeVerb, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		made, err := w.run(c.Context(), func() { _, _ = fmt.Fprintln(c.ErrOrStderr(), world.Ready) })
		return errors.Join(err, json.NewEncoder(c.OutOrStdout()).Encode(made))
	}}
	f := c.Flags()
	f.IntVar(&w.block, "block", 0, "block of addresses to write about, one for each node that writes")
	f.IntVar(&w.workers, "workers", 1, "clients")
	f.DurationVar(&w.every, "every", 0, "begin a write so often, if a client is idle (default: each at once after the one before)")
	f.DurationVar(&w.span, "for", 0, "begin no write later (default: until a signal)")
	return c
}

func (w writer) run(ctx context.Context, ready func()) ([]attempt, error) {
	asks := api.Dial(socket)
	defer asks.Close()
	st, err := asks.Status(ctx)
	if err != nil {
		return nil, err
	}
	if st.Mesh == nil {
		return nil, errors.New("this node is in no mesh")
	}
	begin, stop := context.WithCancel(ctx)
	defer stop()
	if w.span > 0 {
		begin, stop = context.WithTimeout(ctx, w.span)
		defer stop()
	}
	tick := make(<-chan time.Time) // never, unless
	if w.every > 0 {
		t := time.NewTicker(w.every)
		defer t.Stop()
		tick = t.C
	}
	var made attempts
	var all sync.WaitGroup
	for i := range w.workers {
		a := st.Mesh.Pool4.Addr().As4()
		a[2], a[3] = byte(reservedNet+w.block), byte(1+i)
		reserve := api.ReserveRequest{Name: fmt.Sprintf("bench-%d-%d", w.block, i), Addr: netip.AddrFrom4(a)}
		all.Go(func() {
			client := api.Dial(socket)
			defer client.Close()
			for begin.Err() == nil {
				if w.every > 0 {
					select {
					case <-tick:
					case <-begin.Done():
						return
					}
				}
				made.do(func() error {
					ctx, cancel := context.WithTimeout(ctx, writeLimit)
					defer cancel()
					_, err := client.Reserve(ctx, reserve)
					return err
				})
			}
		})
	}
	ready()
	all.Wait()
	return made.list, nil
}

// redeemCommand redeems the token on its standard input for nodes that never run.
func redeemCommand() *cobra.Command {
	var name string
	var count, workers int
	c := &cobra.Command{Use: redeemVerb, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) (err error) {
		token, err := io.ReadAll(c.InOrStdin())
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "guywire-joiners-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		var made attempts
		var next atomic.Int64
		var all sync.WaitGroup
		for range workers {
			all.Go(func() {
				for i := next.Add(1); int(i) <= count; i = next.Add(1) {
					joiner := fmt.Sprintf("%s-%d", name, i)
					made.do(func() error { return redeem(c.Context(), filepath.Join(dir, joiner), joiner, string(token)) })
				}
			})
		}
		all.Wait()
		return json.NewEncoder(c.OutOrStdout()).Encode(made.list)
	}}
	f := c.Flags()
	f.StringVar(&name, "name", "", "what the names of the nodes begin with")
	f.IntVar(&count, "count", 1, "nodes")
	f.IntVar(&workers, "workers", 1, "nodes that join at a time")
	return c
}

// redeem makes a node, from its keys to its files.
func redeem(ctx context.Context, dir, name, token string) (err error) {
	state, err := disk.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	ring, err := keyring.Create(state)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ring.Close()) }()
	p, err := control.Join(ctx, control.Config{
		State: state, Ring: ring, Listen: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler),
		Overlay: func(store.Node) []netip.AddrPort { return nil }, // it has no data plane
	}, token, control.JoinRequest{Name: name}, nil)
	if err != nil {
		return err
	}
	return p.Close()
}
