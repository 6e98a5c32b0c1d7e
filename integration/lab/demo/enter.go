package demo

import (
	"context"
	"fmt"
	"strings"

	"guywire/integration/lab/screen"
	"guywire/integration/lab/world"
)

// joinAll is step 1.
func (d *demo) joinAll(ctx context.Context) error {
	d.Screen.Heading(1, "Join", fmt.Sprintf("`meshctl init` on %s; for each other site a token from there, and `meshctl join` on the site. "+
		"The seconds are from its start to the first ping through the mesh.", d.Sites[0].Name))
	joins, err := d.JoinAll(ctx)
	if err != nil {
		return err
	}
	d.report.Joins = joins
	joinTable(joins).Print(d.Screen)
	return nil
}

func joinTable(joins []world.Join) *screen.Table {
	t := &screen.Table{Heads: []string{"SITE", ">SECONDS", "ADDRESS", "NAT"}}
	for _, j := range joins {
		seconds := "–"
		if j.Seconds > 0 {
			seconds = fmt.Sprintf("%.2f", j.Seconds)
		}
		var addrs []string
		for _, a := range j.Addrs {
			addrs = append(addrs, a.String())
		}
		t.Add(j.Site, seconds, strings.Join(addrs, ", "), j.NAT)
	}
	return t
}
