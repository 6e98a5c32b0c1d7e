package firewall

import (
	"fmt"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

func TestDbg(t *testing.T) {
	enterNS(t)
	c, _ := nftables.New()
	tb := c.AddTable(table())
	w := &writer{conn: c, table: tb}
	dbg = func(ch *nftables.Chain, es []expr.Any) {
		if err := c.Flush(); err != nil {
			t.Log("before")
			t.Fatal(err)
		}
		c.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: es})
		if err := c.Flush(); err != nil {
			s := ""
			for _, e := range es {
				s += fmt.Sprintf("%T%+v ", e, e)
			}
			t.Log(ch.Name, s, err)
		}
	}
	_ = w
	f := open(t)
	f.conn = c
	t.Log(f.replace(standard()))
}
