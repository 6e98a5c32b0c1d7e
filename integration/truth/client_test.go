package truth

import (
	"context"
	crand "crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/store"
	"guywire/store/raftstore"
)

// A record is one line of what a client saw.
type record struct {
	Op    *operation  `json:"op,omitempty"`
	Read  *reading    `json:"read,omitempty"`
	Seen  *sighting   `json:"seen,omitempty"`
	Leads *leadership `json:"leads,omitempty"`
}

// An operation is one thing that a client did to the mesh, or read from it.
// Times are of CLOCK_MONOTONIC, which all nodes of a lab share.
type operation struct {
	Client int    `json:"client"`
	Key    string `json:"key"`  // the object: KIND/NAME
	Do     string `json:"do"`   // what was done
	Arg    string `json:"arg"`  // to or by whom
	Call   int64  `json:"call"` // nanoseconds
	Return int64  `json:"return"`
	// Outcome is "ok", a code of a refusal, or unknown; Value is what was read.
	Outcome string `json:"outcome"`
	Value   string `json:"value,omitempty"`

	Request store.Nonce `json:"request,omitzero"` // of the command, where the client made it
	Index   uint64      `json:"index,omitempty"`  // of the entry that did it first, where the answer said so
	Addr    netip.Addr  `json:"addr,omitzero"`    // that a joiner got
}

const (
	ok      = "ok"
	unknown = "unknown"
)

// A position is where in the history a state is.
type position struct {
	Generation uint64       `json:"generation"`
	Index      uint64       `json:"index"`
	Head       store.Digest `json:"head"`
}

func positionOf(s *store.State) position {
	generation, index, head := s.Head()
	return position{generation, index, head}
}

// A reading is a linearizable read of the whole mesh.
type reading struct {
	position
	Call   int64 `json:"call"` // as of an operation
	Return int64 `json:"return"`
}

// A sighting is a state that a node showed: the client's own, or one of the
// voters.
type sighting struct {
	position
	Client int         `json:"client"`
	Node   mesh.NodeID `json:"node,omitzero"` // zero: the client's own
	Call   int64       `json:"call"`
}

// A leadership is a voter that said that it leads.
type leadership struct {
	Term uint64      `json:"term"`
	Node mesh.NodeID `json:"node"`
}

// An order says what a client shall do.
type order struct {
	Number  int
	Part    int    // how often the client ran before; it joins the first time
	Name    string // of its node, one of Holders
	Token   string
	Dir     string // its state directory
	Shared  string // where clients tell each other of tokens and nodes
	Holders []string
	Seed    uint64
	Until   int64 // CLOCK_MONOTONIC: begin nothing new
}

func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		panic(err) // a clock that every Linux has
	}
	return now.Nano()
}

// A client is a member that may change the mesh and never votes, on a voter's
// machine but in a process of its own.
type client struct {
	order
	plane *control.Plane
	joins atomic.Int64

	mu  sync.Mutex // guards out
	out *json.Encoder
}

const (
	workers  = 3
	opLimit  = 12 * time.Second
	lastWait = 40 * time.Second // for the mesh to work again after all faults
)

func clientCommand() *cobra.Command {
	return &cobra.Command{Use: "client", RunE: func(cmd *cobra.Command, _ []string) error {
		c := &client{out: json.NewEncoder(cmd.OutOrStdout())}
		if err := json.NewDecoder(cmd.InOrStdin()).Decode(&c.order); err != nil {
			return err
		}
		return c.run(cmd.Context(), cmd.ErrOrStderr())
	}}
}

func (c *client) config(path, listen string, logger *slog.Logger) (control.Config, func() error, error) {
	state, ring, err := openState(path)
	if err != nil {
		return control.Config{}, nil, err
	}
	return control.Config{
		State: state, Ring: ring, Listen: listen, Logger: logger,
		Overlay: func(store.Node) []netip.AddrPort { return nil }, // it has no data plane
	}, func() error { return errors.Join(ring.Close(), state.Close()) }, nil
}

func (c *client) run(ctx context.Context, said io.Writer) (err error) {
	config, closeState, err := c.config(c.Dir, ":18686", slog.New(slog.NewTextHandler(said, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeState()) }()
	c.plane, err = control.Open(config)
	if err != nil && !errors.Is(err, control.ErrNotEnrolled) {
		return err
	}
	for c.plane == nil { // the token names one server, which may be broken just now
		c.plane, err = control.Join(ctx, config, c.Token, control.JoinRequest{Name: c.Name}, nil)
		if err != nil && (outcome(err) != unknown || ctx.Err() != nil) {
			return err
		}
	}
	ended := make(chan error, 1)
	running, stop := context.WithCancel(context.Background())
	go func() { ended <- c.plane.Run(running) }()
	defer func() {
		stop()
		err = errors.Join(err, <-ended)
	}()

	var work, watch sync.WaitGroup
	watching, stopWatching := context.WithCancel(ctx)
	watch.Go(func() { c.watchState(watching) })
	watch.Go(func() { c.watchVoters(watching) })
	for worker := range workers {
		work.Go(func() { c.work(ctx, rand.New(rand.NewPCG(c.Seed, uint64((c.Part<<8|c.Number)*workers+worker)))) })
	}
	work.Wait()
	stopWatching()
	watch.Wait()
	last, cancel := context.WithTimeout(ctx, lastWait)
	defer cancel()
	for !c.read(last, nil) {
		if last.Err() != nil {
			return errors.New("the mesh cannot be read at the end, with all faults healed")
		}
	}
	return nil
}

func (c *client) tell(r record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.out.Encode(r); err != nil {
		panic(err) // who listens has gone: there is no history any more
	}
}

// watchState tells of every state that the follower shows.
func (c *client) watchState(ctx context.Context) {
	for {
		select {
		case <-c.plane.Updates():
		case <-ctx.Done():
			return
		}
		c.tell(record{Seen: &sighting{position: positionOf(c.plane.State()), Client: c.Number, Call: monotonic()}})
	}
}

// watchVoters tells of every voter that says that it leads, and of the states
// that the voters show.
func (c *client) watchVoters(ctx context.Context) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	told, shown := map[leadership]bool{}, map[mesh.NodeID]position{}
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var all sync.WaitGroup
		nodes := c.plane.State().Nodes
		answers, seen := make(chan leadership, len(nodes)), make(chan sighting, len(nodes))
		for id, n := range nodes {
			if !n.Voter {
				continue
			}
			all.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, time.Second)
				defer cancel()
				var st raftstore.Status
				if c.plane.Do(ctx, id, http.MethodGet, "/v1/raft", nil, &st) == nil && st.Leads() {
					answers <- leadership{st.Term, id}
				}
				call := monotonic()
				var at head
				if c.plane.Do(ctx, id, http.MethodGet, "/v1/head", nil, &at) == nil {
					seen <- sighting{at.position, c.Number, id, call}
				}
			})
		}
		all.Wait()
		close(answers)
		close(seen)
		for s := range seen {
			if shown[s.Node] != s.position {
				shown[s.Node] = s.position
				c.tell(record{Seen: &s})
			}
		}
		for l := range answers {
			if !told[l] {
				told[l] = true
				c.tell(record{Leads: &l})
			}
		}
	}
}

// A head is what a node says of its state.
type head struct {
	position
	Leader  mesh.NodeID `json:"leader"`
	Verdict any         `json:"verdict"`
	Version int         `json:"version"`
	Time    time.Time   `json:"time"`
}

func (c *client) work(ctx context.Context, random *rand.Rand) {
	for monotonic() < c.Until && ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, opLimit)
		switch n := random.IntN(100); {
		case n < 12:
			c.createToken(step, random)
		case n < 32:
			c.join(step, random)
		case n < 38:
			c.revokeToken(step, random)
		case n < 48:
			c.removeNode(step, random)
		case n < 65:
			c.grant(step, random)
		case n < 82:
			c.reserve(step, random)
		default:
			c.read(step, random)
		}
		cancel()
		pause := time.NewTimer(time.Duration(50+random.IntN(250)) * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

// do records an operation that a function makes, which fills in its outcome.
func (c *client) do(o operation, f func(*operation) error) {
	o.Client, o.Call = c.Number, monotonic()
	err := f(&o)
	o.Return = monotonic()
	o.Outcome = outcome(err)
	if o.Outcome == unknown {
		o.Value = err.Error()
	}
	c.tell(record{Op: &o})
}

// outcome is the code of a refusal that the log decided; all else may have
// happened or not.
func outcome(err error) string {
	if err == nil {
		return ok
	}
	if r, is := errors.AsType[*store.Refusal](err); is {
		return r.Code
	}
	if e, is := errors.AsType[*control.Error](err); is && decided[e.Code] {
		return e.Code
	}
	if e, is := errors.AsType[*api.Error](err); is && decided[string(e.Code)] {
		return string(e.Code)
	}
	return unknown
}

// decided are the refusals that clients meet.
var decided = map[string]bool{
	store.CodeTokenUnknown: true, store.CodeTokenUsed: true, store.CodeNotFound: true,
	store.CodePrefixTaken: true, store.CodeAddressTaken: true,
}

// operate asks for a change as the client's node, under a request id that
// tells afterwards whether it was made.
func (c *client) operate(ctx context.Context, o operation, command store.Command) {
	crand.Read(command.Request[:])
	o.Request = command.Request
	c.do(o, func(o *operation) error {
		r, err := c.plane.Operate(ctx, command)
		o.Index = r.Index
		return err
	})
}

// createToken makes a token by the API of the meshd beside the client.
func (c *client) createToken(ctx context.Context, random *rand.Rand) {
	daemon := api.Dial(socket)
	defer daemon.Close()
	uses := 1 + random.IntN(3)
	o := operation{Client: c.Number, Do: "create", Arg: fmt.Sprint(uses), Call: monotonic()}
	made, err := daemon.CreateToken(ctx, api.TokenRequest{Uses: uses})
	if err != nil {
		return // nobody knows its secret, so nobody can use it
	}
	token, err := invite.Parse(made.Text)
	if err != nil {
		panic(err) // a token of meshd that is none
	}
	o.Key, o.Outcome, o.Return = "token/"+token.ID, ok, monotonic()
	c.tell(record{Op: &o})
	c.share("tokens", token.ID, made.Text)
}

// revokeToken does it by the API, too, where the outcome can stay unknown.
func (c *client) revokeToken(ctx context.Context, random *rand.Rand) {
	id, _, found := c.pick("tokens", random)
	if !found {
		return
	}
	daemon := api.Dial(socket)
	defer daemon.Close()
	c.do(operation{Key: "token/" + id, Do: "revoke"}, func(*operation) error {
		_, err := daemon.RevokeToken(ctx, id)
		return err
	})
}

// join redeems a token for a node that never runs.
func (c *client) join(ctx context.Context, random *rand.Rand) {
	id, text, found := c.pick("tokens", random)
	if !found {
		return
	}
	number := c.joins.Add(1)
	dir := filepath.Join(c.Dir+"-joiners", fmt.Sprint(number))
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		panic(err) // the test's own disk
	}
	config, closeState, err := c.config(dir, "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	defer func() { _ = closeState() }()
	node := config.Ring.Identity().NodeID()
	c.do(operation{Key: "token/" + id, Do: "join", Arg: node.String()}, func(o *operation) error {
		p, err := control.Join(ctx, config, text, control.JoinRequest{Name: fmt.Sprintf("j-%d-%d-%d", c.Part, c.Number, number)}, nil)
		if err != nil {
			return err
		}
		o.Addr = p.State().Nodes[node].Addr4
		return p.Close()
	})
	c.share("nodes", node.String(), "")
}

func (c *client) removeNode(ctx context.Context, random *rand.Rand) {
	name, _, found := c.pick("nodes", random)
	if !found {
		return
	}
	id, err := mesh.ParseNodeID(name)
	if err != nil {
		panic(err)
	}
	c.operate(ctx, operation{Key: "node/" + name, Do: "revoke"}, store.Command{RemoveNode: &store.RemoveNode{Node: id, Revoke: true}})
}

// What the clients fight for.
var (
	prefix       = netip.MustParsePrefix("172.30.0.0/24")
	reservations = []netip.Addr{netip.MustParseAddr("10.86.200.1"), netip.MustParseAddr("10.86.200.2"), netip.MustParseAddr("10.86.200.3")}
)

// grant gives the prefix to a holder, or takes it away.
func (c *client) grant(ctx context.Context, random *rand.Rand) {
	holder := c.Holders[random.IntN(len(c.Holders))]
	n, found := c.plane.State().NodeByName(holder)
	if !found {
		return
	}
	o := operation{Key: "prefix/" + prefix.String(), Do: "take", Arg: holder}
	grant := &store.Grant{Node: n.ID}
	if random.IntN(2) == 0 {
		o.Do = "give"
		grant.Prefixes = []netip.Prefix{prefix}
	}
	c.operate(ctx, o, store.Command{Grant: grant})
}

func (c *client) reserve(ctx context.Context, random *rand.Rand) {
	addr := reservations[random.IntN(len(reservations))]
	name := fmt.Sprintf("r-%d-%d", addr.As4()[3], random.IntN(3))
	o := operation{Key: "address/" + addr.String(), Do: "take", Arg: name}
	command := store.Command{Unreserve: &store.Unreserve{Name: name}}
	if random.IntN(2) == 0 {
		o.Do = "give"
		command = store.Command{Reserve: &store.Reserve{Name: name, Addr: addr}}
	}
	c.operate(ctx, o, command)
}

// read looks at the mesh as it is now: at all that is fought for, and with
// random at some tokens and nodes, without at all of them. It reports success.
func (c *client) read(ctx context.Context, random *rand.Rand) bool {
	looked := map[string]map[string]bool{}
	for _, kind := range []string{"tokens", "nodes"} {
		looked[kind] = map[string]bool{}
		if random == nil {
			for _, name := range c.list(kind) {
				looked[kind][name] = true
			}
			continue
		}
		for range 4 {
			if name, _, found := c.pick(kind, random); found {
				looked[kind][name] = true
			}
		}
	}
	call := monotonic()
	state, err := c.plane.Read(ctx)
	if err != nil {
		return false // what was not read says nothing
	}
	c.tell(record{Read: &reading{positionOf(state), call, monotonic()}})
	tell := func(key, value string) {
		c.tell(record{Op: &operation{Client: c.Number, Key: key, Do: "read", Call: call, Return: monotonic(), Outcome: ok, Value: value}})
	}
	var owner strings.Builder
	for _, n := range state.Nodes {
		if slices.Contains(n.Prefixes, prefix) {
			owner.WriteString(n.Name)
		}
	}
	tell("prefix/"+prefix.String(), owner.String())
	for _, addr := range reservations {
		var owner strings.Builder
		for name, r := range state.Reserved {
			if r.Addr4 == addr {
				owner.WriteString(name)
			}
		}
		tell("address/"+addr.String(), owner.String())
	}
	for id := range looked["tokens"] {
		value := "none"
		if t, known := state.Tokens[id]; known {
			value = fmt.Sprint(t.Uses)
		}
		tell("token/"+id, value)
	}
	for name := range looked["nodes"] {
		id, err := mesh.ParseNodeID(name)
		if err != nil {
			panic(err)
		}
		value := "none"
		if _, live := state.Nodes[id]; live {
			value = "live"
		} else if _, gone := state.Removed[id]; gone {
			value = "gone"
		}
		tell("node/"+name, value)
	}
	return true
}

// share tells the other clients of something.
func (c *client) share(kind, name, text string) {
	dir := filepath.Join(c.Shared, kind)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		panic(err)
	}
	part := filepath.Join(c.Shared, fmt.Sprintf("unfinished-%d-%s", c.Number, name))
	if err := errors.Join(os.WriteFile(part, []byte(text), 0o600), os.Rename(part, filepath.Join(dir, name))); err != nil {
		panic(err)
	}
}

func (c *client) list(kind string) (names []string) {
	all, _ := os.ReadDir(filepath.Join(c.Shared, kind)) // nothing was shared yet
	for _, entry := range all {
		names = append(names, entry.Name())
	}
	return names
}

// pick gives one that was shared.
func (c *client) pick(kind string, random *rand.Rand) (name, text string, found bool) {
	names := c.list(kind)
	if len(names) == 0 {
		return "", "", false
	}
	name = names[random.IntN(len(names))]
	b, err := os.ReadFile(filepath.Join(c.Shared, kind, name))
	if err != nil {
		panic(err)
	}
	return name, string(b), true
}
