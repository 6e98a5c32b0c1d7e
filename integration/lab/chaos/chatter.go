package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"guywire/integration/lab/world"
)

const (
	chatterPort = 7100
	// hopLimit is more than any honest path has, and less than what a circle of some milliseconds uses up.
	hopLimit = 16
	// sockets is how many source ports a host has: flows that multipath spreads.
	sockets = 4
	// chatterPPS is what each host sends, over all destinations.
	chatterPPS = 100
)

// heardOf is what one host sent and got.
type heardOf struct {
	Sent     uint64 `json:"sent"`
	Refused  uint64 `json:"refused"` // by the own kernel: no route
	Received uint64 `json:"received"`
}

// chatterCommand sends small datagrams to all destinations in turn, from several ports, and counts those of others, until a
// signal ends it.
func chatterCommand() *cobra.Command {
	var to []string
	c := &cobra.Command{Use: "chatter", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		var dsts []netip.AddrPort
		for _, t := range to {
			addr, err := netip.ParseAddr(t)
			if err != nil {
				return err
			}
			dsts = append(dsts, netip.AddrPortFrom(addr, chatterPort))
		}
		h, err := chatter(ctx, dsts, func() { _, _ = fmt.Fprintln(c.ErrOrStderr(), world.Ready) })
		return errors.Join(err, json.NewEncoder(c.OutOrStdout()).Encode(h))
	}}
	c.Flags().StringSliceVar(&to, "to", nil, "destinations")
	return c
}

func chatter(ctx context.Context, to []netip.AddrPort, ready func()) (heardOf, error) {
	var h heardOf
	ear, err := net.ListenUDP("udp", &net.UDPAddr{Port: chatterPort})
	if err != nil {
		return h, err
	}
	var received atomic.Uint64
	done := make(chan struct{})
	go func() { // ends with ear
		defer close(done)
		b := make([]byte, 64)
		for {
			if _, _, err := ear.ReadFromUDPAddrPort(b); err != nil {
				return
			}
			received.Add(1)
		}
	}()
	var mouths []*net.UDPConn
	defer func() {
		for _, m := range mouths {
			_ = m.Close()
		}
	}()
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var four, six error
		err := raw.Control(func(fd uintptr) { // of a socket for both families, each has its own
			four = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, hopLimit)
			six = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hopLimit)
		})
		return errors.Join(err, four, six)
	}}
	for range sockets {
		m, err := lc.ListenPacket(ctx, "udp", "[::]:0")
		if err != nil {
			_ = ear.Close()
			return h, err
		}
		mouths = append(mouths, m.(*net.UDPConn))
	}
	ready()
	every := time.NewTicker(time.Second / chatterPPS)
	defer every.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		select {
		case <-every.C:
			// The number of destinations and that of sockets have no common turn.
			mouth := mouths[(i/len(to))%len(mouths)]
			h.Sent++
			if _, err := mouth.WriteToUDPAddrPort([]byte("chatter"), to[i%len(to)]); err != nil {
				h.Refused++
			}
		case <-ctx.Done():
		}
	}
	_ = ear.Close()
	<-done
	h.Received = received.Load()
	return h, nil
}
