package control

import (
	"io"
	"net/http"
	"testing"

	"guywire/mesh/transport"
	"guywire/store"
)

// A banned voter is refused all but its vote, which the log may need to remove
// it, until the ban is over.
func TestBannedVoterKeepsItsVoteOnly(t *testing.T) {
	t.Parallel()
	all := three(t)
	one, two, three := all[0], all[1], all[2]
	if err := three.shut(); err != nil {
		t.Fatal(err)
	}
	call := func() error { return two.Do(t.Context(), one.ID(), http.MethodGet, "/v1/head", nil, nil) }
	if err := call(); err != nil {
		t.Fatal(err)
	}
	open := make(map[string]chan struct{})
	for _, alpn := range []string{transport.Control, transport.API} {
		conn, err := two.dialer.Dial(t.Context(), one.ID(), alpn)
		if err != nil {
			t.Fatal(err)
		}
		end := make(chan struct{})
		go func() {
			_, _ = io.Copy(io.Discard, conn)
			close(end)
		}()
		t.Cleanup(func() { _ = conn.Close() })
		open[alpn] = end
	}
	one.Ban(two.ID())
	for alpn, end := range open {
		eventually(t, "its connection by "+alpn+" is closed", func() bool {
			select {
			case <-end:
				return true
			default:
				return false
			}
		})
	}
	if err := call(); !hasCode(err, CodeBanned) {
		t.Errorf("its call: %v", err)
	}
	if ids := one.voters(); len(ids) != 2 || ids[1] != two.ID() {
		t.Errorf("asked are %v; last should be %s", ids, two.ID())
	}
	one.propose(one.grant(1)) // with its vote alone
	one.Ban()
	if err := call(); err != nil {
		t.Errorf("when the ban is over: %v", err)
	}
	one.Ban(two.ID())
	one.propose(store.Command{RemoveNode: &store.RemoveNode{Node: two.ID(), Revoke: true}})
	if err := call(); !hasCode(err, CodeRemoved) {
		t.Errorf("when the log has it: %v", err)
	}
}
