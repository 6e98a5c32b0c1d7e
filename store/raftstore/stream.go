package raftstore

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"guywire/mesh"
)

// A stream is raft's view of the connections between voters. Addresses are
// node ids; Config.Dial knows where those are.
type stream struct {
	config Config
	failed <-chan struct{}           // closed: no heartbeat may go out any more
	raft   atomic.Pointer[raft.Raft] // nil until raft runs: nobody is admitted
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
			return conn, nil
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
