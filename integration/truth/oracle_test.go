package truth

import (
	"bufio"
	"bytes"
	"encoding/json"
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
	entries []raft.Log // from 1
	audit   []store.AuditRecord
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
	if err := errors.Join(err1, err2); err != nil || first > 1 {
		w.Fatalf("the log of %s begins with %d (%v): a round is too long to be replayed", site, first, err)
	}
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
	files, err := filepath.Glob(filepath.Join(dir, "audit", "*.jsonl"))
	if err != nil {
		w.Fatal(err)
	}
	for _, file := range files { // their names sort as their content
		b, err := os.ReadFile(file)
		if err != nil {
			w.Fatal(err)
		}
		whole := b[:bytes.LastIndexByte(b, '\n')+1] // the rest was being written when it was killed
		for line := range bytes.Lines(whole) {
			record, err := store.DecodeAuditRecord(bytes.TrimSuffix(line, []byte("\n")))
			if err != nil {
				w.Fatalf("%s of %s: %v", file, site, err)
			}
			r.audit = append(r.audit, record)
		}
	}
	return r
}

// judge holds the history of a round against what the voters left.
func (w *world) judge(history []record) {
	w.Helper()
	var all []remains
	for _, site := range w.sites {
		all = append(all, w.dig(site))
	}
	longest, last := committed(all)
	l := w.again(longest, last)
	for _, r := range all {
		w.agrees(r, l)
	}
	w.owners(l)
	var operations []operation
	counts := map[string]int{}
	leaders := map[uint64]mesh.NodeID{}
	newest := map[int]sighting{}
	for _, r := range history {
		switch {
		case r.Op != nil:
			operations = append(operations, *r.Op)
			w.acknowledged(*r.Op, l)
			switch {
			case r.Op.Outcome == unknown:
				counts["unknown"]++
			case r.Op.Do == "read":
				counts["reads"]++
			case r.Op.Outcome == ok:
				counts["writes"]++
			default:
				counts["refused"]++
			}
		case r.Leads != nil: // I13
			if other, known := leaders[r.Leads.Term]; known && other != r.Leads.Node {
				w.Errorf("term %d has two leaders: %s and %s", r.Leads.Term, other, r.Leads.Node)
			}
			leaders[r.Leads.Term] = r.Leads.Node
		case r.Seen != nil: // I5: what a follower shows is a part of the one history, and never an earlier one than before
			if head, known := l.heads[r.Seen.Index]; known && head != r.Seen.Head {
				w.Errorf("client %d was shown a state at %d that the log never had", r.Seen.Client, r.Seen.Index)
			}
			if before := newest[r.Seen.Client]; r.Seen.Generation < before.Generation || r.Seen.Index < before.Index {
				w.Errorf("client %d was shown the state at %d after that at %d", r.Seen.Client, r.Seen.Index, before.Index)
			}
			newest[r.Seen.Client] = *r.Seen
		}
	}
	linearizable(w, operations, l)
	w.Logf("%d entries, %d terms with a leader seen, %d addresses given; %v", len(l.entries), len(leaders), len(l.state.Nodes)+len(l.state.Removed), counts)
	if counts["writes"] < 20 || counts["reads"] < 20 {
		w.Errorf("the clients did too little to prove anything: %v", counts)
	}
}

// committed finds a voter with all that is committed, and the index of the last
// such entry: what a voter knows to be, and beyond it what a majority has. Of
// the last ones nobody may have been told before all were killed.
func committed(all []remains) (longest remains, last uint64) {
	for _, r := range all {
		last = max(last, r.found.Committed)
	}
	has := func(r remains, index, term uint64) bool {
		return uint64(len(r.entries)) >= index && r.entries[index-1].Term == term
	}
	for _, r := range all {
		if uint64(len(r.entries)) >= last && len(longest.entries) == 0 {
			longest = r
		}
		for index := last + 1; index <= uint64(len(r.entries)); index++ {
			n := 0
			for _, other := range all {
				if has(other, index, r.entries[index-1].Term) {
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

// again applies a log up to its last committed entry to a fresh state.
func (w *world) again(r remains, last uint64) *replay {
	w.Helper()
	l := &replay{
		state: store.New(), results: map[uint64]store.Result{}, heads: map[uint64]store.Digest{},
		requests: map[store.Nonce]uint64{}, joins: map[mesh.NodeID]uint64{}, tokens: map[string]bool{},
	}
	given := map[netip.Addr]mesh.NodeID{}
	for _, entry := range r.entries {
		if entry.Index > last {
			break
		}
		l.entries = append(l.entries, entry)
		if entry.Type != raft.LogCommand {
			continue
		}
		command, err := store.DecodeCommand(entry.Data)
		if err != nil {
			w.Fatalf("entry %d of %s: %v", entry.Index, r.site, err)
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
				if other, known := given[addr]; known && other != n.ID {
					w.Errorf("entry %d gives %s to %s, which %s had", entry.Index, addr, n.ID, other)
				}
				given[addr] = n.ID
			}
			if command.Join != nil {
				l.joins[n.ID] = entry.Index
			}
		}
		w.owners(l)
	}
	return l
}

// owners checks that nothing has two live owners (I3).
func (w *world) owners(l *replay) {
	w.Helper()
	owner := map[netip.Prefix]string{}
	for _, n := range l.state.Nodes {
		for _, p := range n.Prefixes {
			if other, known := owner[p]; known {
				w.Errorf("at %d %s belongs to %s and %s", l.state.Index, p, other, n.Name)
			}
			owner[p] = n.Name
		}
	}
}

// agrees checks that a voter has the one log, the state that follows from it,
// and the audit trail of it.
func (w *world) agrees(r remains, l *replay) {
	w.Helper()
	for i, entry := range r.entries {
		if entry.Index > r.found.Committed {
			break
		}
		want := l.entries[i]
		if entry.Term != want.Term || entry.Type != want.Type || !bytes.Equal(entry.Data, want.Data) {
			w.Errorf("%s has another entry %d than the others", r.site, entry.Index)
		}
	}
	_, index, head := r.found.State.Head()
	if want := l.heads[index]; head != want {
		w.Errorf("%s has head %x at %d, not %x", r.site, head, index, want)
	}
	if index == l.state.Index && store.Hash(r.found.State) != store.Hash(l.state) {
		w.Errorf("%s has another state at %d than its log gives", r.site, index)
	}
	for len(r.audit) > 0 { // it may have gaps where the voter was away; each part is a chain of its own
		n := 1
		for n < len(r.audit) && r.audit[n].N == r.audit[n-1].N+1 {
			n++
		}
		part := r.audit[:n]
		r.audit = r.audit[n:]
		head, err := store.VerifyAudit(part[0].Prev, part)
		last := part[n-1]
		if err != nil {
			w.Errorf("audit trail of %s: %v", r.site, err)
		} else if want, known := l.heads[last.Index]; known && want != store.Digest(head) {
			w.Errorf("audit trail of %s leads to another history at %d", r.site, last.Index)
		}
	}
}

// acknowledged checks that what a client was told is in the log (I4).
func (w *world) acknowledged(o operation, l *replay) {
	w.Helper()
	if o.Outcome != ok || o.Do == "read" {
		return
	}
	kind, id, _ := strings.Cut(o.Key, "/")
	lost := ""
	switch {
	case o.Do == "join":
		node, err := mesh.ParseNodeID(o.Arg)
		if err != nil {
			w.Fatal(err)
		}
		if at, found := l.joins[node]; !found || l.results[at].Node.Addr4 != o.Addr {
			lost = "the join, or its address " + o.Addr.String()
		}
	case kind == "token" && o.Do == "create":
		if !l.tokens[id] {
			lost = "the token"
		}
	case !o.Request.IsZero():
		if at, found := l.requests[o.Request]; !found || at != o.Index || l.results[at].Refused != nil {
			lost = fmt.Sprintf("entry %d", o.Index)
		}
	}
	if lost != "" {
		w.Errorf("acknowledged and lost: %s %s %s of client %d: %s", o.Do, o.Key, o.Arg, o.Client, lost)
	}
}

// records reads the lines of a client.
func (w *world) records(out string) (all []record) {
	w.Helper()
	lines := bufio.NewScanner(strings.NewReader(out))
	for lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			w.Fatalf("%v in %s", err, lines.Text())
		}
		all = append(all, r)
	}
	return all
}

// TestCommitted: what only a minority has is not taken for committed, and what
// nobody was told of is, where a majority has it.
func TestCommitted(t *testing.T) {
	voter := func(known uint64, terms ...uint64) remains {
		r := remains{found: raftstore.Inspection{Committed: known}}
		for i, term := range terms {
			r.entries = append(r.entries, raft.Log{Index: uint64(i + 1), Term: term})
		}
		return r
	}
	for name, tt := range map[string]struct {
		all  []remains
		want uint64
	}{
		"all agree":               {[]remains{voter(2, 1, 1), voter(2, 1, 1), voter(1, 1, 1)}, 2},
		"nobody was told":         {[]remains{voter(1, 1, 1, 2), voter(1, 1, 1, 2), voter(1, 1)}, 3},
		"one leader is alone":     {[]remains{voter(2, 1, 1, 1, 1), voter(2, 1, 1), voter(2, 1, 1)}, 2},
		"two leaders, one alone":  {[]remains{voter(1, 1, 2, 2), voter(1, 1, 3), voter(1, 1, 3)}, 2},
		"one knows, and was away": {[]remains{voter(3, 1, 1, 1), voter(1, 1), voter(2, 1, 1, 1)}, 3},
	} {
		longest, last := committed(tt.all)
		if last != tt.want || uint64(len(longest.entries)) < last {
			t.Errorf("%s: %d is the last one, of %d, want %d", name, last, len(longest.entries), tt.want)
		}
	}
}
