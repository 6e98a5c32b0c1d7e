package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"guywire/discovery/invite"
	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/control"
	"guywire/mesh/core"
	"guywire/mesh/keyring"
	"guywire/store"
	"guywire/store/cache"
	"guywire/store/disk"
)

// Init makes a mesh whose first node is this machine.
func (a *Agent) Init(ctx context.Context, r api.InitRequest) (api.Enrolled, error) {
	if err := a.begin(); err != nil {
		return api.Enrolled{}, err
	}
	defer a.changing.Unlock()
	locals, err := a.locals(ctx)
	if err != nil {
		return api.Enrolled{}, err
	}
	var seed [5]byte
	rand.Read(seed[:]) // never fails since Go 1.24
	request := control.InitRequest{
		Mesh: cmp.Or(r.Mesh, "mesh"), Name: a.name(r.Name), Prefixes: a.prefixes(r.Prefixes),
		Pool4: defaultPool4, Pool6: store.RandomULA(seed), Site: cmp.Or(r.Site, a.config.Site),
	}
	if r.Pool4 != nil {
		request.Pool4 = *r.Pool4
	}
	if r.Pool6 != nil {
		request.Pool6 = *r.Pool6
	}
	if err := errors.Join(checkName(request.Name), store.CheckPools(request.Pool4, request.Pool6, locals)); err != nil {
		return api.Enrolled{}, convert(err)
	}
	err = a.enrol(ctx, func() (*control.Plane, error) { return control.Init(ctx, a.control(), request) })
	if err != nil {
		return api.Enrolled{}, convert(err)
	}
	if err := a.waitReady(ctx); err != nil {
		return api.Enrolled{}, err
	}
	return a.enrolled()
}

// Join makes this machine a member of the mesh that made the token.
func (a *Agent) Join(ctx context.Context, r api.JoinRequest, report func(api.JoinStep)) (api.Enrolled, error) {
	if err := a.begin(); err != nil {
		return api.Enrolled{}, err
	}
	defer a.changing.Unlock()
	began := time.Now()
	step := func(s api.JoinStep) {
		s.ElapsedMs = api.Millis(time.Since(began))
		report(s)
	}
	token, err := invite.Parse(r.Token)
	if err != nil {
		return api.Enrolled{}, convert(err)
	}
	step(api.JoinStep{Kind: "token", Sentence: fmt.Sprintf("token %s, valid until %s UTC", token.ID, token.Expires.UTC().Format("2006-01-02 15:04"))})
	locals, err := a.locals(ctx)
	if err != nil {
		return api.Enrolled{}, err
	}
	request := control.JoinRequest{
		Name: a.name(r.Name), Prefixes: a.prefixes(r.Prefixes),
		Check: func(pool4, pool6 netip.Prefix) error { return store.CheckPools(pool4, pool6, locals) },
	}
	if err := checkName(request.Name); err != nil {
		return api.Enrolled{}, err
	}
	err = a.enrol(ctx, func() (*control.Plane, error) {
		return control.Join(ctx, a.control(), r.Token, request, func(what string, fields ...any) {
			if what == "server verified" {
				step(api.JoinStep{Kind: "server", Sentence: fmt.Sprintf("%v answers, its key is the one in the token", fields[1])})
			}
		})
	})
	if err != nil {
		return api.Enrolled{}, convert(err)
	}
	m := a.running()
	if m == nil {
		return api.Enrolled{}, errStopped
	}
	self := m.plane.State().Nodes[m.self]
	step(api.JoinStep{Kind: "admitted", Sentence: fmt.Sprintf("admitted as %s with %s and %s", self.Name, self.Addr4, self.Addr6), Addrs: api.List[netip.Addr]{self.Addr4, self.Addr6}})
	neighbour := m.waitNeighbour(ctx, began, step)
	e, err := a.enrolled()
	if err == nil && neighbour.peer != "" {
		e.Neighbour, e.NeighbourMs = neighbour.peer, new(api.Millis(neighbour.after))
	}
	return e, err
}

// defaultPool4 is where IPv4 overlay addresses come from unless init says otherwise.
var defaultPool4 = netip.MustParsePrefix("10.86.0.0/16")

// checkName says why a node cannot have a name.
func checkName(name string) error {
	if err := mesh.CheckName(name); err != nil {
		return api.Errorf(api.CodeNameInvalid, "choose another with --name", "%v", err)
	}
	return nil
}

// begin takes the right to change the membership of a machine that has none.
func (a *Agent) begin() error {
	if !a.changing.TryLock() {
		return api.Errorf(api.CodeBusy, "wait for it to end", "Another change of this machine's membership is under way")
	}
	err := a.fit()
	if a.running() != nil {
		err = api.Errorf(api.CodeEnrolled, "leave it first: meshctl leave", "This machine is in a mesh already")
	}
	a.mu.Lock()
	if a.failed != nil {
		err = convert(a.failed)
	}
	a.mu.Unlock()
	if err != nil {
		a.changing.Unlock()
	}
	return err
}

// enrol runs make with an identity and starts the member that comes of it. It
// leaves nothing behind when it fails, but for the identity that the mesh may
// know already: with it the same token gives the same answer.
func (a *Agent) enrol(ctx context.Context, make func() (*control.Plane, error)) error {
	ring, err := keyring.Create(a.dir)
	if errors.Is(err, keyring.ErrExists) {
		ring, err = keyring.Open(a.dir)
	}
	if err != nil {
		return err
	}
	if len(ring.Epochs()) == 0 {
		if _, err := ring.Generate(1); err != nil {
			return errors.Join(err, ring.Destroy())
		}
	}
	a.ring = ring
	plane, err := make()
	if err == nil {
		if err = a.start(plane); err == nil {
			return nil
		}
		left := plane.Leave(ctx) // the mesh counts on us already
		err = errors.Join(err, plane.Close())
		if left != nil {
			// A member stays one until the mesh can be told; the next start of
			// this process tries to be one.
			a.stop(err)
			return errors.Join(err, left)
		}
	}
	a.ring = nil
	if errors.Is(err, control.ErrMayBeMember) {
		return err
	}
	return errors.Join(err, ring.Destroy())
}

// neighbour is the first link of a new member.
type neighbour struct {
	peer  string
	after time.Duration
}

// waitNeighbour reports uplinks and waits for the first usable link.
func (m *member) waitNeighbour(ctx context.Context, began time.Time, step func(api.JoinStep)) (first neighbour) {
	ctx, cancel := context.WithTimeout(ctx, enrolPatience)
	defer cancel()
	shown := false
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var links []core.LinkView
		if err := m.query(ctx, func(n *core.Node) { links = n.Links() }); err != nil {
			return first
		}
		if !shown && m.surveyed() {
			shown = true
			for _, u := range m.uplinks() {
				step(api.JoinStep{Kind: "uplink", Sentence: describeUplink(u), Uplink: new(u)})
			}
		}
		for _, l := range links {
			if first.peer == "" && l.Usable {
				first = neighbour{nodeName(m.plane.State(), l.Record.Link.Peer), time.Since(began)}
				step(api.JoinStep{Kind: "link", Peer: first.peer, Sentence: fmt.Sprintf("first neighbour: %s over %s, %.1f ms", first.peer, flow(l.Record.Link), api.Millis(l.RTT))})
			}
		}
		waited := time.Since(began) - first.after
		if first.peer != "" && (shown || waited > time.Second) && m.settledInKernel() {
			return first
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return first
		}
	}
}

// waitReady waits until the desired state of a first node is in the kernel.
func (a *Agent) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, enrolPatience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		r := a.running()
		if r == nil {
			_, err := a.member()
			return err
		}
		if r.wanted.Load() > 0 && r.applied.Load() > 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return api.Errorf(api.CodeTimeout, "meshctl status says what is pending", "The mesh was made, but the kernel is not as wanted yet")
		}
	}
}

// enrolled describes this node as a member.
func (a *Agent) enrolled() (api.Enrolled, error) {
	r, err := a.member()
	if err != nil {
		return api.Enrolled{}, err
	}
	return api.Enrolled{Mesh: r.meshInfo(), Node: r.selfInfo()}, nil
}

// locals are the networks that this machine is connected to.
func (a *Agent) locals(ctx context.Context) ([]netip.Prefix, error) {
	host, err := a.outside.Observe(ctx)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, at := range host.Attached {
		out = append(out, at.Prefix)
	}
	return out, nil
}

// prefixes are those asked for, else the configured ones.
func (a *Agent) prefixes(asked []netip.Prefix) []netip.Prefix {
	if len(asked) > 0 {
		return asked
	}
	return a.config.Prefixes
}

// Leave takes this node out of the mesh and removes everything of it here.
func (a *Agent) Leave(ctx context.Context) (api.Done, error) {
	if !a.changing.TryLock() {
		return api.Done{}, api.Errorf(api.CodeBusy, "wait for it to end", "Another change of this machine's membership is under way")
	}
	defer a.changing.Unlock()
	r, err := a.member()
	if err != nil {
		return api.Done{}, err
	}
	state := r.plane.State() // leaving forgets it
	name := nodeName(state, r.self)
	r.parting.Store(true)
	if err := r.plane.Leave(ctx); err != nil {
		r.parting.Store(false)
		return api.Done{}, convert(err)
	}
	r.stop()
	<-r.ended
	if err := a.clean(ctx, state); err != nil {
		return api.Done{}, convert(err)
	}
	a.journal.add(api.Event{Kind: "left", Sentence: name + " left the mesh"})
	return api.Done{Sentence: name + " left the mesh; its tunnels, routes and keys are removed"}, nil
}

// Teardown removes everything from the kernel; the node stays a member.
func (a *Agent) Teardown(ctx context.Context) (api.Done, error) {
	if !a.changing.TryLock() {
		return api.Done{}, api.Errorf(api.CodeBusy, "wait for it to end", "Another change of this machine's membership is under way")
	}
	defer a.changing.Unlock()
	var state *store.State
	if r := a.running(); r != nil {
		r.parting.Store(true)
		r.stop()
		<-r.ended
		state = r.plane.State()
	} else if a.ring == nil {
		_, err := a.member()
		return api.Done{}, err
	}
	err := a.Unload(ctx, state)
	why := api.Errorf(api.CodeNotEnrolled, "start meshd again to come back", "This node was torn down")
	if err != nil {
		why = api.Errorf(api.CodeInternal, "try again: meshd teardown", "The teardown of this node did not end: %v", err)
	}
	a.mu.Lock()
	a.failed = why
	a.mu.Unlock()
	if err != nil {
		return api.Done{}, convert(err)
	}
	return api.Done{Sentence: "tunnels, routes, rules and filter are removed; the node stays a member and comes back with the next start of meshd"}, nil
}

// clean removes everything of an ended membership: kernel, keys, cache. The
// state is the last of the mesh; nil: the cached one.
func (a *Agent) clean(ctx context.Context, state *store.State) error {
	if err := a.Unload(ctx, state); err != nil {
		return err // keys and cache stay, so that teardown can be repeated
	}
	var err error
	if a.ring != nil {
		err = a.ring.Destroy()
		a.ring = nil
	}
	return errors.Join(err, control.Forget(a.dir), a.dir.Remove(uplinksFile))
}

// convert gives an error the code and the next step that people see.
func convert(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e
	}
	code, advised := api.CodeInternal, false
	if r, ok := errors.AsType[*store.Refusal](err); ok {
		code, advised = api.Code(r.Code), true
	}
	if e, ok := errors.AsType[*control.Error](err); ok {
		code, advised = refusedBy(e), true
	}
	for _, c := range []struct {
		is   error
		code api.Code
	}{
		{invite.ErrNotToken, api.CodeTokenInvalid},
		{invite.ErrTruncated, api.CodeTokenInvalid},
		{invite.ErrChecksum, api.CodeTokenInvalid},
		{invite.ErrVersion, api.CodeTokenInvalid},
		{control.ErrEnrolled, api.CodeEnrolled},
		{control.ErrNotEnrolled, api.CodeNotEnrolled},
		{control.ErrNoVoter, api.CodeNoLeader},
		{control.ErrMayBeMember, api.CodeTimeout},
		{control.ErrLeaderSeen, api.CodeLeaderSeen},
		{control.ErrPlanChanged, api.CodePlanChanged},
		{store.ErrCorrupt, api.CodeCorrupt},
		{control.ErrUntrusted, api.CodeServerKey},
		{syscall.EADDRINUSE, api.CodePortInUse},
		{disk.ErrUnsafe, api.CodeState},
		{cache.ErrOtherMesh, api.CodeState},
		{context.DeadlineExceeded, api.CodeTimeout},
	} {
		if code == api.CodeInternal && errors.Is(err, c.is) {
			code, advised = c.code, strings.Contains(c.is.Error(), "; ")
		}
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" && code == api.CodeInternal {
		code = api.CodeUnreachable
	}
	sentence, next := strings.TrimSuffix(err.Error(), "."), ""
	switch {
	case errors.Is(err, control.ErrMayBeMember):
		next = "run meshctl join here again with the same token: it goes on where this one ended"
	case advised:
		sentence, next = cutAdvice(sentence)
	}
	return api.Errorf(code, next, "%s", strings.ReplaceAll(sentence, "\n", "; ")) // of several servers
}

// cutAdvice parts what is wrong from what to do next, as refusals put it; of
// several servers it is the last one's.
func cutAdvice(s string) (sentence, next string) {
	i := strings.LastIndex(s, "; ")
	if i < 0 || i < strings.LastIndex(s, "\n") {
		return s, ""
	}
	return s[:i], s[i+len("; "):]
}

// refusedBy is the code for what another node answered.
func refusedBy(e *control.Error) api.Code {
	switch e.Code {
	case control.CodeNoCertificate, control.CodeExpired:
		return api.CodeForbidden
	case control.CodeRemoved, control.CodeBanned:
		return api.CodeRevoked
	case control.CodeUnknownNode:
		return api.CodeNotFound
	case control.CodeNotVoter, control.CodeNotLeader:
		return api.CodeNoLeader
	case control.CodeMalformed:
		return api.CodeInternal
	default: // the store's own, which are the API's
		return api.Code(e.Code)
	}
}
