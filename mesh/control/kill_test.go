package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"guywire/mesh"
	"guywire/mesh/keyring"
	"guywire/mesh/transport"
	"guywire/store"
	"guywire/store/disk"
	"guywire/store/raftstore"
)

// childKey makes the test binary a member: its state directory and address.
const childKey = "GUYWIRE_TEST_MEMBER"

func TestMain(m *testing.M) {
	if member := os.Getenv(childKey); member != "" {
		if err := runMember(member); err != nil {
			fmt.Fprintln(os.Stderr, "member:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runMember(member string) error {
	path, listen, _ := strings.Cut(member, "|")
	state, err := disk.Open(path)
	if err != nil {
		return err
	}
	ring, err := keyring.Open(state)
	if err != nil {
		return err
	}
	p, err := Open(Config{
		State: state, Ring: ring, Listen: listen, Timing: quick,
		Overlay: func(store.Node) []netip.AddrPort { return nil },
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	return p.Run(context.Background()) // until it is killed
}

// forked goes on as a process of its own, which can be killed.
func (m *machine) forked() *exec.Cmd {
	m.t.Helper()
	if err := m.shut(); err != nil {
		m.t.Fatal(err)
	}
	m.unload()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childKey+"="+m.path+"|"+m.config.Listen)
	cmd.Stderr = m.t.Output()
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill() // may be dead already
		_ = cmd.Wait()
	})
	return cmd
}

func TestFollowerSeesOrderedWritesAcrossLeaderKill(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	four := all[3]
	members := map[mesh.NodeID]*exec.Cmd{}
	for _, m := range all[:3] {
		members[m.ID()] = m.forked()
	}
	// Whatever four sees: the index and the number of the write only grow.
	watched := make(chan error, 1)
	stop := make(chan struct{})
	go func() {
		var index uint64
		last := -1
		for {
			select {
			case <-four.Updates():
			case <-stop:
				watched <- nil
				return
			}
			s := four.State()
			n := numberOf(s, four.ID())
			if s.Index < index || n < last {
				watched <- fmt.Errorf("write %d at %d came after write %d at %d", n, s.Index, last, index)
				return
			}
			index, last = s.Index, n
		}
	}()
	killed := mesh.NodeID{}
	for n := range 40 {
		if n == 20 {
			eventually(t, "somebody leads", func() bool { killed = leaderSeenBy(t, four, members); return !killed.IsZero() })
			if err := members[killed].Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		r := four.propose(four.grant(n))
		if got := numberOf(four.State(), four.ID()); got != n {
			t.Fatalf("after write %d (index %d) the writer's state shows %d at %d", n, r.Index, got, four.State().Index)
		}
	}
	close(stop)
	if err := <-watched; err != nil {
		t.Error(err)
	}
	if leader := leaderSeenBy(t, four, members); leader == killed {
		t.Error("the killed process leads")
	}
	// The killed one comes back from its disk and catches up.
	for _, m := range all[:3] {
		if m.ID() == killed {
			_ = members[killed].Wait() // killed
			m.load()
			m.run(Open(m.config))
			sameState(t, []*machine{m, four}, four.State().Index)
		}
	}
}

func numberOf(s *store.State, id mesh.NodeID) int {
	if p := s.Nodes[id].Prefixes; len(p) == 1 {
		return int(p[0].Addr().As4()[2])
	}
	return -1
}

func leaderSeenBy(t *testing.T, m *machine, members map[mesh.NodeID]*exec.Cmd) mesh.NodeID {
	for id := range members {
		var st raftstore.Status
		if err := m.Do(t.Context(), id, http.MethodGet, "/v1/raft", nil, &st); err == nil && st.Leads() {
			return id
		}
	}
	return mesh.NodeID{}
}

// TestB16OrdinaryCertificateOnRaftAndVoterCalls: a member without a vote is no
// voter by any other way in.
func TestB16OrdinaryCertificateOnRaftAndVoterCalls(t *testing.T) {
	t.Parallel()
	all := three(t, "four")
	for name, m := range map[string]*machine{"voter": all[1], "follower": all[3]} {
		conn, err := m.dialer.Dial(t.Context(), all[0].ID(), transport.Raft)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		_, err = conn.Read(make([]byte, 1))
		var timeout net.Error
		open := errors.As(err, &timeout) && timeout.Timeout() // nothing was said, and it was not closed
		if open != (name == "voter") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, r := range all[0].routes() {
		method, path, _ := strings.Cut(r.pattern, " ")
		if r.role != Voter {
			continue
		}
		if err := all[3].Do(t.Context(), all[0].ID(), method, path, struct{}{}, nil); !hasCode(err, CodeNotVoter) {
			t.Errorf("%s by a follower: %v", r.pattern, err)
		}
	}
}

// TestB19SilentAndSlow: whoever connects and says nothing, little or far too
// much costs what it may cost, and members are served on.
func TestB19SilentAndSlow(t *testing.T) {
	t.Parallel()
	one := founded(t)
	two := one.joined("two")
	limit := 1500 // more than one source may have; both ends are this process
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	limit = min(limit, int(files.Cur)/4)
	for range limit {
		c, err := net.Dial("tcp", one.config.Listen)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for n := range 5 {
		two.client.CloseIdleConnections() // each write makes a new one
		two.propose(two.grant(n))
	}
	connect := func(head string) net.Conn {
		t.Helper()
		c, err := two.dialer.DialAddr(t.Context(), one.config.Listen, transport.Control)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		return c
	}
	// After the handshake: a header without end, and a body that does not come.
	connect("POST /v1/propose HTTP/1.1\r\nHost: x\r\nContent-Length: 100")
	connect("POST /v1/propose HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
	// A gigabyte: the answer comes, and the connection ends, long before.
	huge := connect("POST /v1/join/finish HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n")
	chunk, sent := make([]byte, 64<<10), 0
	for sent < 64<<20 {
		n, err := huge.Write(chunk)
		if sent += n; err != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Errorf("%d bytes of a body were taken", sent)
	}
	// A body in another coding is not unpacked.
	packed := connect("POST /v1/join/finish HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00")
	answer, err := http.ReadResponse(bufio.NewReader(packed), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := readAnswer(answer, nil); !hasCode(err, CodeMalformed) {
		t.Errorf("a packed body: %v", err)
	}
	two.propose(two.grant(9))
}
