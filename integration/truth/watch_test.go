package truth

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/store"
)

// An oracle judges one mesh from outside its nodes: while it lives by what its
// nodes show (look), and when all are dead by what they left, too (judge).
type oracle struct {
	*world
	log *replay // as far as the dead were looked at

	// What was seen so far.
	operations []operation
	heads      map[uint64]store.Digest
	holders    map[netip.Addr]string // id of the node that has, or had, an address
	names      map[mesh.NodeID]string
	leaders    map[uint64]mesh.NodeID
	newest     map[viewed]sighting
	known      []known        // writes and reads that had ended, by that time
	trail      map[uint64]int // index of a record in the audit trail, by its N, and its place in audit
	audit      []store.AuditRecord
	looks      int
	most       resources // of any node at any time
}

// viewed is one node as one client sees it.
type viewed struct {
	client int
	node   mesh.NodeID
}

// known is an index that somebody was told of.
type known struct {
	at    int64 // CLOCK_MONOTONIC
	index uint64
	about string
}

func newOracle(w *world) *oracle {
	return &oracle{
		world: w, log: newReplay(), heads: map[uint64]store.Digest{}, holders: map[netip.Addr]string{}, names: map[mesh.NodeID]string{},
		leaders: map[uint64]mesh.NodeID{}, newest: map[viewed]sighting{}, trail: map[uint64]int{},
	}
}

// A witness takes what a client writes, line by line.
type witness struct {
	mu    sync.Mutex
	all   bytes.Buffer
	taken int // bytes that records gave already
}

// Write implements io.Writer.
func (t *witness) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.all.Write(b)
}

// records gives what is new and whole.
func (t *witness) records() (all []record, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.all.Bytes()[t.taken:]
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	t.taken += len(b)
	for line := range bytes.Lines(b) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%w in %s", err, line)
		}
		all = append(all, r)
	}
	return all, nil
}

// lookEvery is how often a living mesh is judged.
const lookEvery = 12 * time.Second

// watch looks at the mesh until it is stopped.
func (o *oracle) watch(witnesses []*witness) (stop func()) {
	over := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				o.look(witnesses)
			case <-over:
				return
			}
		}
	})
	return func() {
		close(over)
		ended.Wait()
	}
}

// look judges what there is to see of a mesh that lives, and may be broken.
func (o *oracle) look(witnesses []*witness) {
	o.Helper()
	o.looks++
	for _, site := range o.sites {
		o.addresses(site)
		o.follow(site)
		o.measure(site)
	}
	var reads []record
	for _, t := range witnesses {
		records, err := t.records()
		if err != nil {
			o.Error(err)
		}
		for _, r := range records {
			if r.Read != nil {
				reads = append(reads, r) // judged by what others did before
				continue
			}
			o.see(r)
		}
	}
	for _, r := range reads {
		o.see(r)
	}
	o.remembered()
}

// claim holds what anybody says of the state at an index against what others
// said: there is one history (I5). Since the head is a hash over all commands
// before, it also proves that the stream which led to it had no gap, no change
// twice, and none in another order.
func (o *oracle) claim(who string, index uint64, head store.Digest) {
	o.Helper()
	if other, seen := o.heads[index]; seen && other != head {
		o.Errorf("%s has another state at %d than others", who, index)
	}
	o.heads[index] = head
}

// holds notes who has an address, or had it: nobody else may, ever (I3).
func (o *oracle) holds(who string, addr netip.Addr, node string) {
	o.Helper()
	if other, taken := o.holders[addr]; taken && other != node {
		o.Errorf("%s says that %s is of %s, and it was of %s", who, addr, node, other)
	}
	o.holders[addr] = node
}

func (o *oracle) addresses(site string) {
	o.Helper()
	var all api.Nodes
	if o.ask(site, "nodes", &all) != nil {
		return // it is broken just now
	}
	for _, n := range all.Nodes {
		o.names[n.ID] = n.Name
		for _, addr := range n.Addrs {
			o.holds(site, addr, n.ID.String())
		}
	}
}

// follow verifies what a voter wrote of its audit trail (I4).
func (o *oracle) follow(site string) {
	o.Helper()
	records, err := trail(filepath.Join(o.state(site), "control", "audit"))
	if err != nil {
		o.Errorf("audit trail of %s: %v", site, err)
	}
	for _, part := range chains(records) {
		if _, err := store.VerifyAudit(part[0].Prev, part); err != nil {
			o.Errorf("audit trail of %s: %v", site, err)
		}
		for _, r := range part {
			o.claim("the audit trail of "+site, r.Index, r.Head())
			if _, has := o.trail[r.N]; !has {
				o.trail[r.N] = len(o.audit)
				o.audit = append(o.audit, r)
			}
		}
	}
}

// see judges one thing that a client saw.
func (o *oracle) see(r record) {
	o.Helper()
	switch {
	case r.Op != nil:
		o.operations = append(o.operations, *r.Op)
		if r.Op.Outcome != ok {
			return
		}
		if r.Op.Addr.IsValid() {
			o.holds("a joiner", r.Op.Addr, r.Op.Arg)
		}
		if r.Op.Index > 0 {
			o.known = append(o.known, known{r.Op.Return, r.Op.Index, r.Op.Do + " of " + r.Op.Key})
		}
	case r.Read != nil:
		o.claim("a linearizable read", r.Read.Index, r.Read.Head)
		o.known = append(o.known, known{r.Read.Return, r.Read.Index, ""})
		// I4 and I5: it has all that anybody had been told before.
		for _, k := range o.known {
			if k.at < r.Read.Call && k.index > r.Read.Index {
				o.Errorf("a linearizable read gives the state at %d, and %s at %d had been told of before", r.Read.Index, cmp.Or(k.about, "a read"), k.index)
			}
		}
	case r.Leads != nil: // I13
		if other, seen := o.leaders[r.Leads.Term]; seen && other != r.Leads.Node {
			o.Errorf("term %d has two leaders: %s and %s", r.Leads.Term, other, r.Leads.Node)
		}
		o.leaders[r.Leads.Term] = r.Leads.Node
	case r.Seen != nil: // I4 and I5: it never goes back while the node runs
		o.claim(fmt.Sprintf("client %d, of node %s,", r.Seen.Client, r.Seen.Node), r.Seen.Index, r.Seen.Head)
		view := viewed{r.Seen.Client, r.Seen.Node}
		before := o.newest[view]
		back := r.Seen.Generation < before.Generation || r.Seen.Index < before.Index
		// A voter that was killed learns from the others how much of its log is
		// committed: raft does not write that down at once.
		if back && !o.started(o.names[r.Seen.Node], before.Call, r.Seen.Call+int64(time.Second)) {
			o.Errorf("client %d was shown by %s the state at %d after that at %d", r.Seen.Client, r.Seen.Node, r.Seen.Index, before.Index)
		}
		o.newest[view] = *r.Seen
	}
}

// remembered checks that what a client was told of is in the audit trail, where
// somebody has that part (I4).
func (o *oracle) remembered() {
	o.Helper()
	sorted := make([]uint64, 0, len(o.trail))
	for n := range o.trail {
		sorted = append(sorted, n)
	}
	slices.Sort(sorted)
	at := func(i int) store.AuditRecord { return o.audit[o.trail[sorted[i]]] }
	for _, k := range o.known {
		if k.about == "" {
			continue
		}
		i := sort.Search(len(sorted), func(i int) bool { return at(i).Index >= k.index })
		switch {
		case i == len(sorted): // nobody has written so far yet
		case at(i).Index == k.index && at(i).Outcome != ok:
			o.Errorf("acknowledged and refused: %s at %d is %s in the audit trail", k.about, k.index, at(i).Outcome)
		case at(i).Index > k.index && i > 0 && sorted[i-1] == sorted[i]-1:
			o.Errorf("acknowledged and lost: %s at %d is not in the audit trail", k.about, k.index)
		}
	}
}

// resources are what a node uses.
type resources struct {
	Memory, Log                 int64 // bytes: resident, and of the replicated log
	Descriptors, Threads, State int   // State: files of the node's state
}

// bounds are what a node of so few sites may use, several times what it does
// (I9). A mesh of the soak is killed too often for slopes to mean anything.
var bounds = resources{Memory: 200 << 20, Log: 64 << 20, Descriptors: 400, Threads: 200, State: 200}

// measure checks what meshd of a site uses, as the kernel and the disk have it.
func (o *oracle) measure(site string) {
	o.Helper()
	st, err := o.lab.Status(o.Context())
	if err != nil {
		o.Error(err)
		return
	}
	var now resources
	n, _ := st.Node(site)
	for _, p := range n.Processes {
		if !p.Running {
			continue
		}
		out, err := o.inside(o.Context(), site, "", "usage", strconv.Itoa(p.PID))
		if err != nil {
			continue // it has ended meanwhile
		}
		if err := json.Unmarshal([]byte(out), &now); err != nil {
			o.Error(err)
		}
	}
	err = filepath.WalkDir(o.state(site), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was for a moment
		}
		now.State++
		if info, err := d.Info(); err == nil && d.Name() == "raft.db" {
			now.Log = info.Size()
		}
		return err
	})
	if err != nil {
		o.Error(err)
	}
	if now.Memory > bounds.Memory || now.Log > bounds.Log || now.Descriptors > bounds.Descriptors || now.Threads > bounds.Threads || now.State > bounds.State {
		o.Errorf("%s uses %+v, more than %+v", site, now, bounds)
	}
	o.most = resources{
		max(o.most.Memory, now.Memory), max(o.most.Log, now.Log),
		max(o.most.Descriptors, now.Descriptors), max(o.most.Threads, now.Threads), max(o.most.State, now.State),
	}
}

// usageCommand tells what a process uses.
func usageCommand() *cobra.Command {
	return &cobra.Command{Use: "usage", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		dir := filepath.Join("/proc", args[0])
		status, err := os.ReadFile(filepath.Join(dir, "status"))
		if err != nil {
			return err
		}
		open, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			return err
		}
		used := resources{Descriptors: len(open)}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			fields := strings.Fields(value)
			if len(fields) == 0 {
				continue
			}
			n, _ := strconv.ParseInt(fields[0], 10, 64) // those looked for are numbers
			switch name {
			case "VmRSS":
				used.Memory = n << 10
			case "Threads":
				used.Threads = int(n)
			}
		}
		return json.NewEncoder(cmd.OutOrStdout()).Encode(used)
	}}
}

// TestOracle: the oracle finds in a living mesh what it is there to find.
func TestOracle(t *testing.T) {
	a, b := store.Digest{1}, store.Digest{2}
	at := func(index uint64, head store.Digest) position { return position{Index: index, Head: head} }
	var one, two mesh.NodeID
	one[0], two[0] = 1, 2
	addr := netip.MustParseAddr("10.86.0.7")
	wrote := record{Op: &operation{Do: "give", Key: "prefix/p", Outcome: ok, Index: 7, Return: 10}}
	audit := func(outcome string, indexes ...uint64) func(*oracle) {
		return func(o *oracle) {
			for i, index := range indexes {
				o.trail[uint64(i+1)] = i
				o.audit = append(o.audit, store.AuditRecord{N: uint64(i + 1), Index: index, Outcome: outcome})
			}
		}
	}
	for name, tt := range map[string]struct {
		seen  []record
		trail func(*oracle)
		good  bool
	}{
		"one history":         {[]record{{Seen: &sighting{position: at(4, a)}}, {Read: &reading{position: at(4, a)}}, {Seen: &sighting{position: at(5, b)}}}, audit(ok, 4), true},
		"two histories":       {[]record{{Seen: &sighting{position: at(4, a)}}, {Read: &reading{position: at(4, b)}}}, nil, false},
		"back":                {[]record{{Seen: &sighting{position: at(5, a), Node: one}}, {Seen: &sighting{position: at(4, b), Node: one}}}, nil, false},
		"another is behind":   {[]record{{Seen: &sighting{position: at(5, a), Node: one}}, {Seen: &sighting{position: at(4, b), Node: two}}}, nil, true},
		"two leaders":         {[]record{{Leads: &leadership{3, one}}, {Leads: &leadership{3, two}}}, nil, false},
		"one after the other": {[]record{{Leads: &leadership{3, one}}, {Leads: &leadership{4, two}}}, nil, true},
		"an address twice": {[]record{
			{Op: &operation{Do: "join", Arg: one.String(), Outcome: ok, Addr: addr}}, {Op: &operation{Do: "join", Arg: two.String(), Outcome: ok, Addr: addr}},
		}, nil, false},
		"not read":             {[]record{wrote, {Read: &reading{position: at(6, a), Call: 11}}}, nil, false},
		"not yet told":         {[]record{wrote, {Read: &reading{position: at(6, a), Call: 9}}}, nil, true},
		"read":                 {[]record{wrote, {Read: &reading{position: at(7, a), Call: 11}}}, audit(ok, 6, 7, 9), true},
		"lost":                 {[]record{wrote}, audit(ok, 6, 9), false},
		"refused":              {[]record{wrote}, audit("refused", 6, 7), false},
		"nobody has that part": {[]record{wrote}, audit(ok, 4, 5), true},
	} {
		found := &verdict{TB: t}
		o := newOracle(&world{TB: found})
		for _, r := range tt.seen {
			o.see(r)
		}
		if tt.trail != nil {
			tt.trail(o)
		}
		o.remembered()
		if found.bad == tt.good {
			t.Errorf("%s: the oracle found something is %v", name, found.bad)
		}
	}
}
