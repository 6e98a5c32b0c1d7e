package main

import (
	"fmt"
	"net/netip"

	"github.com/spf13/cobra"

	"guywire/mesh/api"
)

func (a *app) initCommand() *cobra.Command {
	var r api.InitRequest
	var pool4, pool6 string
	var prefixes []string
	c := a.jsonFlag(&cobra.Command{
		Use:   "init",
		Short: "make a mesh on this host",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if r.Pool4, err = poolFlag(pool4); err != nil {
				return err
			}
			if r.Pool6, err = poolFlag(pool6); err != nil {
				return err
			}
			if r.Prefixes, err = prefixFlag(prefixes); err != nil {
				return err
			}
			client, err := a.dial()
			if err != nil {
				return err
			}
			defer client.Close()
			e, err := client.Init(c.Context(), r)
			if err != nil {
				return err
			}
			if a.json {
				return a.document(e)
			}
			a.say("Mesh %s is made. This node is %s with %s.\n", e.Mesh.Name, e.Node.Name, all(e.Node.Addrs, " and "))
			a.say("Addresses of nodes come from %s and %s.\n\n", e.Mesh.Pool4.String(), e.Mesh.Pool6.String())
			a.say("Next:\n  meshctl token create --prefix NETWORK   here; a token for one more node and the network behind it\n  meshctl join                            on the new node; paste the token when it asks\n")
			return nil
		},
	})
	f := c.Flags()
	f.StringVar(&r.Mesh, "mesh", "", "name of the mesh (default \"mesh\")")
	f.StringVar(&r.Name, "name", "", "name of this node (default: configured, else the host name)")
	f.StringVar(&r.Site, "site", "", "place where this node is; voters are spread over places")
	f.StringVar(&pool4, "pool4", "", "IPv4 network for addresses of nodes (default 10.86.0.0/16)")
	f.StringVar(&pool6, "pool6", "", "IPv6 network for addresses of nodes (default: a random ULA /48)")
	f.StringArrayVar(&prefixes, "prefix", nil, "network behind this node; may be repeated")
	return c
}

// poolFlag parses a pool; empty is nil.
func poolFlag(s string) (*netip.Prefix, error) {
	if s == "" {
		return nil, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return nil, &usageError{fmt.Errorf("pool %q is not a network such as 10.86.0.0/16", s)}
	}
	return &p, nil
}
