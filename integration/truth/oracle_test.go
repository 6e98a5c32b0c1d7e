package truth

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"

	"guywire/mesh"
	"guywire/store"
	"guywire/store/raftstore"
)

// A replay is the log applied once more, from its first entry.
type replay struct {
	state    *store.State
	entries  []raft.Log // by index, from 1
	results  map[uint64]store.Result
	heads    map[uint64]store.Digest // after each command
	requests map[store.Nonce]uint64  // where each was decided first
	joins    map[mesh.NodeID]uint64  // where each node was admitted
	tokens   map[string]bool         // ever made
	given    map[netip.Addr]mesh.NodeID
}

func newReplay() *replay {
	return &replay{
		state: store.New(), results: map[uint64]store.Result{}, heads: map[uint64]store.Digest{},
		requests: map[store.Nonce]uint64{}, joins: map[mesh.NodeID]uint64{}, tokens: map[string]bool{},
		given: map[netip.Addr]mesh.NodeID{},
	}
}

// outcome is what the log says about an operation; false: it never happened.
func (l *replay) outcome(o operation) (string, bool) {
	at, found := l.requests[o.Request]
	if o.Do == "join" {
		id, err := mesh.ParseNodeID(o.Arg)
		if err != nil {
			return "", false
		}
		_, found = l.joins[id]
		return ok, found // a refusal of which nobody heard changed nothing
	}
	if !found {
		return "", false
	}
	if r := l.results[at].Refused; r != nil {
		return r.Code, true
	}
	return ok, true
}

// A voter's remains are what is on its disk.
type remains struct {
	site    string
	found   raftstore.Inspection
	first   uint64     // index of the first of entries: those before are in a snapshot
	entries []raft.Log // in order, without gaps
	audit   []store.AuditRecord
}

func (r remains) last() uint64 { return r.first + uint64(len(r.entries)) - 1 }

// term is that of an entry; 0: it is not there.
func (r remains) term(index uint64) uint64 {
	if index < r.first || index > r.last() {
		return 0
	}
	return r.entries[index-r.first].Term
}

// dig reads what a dead voter left, from a copy.
func (w *world) dig(site string) remains {
	w.Helper()
	dir := w.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(w.state(site), "control"))); err != nil {
		w.Fatal(err)
	}
	r := remains{site: site}
	bolt, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "raft", "raft.db"), BoltOptions: &bbolt.Options{ReadOnly: true}})
	if err != nil {
		w.Fatal(err)
	}
	first, err1 := bolt.FirstIndex()
	last, err2 := bolt.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		w.Fatalf("the log of %s: %v", site, err)
	}
	r.first = first
	for i := first; i <= last; i++ {
		var entry raft.Log
		if err := bolt.GetLog(i, &entry); err != nil {
			w.Fatal(err)
		}
		r.entries = append(r.entries, entry)
	}
	if err := bolt.Close(); err != nil {
		w.Fatal(err)
	}
	if r.found, err = raftstore.Inspect(filepath.Join(dir, "raft")); err != nil {
		w.Fatalf("the log of %s: %v", site, err)
	}
	if r.audit, err = trail(filepath.Join(dir, "audit")); err != nil {
		w.Fatalf("the audit trail of %s: %v", site, err)
	}
	return r
}

// trail reads a voter's audit trail, which may be written to meanwhile.
func trail(dir string) (all []store.AuditRecord, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, err
	}
	for _, file := range files { // their names sort as their content
		b, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) { // it was the oldest
			continue
		}
		if err != nil {
			return nil, err
		}
		whole := b[:bytes.LastIndexByte(b, '\n')+1] // the rest is being written, or was when it was killed
		for line := range bytes.Lines(whole) {
			record, err := store.DecodeAuditRecord(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			all = append(all, record)
		}
	}
	return all, nil
}

// chains cuts an audit trail where it has gaps, since the voter was away: each
// part is a chain of its own.
func chains(records []store.AuditRecord) (parts [][]store.AuditRecord) {
	for len(records) > 0 {
		n := 1
		for n < len(records) && records[n].N == records[n-1].N+1 {
			n++
		}
		parts = append(parts, records[:n])
		records = records[n:]
	}
	return parts
}

// judge holds all that was seen of the mesh against what the voters left.
func (o *oracle) judge(all []remains) {
	o.Helper()
	longest, last := committed(all)
	o.extend(longest, last)
	l := o.log
	for _, r := range all {
		o.agrees(r)
	}
	o.owners()
	for index, head := range o.heads { // I5: every state that anybody saw is one of the one history
		if want, known := l.heads[index]; !known || want != head {
			o.Errorf("somebody was shown a state at %d that the log never had", index)
		}
	}
	for addr, node := range o.holders { // I3
		if want := l.given[addr]; want.String() != node {
			o.Errorf("%s was said to be of %s, and is of %s", addr, node, want)
		}
	}
	counts := map[string]int{}
	for _, op := range o.operations {
		o.acknowledged(op)
		switch {
		case op.Outcome == unknown:
			counts["unknown"]++
		case op.Do == "read":
			counts["reads"]++
		case op.Outcome == ok:
			counts["writes"]++
		default:
			counts["refused"]++
		}
	}
	linearizable(o, o.operations, l)
	o.Logf("%d entries from %d on, %d terms with a leader seen, %d states seen, %d addresses given; %v",
		len(l.entries), longest.first, len(o.leaders), len(o.heads), len(l.given)/2, counts)
	if counts["writes"] < 20 || counts["reads"] < 20 {
		o.Errorf("the clients did too little to prove anything: %v", counts)
	}
}

// committed finds a voter with all that is committed, and the index of the last
// such entry: what a voter knows to be, and beyond it what a majority has. Of
// the last ones nobody may have been told before all were killed.
func committed(all []remains) (longest remains, last uint64) {
	for _, r := range all {
		last = max(last, r.found.Committed)
	}
	for _, r := range all {
		if r.last() >= last && len(longest.entries) == 0 {
			longest = r
		}
		for index := last + 1; index <= r.last(); index++ {
			n := 0
			for _, other := range all {
				if other.term(index) == r.term(index) {
					n++
				}
			}
			if 2*n <= len(all) {
				break
			}
			longest, last = r, index
		}
	}
	return longest, last
}

// extend applies what is new in a log, up to its last committed entry, to the
// state as it was before.
func (o *oracle) extend(r remains, last uint64) {
	o.Helper()
	l := o.log
	if r.first > uint64(len(l.entries))+1 {
		o.Fatalf("the log of %s begins with %d, and only those up to %d were seen: a part is too long to be replayed", r.site, r.first, len(l.entries))
	}
	for _, entry := range r.entries[uint64(len(l.entries))+1-r.first:] {
		if entry.Index > last {
			break
		}
		l.entries = append(l.entries, entry)
		if entry.Type != raft.LogCommand {
			continue
		}
		command, err := store.DecodeCommand(entry.Data)
		if err != nil {
			o.Fatalf("entry %d of %s: %v", entry.Index, r.site, err)
		}
		next, result := store.Apply(l.state, entry.Index, command)
		l.state, l.results[entry.Index] = next, result
		_, _, l.heads[entry.Index] = next.Head()
		if _, known := l.requests[command.Request]; !known && !command.Request.IsZero() {
			l.requests[command.Request] = entry.Index
		}
		if result.Refused != nil {
			continue
		}
		if command.AddToken != nil {
			l.tokens[command.AddToken.Token.ID] = true
		}
		if n := result.Node; n != nil { // I3: no address is ever given twice
			for _, addr := range []netip.Addr{n.Addr4, n.Addr6} {
				if other, known := l.given[addr]; known && other != n.ID {
					o.Errorf("entry %d gives %s to %s, which %s had", entry.Index, addr, n.ID, other)
				}
				l.given[addr] = n.ID
			}
			if command.Join != nil {
				l.joins[n.ID] = entry.Index
			}
		}
		o.owners()
	}
}

// owners checks that nothing has two live owners (I3).
func (o *oracle) owners() {
	o.Helper()
	owner := map[netip.Prefix]string{}
	for _, n := range o.log.state.Nodes {
		for _, p := range n.Prefixes {
			if other, known := owner[p]; known {
				o.Errorf("at %d %s belongs to %s and %s", o.log.state.Index, p, other, n.Name)
			}
			owner[p] = n.Name
		}
	}
}

// agrees checks that a voter has the one log, the state that follows from it,
// and the audit trail of it.
func (o *oracle) agrees(r remains) {
	o.Helper()
	l := o.log
	for _, entry := range r.entries {
		if entry.Index > r.found.Committed {
			break
		}
		want := l.entries[entry.Index-1]
		if entry.Term != want.Term || entry.Type != want.Type || !bytes.Equal(entry.Data, want.Data) {
			o.Errorf("%s has another entry %d than the others", r.site, entry.Index)
		}
	}
	_, index, head := r.found.State.Head()
	if want := l.heads[index]; head != want {
		o.Errorf("%s has head %x at %d, not %x", r.site, head, index, want)
	}
	if index == l.state.Index && store.Hash(r.found.State) != store.Hash(l.state) {
		o.Errorf("%s has another state at %d than its log gives", r.site, index)
	}
	for _, part := range chains(r.audit) {
		head, err := store.VerifyAudit(part[0].Prev, part)
		last := part[len(part)-1]
		if err != nil {
			o.Errorf("audit trail of %s: %v", r.site, err)
		} else if want, known := l.heads[last.Index]; known && want != store.Digest(head) {
			o.Errorf("audit trail of %s leads to another history at %d", r.site, last.Index)
		}
	}
}

// acknowledged checks that what a client was told is in the log (I4).
func (o *oracle) acknowledged(op operation) {
	o.Helper()
	l := o.log
	if op.Outcome != ok || op.Do == "read" {
		return
	}
	kind, id, _ := strings.Cut(op.Key, "/")
	lost := ""
	switch {
	case op.Do == "join":
		node, err := mesh.ParseNodeID(op.Arg)
		if err != nil {
			o.Fatal(err)
		}
		if at, found := l.joins[node]; !found || l.results[at].Node.Addr4 != op.Addr {
			lost = "the join, or its address " + op.Addr.String()
		}
	case kind == "token" && op.Do == "create":
		if !l.tokens[id] {
			lost = "the token"
		}
	case !op.Request.IsZero():
		if at, found := l.requests[op.Request]; !found || at != op.Index || l.results[at].Refused != nil {
			lost = fmt.Sprintf("entry %d", op.Index)
		}
	}
	if lost != "" {
		o.Errorf("acknowledged and lost: %s %s %s of client %d: %s", op.Do, op.Key, op.Arg, op.Client, lost)
	}
}

// TestCommitted: what only a minority has is not taken for committed, and what
// nobody was told of is, where a majority has it.
func TestCommitted(t *testing.T) {
	voter := func(known uint64, terms ...uint64) remains {
		r := remains{first: 1, found: raftstore.Inspection{Committed: known}}
		for i, term := range terms {
			r.entries = append(r.entries, raft.Log{Index: uint64(i + 1), Term: term})
		}
		return r
	}
	for name, tt := range map[string]struct {
		all  []remains
		want uint64
	}{
		"a snapshot before it":    {[]remains{{first: 3, entries: []raft.Log{{Index: 3, Term: 1}, {Index: 4, Term: 1}}, found: raftstore.Inspection{Committed: 3}}, voter(3, 1, 1, 1, 1), voter(3, 1, 1, 1)}, 4},
		"all agree":               {[]remains{voter(2, 1, 1), voter(2, 1, 1), voter(1, 1, 1)}, 2},
		"nobody was told":         {[]remains{voter(1, 1, 1, 2), voter(1, 1, 1, 2), voter(1, 1)}, 3},
		"one leader is alone":     {[]remains{voter(2, 1, 1, 1, 1), voter(2, 1, 1), voter(2, 1, 1)}, 2},
		"two leaders, one alone":  {[]remains{voter(1, 1, 2, 2), voter(1, 1, 3), voter(1, 1, 3)}, 2},
		"one knows, and was away": {[]remains{voter(3, 1, 1, 1), voter(1, 1), voter(2, 1, 1, 1)}, 3},
	} {
		longest, last := committed(tt.all)
		if last != tt.want || longest.last() < last {
			t.Errorf("%s: %d is the last one, of %d, want %d", name, last, len(longest.entries), tt.want)
		}
	}
}
