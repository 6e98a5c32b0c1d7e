package api

import (
	"context"
	"sync/atomic"
)

// countingBackend answers with empty documents and counts that it was asked.
type countingBackend struct{ calls atomic.Int64 }

func (b *countingBackend) Status(context.Context) (Status, error) {
	b.calls.Add(1)
	return Status{}, nil
}

func (b *countingBackend) Nodes(context.Context) (Nodes, error) {
	b.calls.Add(1)
	return Nodes{}, nil
}

func (b *countingBackend) Links(context.Context) (Links, error) {
	b.calls.Add(1)
	return Links{}, nil
}

func (b *countingBackend) Routes(context.Context) (Routes, error) {
	b.calls.Add(1)
	return Routes{}, nil
}

func (b *countingBackend) Path(context.Context, PathQuery) (Path, error) {
	b.calls.Add(1)
	return Path{}, nil
}

func (b *countingBackend) Ping(context.Context, PingQuery, func(PingReply) error) error {
	b.calls.Add(1)
	return nil
}

func (b *countingBackend) Events(context.Context, EventsQuery, func(Event) error) error {
	b.calls.Add(1)
	return nil
}

func (b *countingBackend) Init(context.Context, InitRequest) (Enrolled, error) {
	b.calls.Add(1)
	return Enrolled{}, nil
}

func (b *countingBackend) Join(context.Context, JoinRequest, func(JoinStep)) (Enrolled, error) {
	b.calls.Add(1)
	return Enrolled{}, nil
}

func (b *countingBackend) CreateToken(context.Context, TokenRequest) (CreatedToken, error) {
	b.calls.Add(1)
	return CreatedToken{}, nil
}

func (b *countingBackend) Tokens(context.Context) (Tokens, error) {
	b.calls.Add(1)
	return Tokens{}, nil
}

func (b *countingBackend) RevokeToken(context.Context, string) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Topology(context.Context) (Topology, error) {
	b.calls.Add(1)
	return Topology{}, nil
}

func (b *countingBackend) SetTopology(context.Context, TopologyRequest) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) SetPairs(context.Context, PairsRequest) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) SetNode(context.Context, NodeRequest) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Drains(context.Context) (Drains, error) {
	b.calls.Add(1)
	return Drains{}, nil
}

func (b *countingBackend) Drain(context.Context, DrainRequest) (Drained, error) {
	b.calls.Add(1)
	return Drained{}, nil
}

func (b *countingBackend) Undrain(context.Context, string) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Leave(context.Context) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Teardown(context.Context) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}
