package raftstore

import (
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// A transport is raft's own over a stream, with one more way in: this voter
// can tell itself to campaign.
type transport struct {
	*raft.NetworkTransport
	calls  chan raft.RPC
	closed <-chan struct{}
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
)

func newTransport(layer raft.StreamLayer, logger hclog.Logger, closed <-chan struct{}) *transport {
	t := &transport{
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream:          layer,
			Logger:          logger,
			MaxPool:         connectionsKept,
			MaxRPCsInFlight: 1, // no pipelining: it can wedge a follower (hashicorp/raft issue 612)
			Timeout:         rpcTimeout,
		}),
		calls:  make(chan raft.RPC),
		closed: closed,
	}
	go t.forward()
	return t
}

// Consumer implements raft.Transport.
func (t *transport) Consumer() <-chan raft.RPC { return t.calls }

// forward passes calls on until the store is closed; who waits for an answer
// then is told by the end of its connection.
func (t *transport) forward() {
	for {
		select {
		case call := <-t.NetworkTransport.Consumer():
			select {
			case t.calls <- call:
			case <-t.closed:
				return
			}
		case <-t.closed:
			return
		}
	}
}

// campaign makes this voter a candidate at once, as a leader does that hands
// over. It must be the only voter: among others it would depose a leader.
func (t *transport) campaign() {
	timer := time.NewTimer(rpcTimeout)
	defer timer.Stop()
	call := raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}},
		RespChan: make(chan raft.RPCResponse, 1), // nobody reads it: the state tells
	}
	select {
	case t.calls <- call:
	case <-t.closed:
	case <-timer.C: // raft is busy; its own timer comes, too
	}
}
