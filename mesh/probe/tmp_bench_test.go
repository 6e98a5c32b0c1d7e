package probe

import (
	"context"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv6"
)

func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func TestTmpBatch(t *testing.T) {
	for _, burst := range []int{1, 4, 16} {
		for _, batch := range []bool{false, true, false, true} {
			a, b := pair(t, 1)
			var n, calls atomic.Int64
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan bool)
			go func() {
				if !batch {
					_ = b.conn.Receive(ctx, func(int, netip.Addr, []byte, time.Time) { n.Add(1); calls.Add(1) }, func(Hint) {})
				} else {
					pc := ipv6.NewPacketConn(b.conn.udp)
					ms := make([]ipv6.Message, 32)
					for i := range ms {
						ms[i].Buffers = [][]byte{make([]byte, 2048)}
						ms[i].OOB = make([]byte, 256)
					}
					for {
						k, err := pc.ReadBatch(ms, 0)
						if err != nil {
							break
						}
						calls.Add(1)
						for _, m := range ms[:k] {
							ar := parseArrival(m.OOB[:m.NN])
							_ = arrived(time.Now(), ar.stamp)
							n.Add(1)
						}
					}
				}
				close(done)
			}()
			idx := a.ifindex(t, "gw-0")
			pay := make([]byte, 94)
			time.Sleep(1200 * time.Millisecond)
			n.Store(0); calls.Store(0)
			c0 := cpu()
			total := 4000
			tick := time.NewTicker(time.Duration(burst) * time.Millisecond)
			for i := 0; i < total; i += burst {
				<-tick.C
				for range burst {
					_ = a.conn.Send(idx, b.id.LinkLocal(), pay)
				}
			}
			tick.Stop()
			time.Sleep(20 * time.Millisecond)
			t.Logf("burst %d batch %t: %d received in %d calls, %.2f us cpu each", burst, batch, n.Load(), calls.Load(), float64(cpu()-c0)/1000/float64(total))
			cancel()
			_ = b.conn.Close()
			<-done
		}
	}
}
