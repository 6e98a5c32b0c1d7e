package raftstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
	"guywire/store"
)

// A stream is raft's view of the connections between voters. Addresses are
// node ids; Config.Dial knows where those are.
type stream struct {
	config Config
	failed <-chan struct{}           // closed: no heartbeat may go out any more
	raft   atomic.Pointer[raft.Raft] // nil until raft runs: nobody is admitted
	state  func() *store.State
	boot   store.Boot

	mu      sync.Mutex                // guards doubled
	doubled map[mesh.NodeID]time.Time // when an old or a second copy of a voter's log called
}

var _ raft.StreamLayer = (*stream)(nil)

// Accept implements net.Listener: it passes on connections of voters and
// closes all others.
func (s *stream) Accept() (net.Conn, error) {
	for {
		conn, err := s.config.Listener.Accept()
		if err != nil {
			return nil, err
		}
		id, ok := s.config.Peer(conn)
		if ok && s.admits(id) {
			return &prefaced{Conn: conn, check: func(p preface) error { return s.greets(id, p) }}, nil
		}
		s.config.Logger.Warn("raft connection refused: not a voter", mesh.LogNode, id.String())
		conn.Close()
	}
}

func (s *stream) admits(id mesh.NodeID) bool {
	r := s.raft.Load()
	if r == nil {
		return false
	}
	voter := false
	for _, server := range r.GetConfiguration().Configuration().Servers {
		if server.ID == serverID(id) && server.Suffrage == raft.Voter {
			voter = true
		}
	}
	return s.config.Admit(id, voter)
}

// greets decides about a connection of a voter by what it says first.
func (s *stream) greets(id mesh.NodeID, p preface) error {
	err := p.check(id, s.state())
	if err != nil {
		s.config.Logger.Warn("raft connection refused", mesh.LogNode, id.String(), mesh.LogError, err)
	}
	if errors.Is(err, ErrStaleCopy) {
		s.mu.Lock()
		s.doubled[id] = time.Now()
		s.mu.Unlock()
	}
	return err
}

// doubles are the voters of which an old or a second copy called lately.
func (s *stream) doubles() (ids []mesh.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, at := range s.doubled {
		if time.Since(at) > doubledFor {
			delete(s.doubled, id)
			continue
		}
		ids = append(ids, id)
	}
	slices.SortFunc(ids, mesh.NodeID.Compare)
	return ids
}

// Dial implements raft.StreamLayer.
func (s *stream) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	select {
	case <-s.failed:
		return nil, ErrClosed
	default:
	}
	id, err := mesh.ParseNodeID(string(address))
	if err != nil {
		return nil, fmt.Errorf("dial voter: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := s.config.Dial(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("dial voter %s: %w", id, err)
	}
	state := s.state()
	hello := preface{mesh: state.Mesh.ID, generation: state.Mesh.Generation, boot: s.boot}
	err = conn.SetWriteDeadline(time.Now().Add(timeout))
	if err == nil {
		_, err = conn.Write(hello.encode())
	}
	if err = errors.Join(err, conn.SetWriteDeadline(time.Time{})); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet voter %s: %w", id, err)
	}
	return conn, nil
}

// Close implements net.Listener.
func (s *stream) Close() error { return s.config.Listener.Close() }

// Addr implements net.Listener with this voter's id.
func (s *stream) Addr() net.Addr { return address(s.config.ID.String()) }

type address string

// Network implements net.Addr.
func (address) Network() string { return "guywire" }

// String implements net.Addr.
func (a address) String() string { return string(a) }

func serverID(id mesh.NodeID) raft.ServerID { return raft.ServerID(id.String()) }
