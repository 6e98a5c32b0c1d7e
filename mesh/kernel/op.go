package kernel

import (
	"context"
	"fmt"
	"net/netip"
)

// An Op is one change of the kernel. The concrete types are listed below;
// each says what Do must make true, and Do of an Op that is already true
// succeeds.
type Op interface {
	fmt.Stringer
	isOp()
}

type (
	// CreateTunnel makes the device with key, port, mark, MTU, peer and
	// addresses, and brings it up. A half-made device is removed on error.
	CreateTunnel struct{ Tunnel Tunnel }
	// UpdateTunnel changes an existing device into Tunnel. Port and endpoint
	// are set only if Reseat is true (the alias changed).
	UpdateTunnel struct {
		Tunnel Tunnel
		Reseat bool
	}
	// DeleteTunnel removes a device.
	DeleteTunnel struct{ Name string }
	// AddAddr and DeleteAddr change the overlay addresses.
	AddAddr    struct{ Addr netip.Prefix }
	DeleteAddr struct{ Addr netip.Prefix }
	// PutNextHop adds or atomically replaces a next-hop object or group.
	PutNextHop struct{ NextHop NextHop }
	// DeleteNextHop removes one; as a member it leaves every group at once.
	DeleteNextHop struct{ ID uint32 }
	// PutRoute adds or replaces a route; never delete-and-add.
	PutRoute    struct{ Route Route }
	DeleteRoute struct{ Route Route }
	PutRule     struct{ Rule Rule }
	DeleteRule  struct{ Rule Rule }
	// SetFilter replaces our whole nft table in one transaction.
	SetFilter struct{ Filter Filter }
	// ClearFilter removes our nft table.
	ClearFilter struct{}
	// SetSysctl writes one setting, first noting its old value durably.
	SetSysctl struct{ Sysctl Sysctl }
	// RestoreSysctls writes all noted old values back and forgets them.
	RestoreSysctls struct{}
)

// A Backend is one adapter's share of the kernel.
type Backend interface {
	// Observe reads what of ours is there now. Parts that the backend does
	// not own are left empty.
	Observe(ctx context.Context) (State, error)
	// Do makes one Op true. It must be safe to repeat. An error wraps
	// ErrRefused if the kernel is certainly as before.
	Do(ctx context.Context, op Op) error
}

func (CreateTunnel) isOp()   {}
func (UpdateTunnel) isOp()   {}
func (DeleteTunnel) isOp()   {}
func (AddAddr) isOp()        {}
func (DeleteAddr) isOp()     {}
func (PutNextHop) isOp()     {}
func (DeleteNextHop) isOp()  {}
func (PutRoute) isOp()       {}
func (DeleteRoute) isOp()    {}
func (PutRule) isOp()        {}
func (DeleteRule) isOp()     {}
func (SetFilter) isOp()      {}
func (ClearFilter) isOp()    {}
func (SetSysctl) isOp()      {}
func (RestoreSysctls) isOp() {}

func (o CreateTunnel) String() string  { return "create tunnel " + o.Tunnel.Name }
func (o UpdateTunnel) String() string  { return "update tunnel " + o.Tunnel.Name }
func (o DeleteTunnel) String() string  { return "delete tunnel " + o.Name }
func (o AddAddr) String() string       { return "add address " + o.Addr.String() }
func (o DeleteAddr) String() string    { return "delete address " + o.Addr.String() }
func (o PutNextHop) String() string    { return fmt.Sprintf("put next hop %s", o.NextHop) }
func (o DeleteNextHop) String() string { return fmt.Sprintf("delete next hop %#x", o.ID) }
func (o PutRoute) String() string      { return fmt.Sprintf("put route %s", o.Route) }
func (o DeleteRoute) String() string   { return fmt.Sprintf("delete route %s", o.Route) }
func (o PutRule) String() string       { return fmt.Sprintf("put rule %d", o.Rule.Priority) }
func (o DeleteRule) String() string    { return fmt.Sprintf("delete rule %d", o.Rule.Priority) }
func (o SetFilter) String() string     { return fmt.Sprintf("set filter of %d links", len(o.Filter.Links)) }
func (ClearFilter) String() string     { return "clear filter" }
func (o SetSysctl) String() string     { return "set " + o.Sysctl.Path + "=" + o.Sysctl.Value }
func (RestoreSysctls) String() string  { return "restore sysctls" }
