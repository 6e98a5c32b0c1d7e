package world

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/spf13/cobra"
	"github.com/vishvananda/netlink"

	"guywire/integration/lab/flow"
)

// InsideVerb is the hidden verb below which the program runs again inside the nodes.
const InsideVerb = "inside"

// Ready is how a command inside a node says on standard error that it does its work from now on.
const Ready = "listening"

// InsideCommand holds what has to be done inside a node and no other program does, and more of the kind.
func InsideCommand(more ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: InsideVerb, Short: "What demo, bench and chaos do inside nodes", Hidden: true}
	c.AddCommand(awaitCommand(), ratesCommand(), silenceCommand(), tunnelsCommand(), lookupCommand(), staysCommand(), burnCommand())
	c.AddCommand(more...)
	return c
}

// arrival is the report of await.
type arrival struct {
	At time.Duration `json:"at_mono_ns"` // of the first answer
}

// awaitCommand pings an address until it answers. Pings overlap, so the resolution is their interval and not the round
// trip.
func awaitCommand() *cobra.Command {
	var to string
	var limit time.Duration
	c := &cobra.Command{Use: "await", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		addr, err := netip.ParseAddr(to)
		if err != nil {
			return err
		}
		ctx, stop := context.WithTimeout(c.Context(), limit)
		defer stop()
		_, _ = fmt.Fprintln(c.ErrOrStderr(), Ready)
		at, err := await(ctx, addr)
		if err != nil {
			return fmt.Errorf("ping %s for %s: %w", addr, limit, err)
		}
		return json.NewEncoder(c.OutOrStdout()).Encode(arrival{at})
	}}
	c.Flags().StringVar(&to, "to", "", "address to ping")
	c.Flags().DurationVar(&limit, "limit", 30*time.Second, "give up after this")
	return c
}

const (
	awaitEvery   = 20 * time.Millisecond
	awaitTimeout = 500 * time.Millisecond
	awaitPings   = int(awaitTimeout / awaitEvery) // under way at once; more wait for one to end
)

// await returns when the first ping was answered, by flow.Monotonic.
func await(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	answered := make(chan time.Duration, awaitPings)
	slots := make(chan struct{}, awaitPings)
	every := time.NewTicker(awaitEvery)
	defer every.Stop()
	for {
		select {
		case slots <- struct{}{}:
			go func() { // ends within awaitTimeout
				defer func() { <-slots }()
				r, err := flow.Ping(ctx, flow.PingConfig{Targets: []flow.Target{{Addr: addr}}, Count: 1, Timeout: awaitTimeout})
				if err == nil && r.Cells[0].Reached {
					select {
					case answered <- flow.Monotonic():
					default: // others have told
					}
				}
			}()
		default:
		}
		select {
		case at := <-answered:
			return at, nil
		case <-every.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// ratesCommand says how many packets per second each device carries.
func ratesCommand() *cobra.Command {
	var span time.Duration
	c := &cobra.Command{Use: "rates", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		first, err := readCounters()
		if err != nil {
			return err
		}
		select {
		case <-time.After(span):
		case <-c.Context().Done():
			return c.Context().Err()
		}
		second, err := readCounters()
		if err != nil {
			return err
		}
		return json.NewEncoder(c.OutOrStdout()).Encode(second.since(first))
	}}
	c.Flags().DurationVar(&span, "for", 400*time.Millisecond, "how long to count")
	return c
}

func readCounters() (counters, error) {
	data, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return counters{}, err
	}
	return parseCounters(flow.Monotonic(), string(data))
}

// lookupCommand asks the kernel of the node by which device it would send to addresses; none is "".
func lookupCommand() *cobra.Command {
	var to []string
	c := &cobra.Command{Use: "lookup", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		ways := map[netip.Addr]string{}
		for _, t := range to {
			addr, err := netip.ParseAddr(t)
			if err != nil {
				return err
			}
			ways[addr] = ""
			routes, err := netlink.RouteGet(addr.AsSlice())
			if err != nil || len(routes) == 0 {
				continue // no route is an answer, too
			}
			link, err := netlink.LinkByIndex(routes[0].LinkIndex)
			if err != nil {
				return err
			}
			ways[addr] = link.Attrs().Name
		}
		return json.NewEncoder(c.OutOrStdout()).Encode(ways)
	}}
	c.Flags().StringSliceVar(&to, "to", nil, "addresses")
	return c
}

// lookup asks the kernel of a site by which device it would send to the hosts of all sites.
func (w *World) lookup(ctx context.Context, s *Site) (ways map[netip.Addr]string, err error) {
	argv := []string{w.Exe, InsideVerb, "lookup"}
	for _, to := range w.Sites {
		argv = append(argv, "--to", to.Host4.String())
	}
	out, err := w.Run(ctx, s.Name, "", argv...)
	if err == nil {
		err = json.Unmarshal(out, &ways)
	}
	return ways, err
}

// silenceCommand makes a router drop everything between two sets of addresses, both ways, without a word, until a signal
// ends it: a path dies and the links that it shares with others live.
func silenceCommand() *cobra.Command {
	var a, b []string
	c := &cobra.Command{Use: "silence", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		pairs, err := addrPairs(a, b)
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		table := conn.AddTable(&nftables.Table{Name: fmt.Sprintf("silence-%d", os.Getpid()), Family: nftables.TableFamilyINet})
		chain := conn.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
			Priority: nftables.ChainPriorityFilter,
		})
		for _, p := range pairs {
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: dropBetween(p[0], p[1])})
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: dropBetween(p[1], p[0])})
		}
		at := flow.Monotonic()
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("add the rules: %w", err)
		}
		_, _ = fmt.Fprintln(c.ErrOrStderr(), Ready, int64(at))
		<-ctx.Done()
		conn.DelTable(table)
		if err := conn.Flush(); err != nil {
			return fmt.Errorf("remove the rules: %w", err)
		}
		return nil
	}}
	c.Flags().StringSliceVar(&a, "a", nil, "addresses of one end")
	c.Flags().StringSliceVar(&b, "b", nil, "addresses of the other end")
	return c
}

// addrPairs pairs the addresses of equal family.
func addrPairs(a, b []string) (pairs [][2]netip.Addr, err error) {
	for _, sa := range a {
		x, err := netip.ParseAddr(sa)
		if err != nil {
			return nil, err
		}
		for _, sb := range b {
			y, err := netip.ParseAddr(sb)
			if err != nil {
				return nil, err
			}
			if x.Is4() == y.Is4() {
				pairs = append(pairs, [2]netip.Addr{x, y})
			}
		}
	}
	if len(pairs) == 0 {
		return nil, fmt.Errorf("%v and %v have no family of addresses in common", a, b)
	}
	return pairs, nil
}

// dropBetween drops what goes from src to dst.
func dropBetween(src, dst netip.Addr) []expr.Any {
	family, offset, length := byte(nftables.TableFamilyIPv4), uint32(12), uint32(4)
	if src.Is6() {
		family, offset, length = byte(nftables.TableFamilyIPv6), 8, 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: src.AsSlice()},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset + length, Len: length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: dst.AsSlice()},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// burnCommand uses a processor, at an ordinary priority, until a signal ends it.
func burnCommand() *cobra.Command {
	return &cobra.Command{Use: "burn", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		runtime.LockOSThread()
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, 0, 0); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/self/autogroup", []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err // the lab has given its session another priority
		}
		_, _ = fmt.Fprintln(c.ErrOrStderr(), Ready)
		for c.Context().Err() == nil {
		}
		return nil
	}}
}

// Burn uses that many processors on a node until ctx ends.
func (w *World) Burn(ctx context.Context, node string, processors int) error {
	for range processors {
		if _, err := w.Launch(ctx, node, w.Exe, InsideVerb, "burn").Started(ctx); err != nil {
			return err
		}
	}
	return nil
}
