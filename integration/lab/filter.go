package lab

import (
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName names the lab's nftables tables inside its namespaces.
const tableName = "meshlab"

// dropIngress makes everything that reaches the interface vanish before the kernel looks at it, ARP included; or undoes it.
func (s *space) dropIngress(iface string, on bool) error {
	policy := nftables.ChainPolicyDrop
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyNetdev}
	chain := &nftables.Chain{
		Name: "cut-" + iface, Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityRef(-500), Policy: &policy, Device: iface,
	}
	return s.nft(func(c *nftables.Conn) {
		c.AddTable(table)
		if on {
			c.AddChain(chain)
		} else {
			c.DelChain(chain)
		}
	})
}

// The matches that the NAT boxes are made of. Each uses register 1.

func ifaceIs(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

func from(iface string) []expr.Any    { return ifaceIs(expr.MetaKeyIIFNAME, expr.CmpOpEq, iface) }
func notFrom(iface string) []expr.Any { return ifaceIs(expr.MetaKeyIIFNAME, expr.CmpOpNeq, iface) }
func to(iface string) []expr.Any      { return ifaceIs(expr.MetaKeyOIFNAME, expr.CmpOpEq, iface) }
func notTo(iface string) []expr.Any   { return ifaceIs(expr.MetaKeyOIFNAME, expr.CmpOpNeq, iface) }

func udp() []expr.Any { return transport(unix.IPPROTO_UDP) }

func transport(protocol byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
	}
}

// ctBits matches when any of the bits is set, or with CmpOpEq when none is.
func ctBits(key expr.CtKey, bits uint32, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: make([]byte, 4)},
	}
}

func isNew() []expr.Any { return ctBits(expr.CtKeySTATE, expr.CtStateBitNEW, expr.CmpOpNeq) }

const ctStatusDNAT = 1 << 5 // IPS_DST_NAT

func ctDirection(reply byte) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{reply}}}
}

// toLocal matches packets for an address of the box.
func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// Parts of headers, loaded into a register.

func saddr(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: net.IPv4len}
}

func daddr(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: net.IPv4len}
}

func sport(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2}
}

func dport(reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }

// rule joins matches and actions.
func rule(parts ...any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case []expr.Any:
			out = append(out, p...)
		case expr.Any:
			out = append(out, p)
		}
	}
	return out
}
