package api

import (
	"context"
	"net"
	"sync/atomic"
)

// countingBackend answers with empty documents and counts that it was asked.
type countingBackend struct{ calls atomic.Int64 }

func (b *countingBackend) Status(context.Context) (Status, error) {
	b.calls.Add(1)
	return Status{}, nil
}

func (b *countingBackend) Nodes(context.Context, NodesQuery) (Nodes, error) {
	b.calls.Add(1)
	return Nodes{}, nil
}

func (b *countingBackend) Links(context.Context) (Links, error) {
	b.calls.Add(1)
	return Links{}, nil
}

func (b *countingBackend) Netcheck(context.Context) (Netcheck, error) {
	b.calls.Add(1)
	return Netcheck{}, nil
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

func (b *countingBackend) Raft(context.Context) (RaftStatus, error) {
	b.calls.Add(1)
	return RaftStatus{}, nil
}

func (b *countingBackend) Recover(context.Context, RecoverRequest) (RecoverPlan, error) {
	b.calls.Add(1)
	return RecoverPlan{}, nil
}

func (b *countingBackend) Audit(context.Context, AuditQuery, func(AuditRecord) error) error {
	b.calls.Add(1)
	return nil
}

func (b *countingBackend) Revoke(context.Context, string) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Grant(context.Context, GrantRequest) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Reservations(context.Context) (Reservations, error) {
	b.calls.Add(1)
	return Reservations{}, nil
}

func (b *countingBackend) Reserve(context.Context, ReserveRequest) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Unreserve(context.Context, string) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Operators(context.Context) (Operators, error) {
	b.calls.Add(1)
	return Operators{}, nil
}

func (b *countingBackend) SetOperator(context.Context, OperatorRequest) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) RemoveOperator(context.Context, string) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Authorities(context.Context) (Authorities, error) {
	b.calls.Add(1)
	return Authorities{}, nil
}

func (b *countingBackend) RotateCA(context.Context) (Done, error) {
	b.calls.Add(1)
	return Done{}, nil
}

func (b *countingBackend) Settings(context.Context) (Settings, error) {
	b.calls.Add(1)
	return Settings{}, nil
}

func (b *countingBackend) SetSettings(context.Context, SettingsRequest) (Settings, error) {
	b.calls.Add(1)
	return Settings{}, nil
}

func (b *countingBackend) DialNode(context.Context, string) (net.Conn, error) {
	b.calls.Add(1)
	return nil, Errorf(CodeUnreachable, "", "nobody is there")
}
