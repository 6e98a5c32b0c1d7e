package wire

import (
	"slices"
	"syscall"
	"testing"
	"time"
)

// BenchmarkThroughput pushes frames through one wire in one direction. The sender is a packet socket on the same
// machine, so its cost is in the figure. It reports frames/s and Gbit/s.
func BenchmarkThroughput(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
		imp  Impairment
	}{
		{"64B", 64, Impairment{}},
		{"1514B", 1514, Impairment{}},
		{"1514B-20ms", 1514, Impairment{Delay: 20 * time.Millisecond}},
		{"1514B-all", 1514, Impairment{Delay: 20 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.001, Reorder: 0.001, Duplicate: 0.001, Rate: 10e9}},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newCable(b, 1)
			w.Set(Both, c.imp)
			_ = w.b.sock.Close() // nobody receives: the kernel drops behind the device
			b.ReportAllocs()
			sent := 0
			for b.Loop() {
				w.a.send(b, uint32(sent), c.size)
				if sent++; sent%128 == 0 {
					w.await(b, AtoB, "frames to be read", func(s Stats) bool { return s.Frames+128 >= uint64(sent) })
				}
			}
			w.await(b, AtoB, "frames to be read", func(s Stats) bool { return s.Frames == uint64(sent) })
			perSecond := float64(sent) / b.Elapsed().Seconds()
			b.ReportMetric(perSecond, "frames/s")
			b.ReportMetric(perSecond*float64(c.size)*8/1e9, "Gbit/s")
		})
	}
}

// BenchmarkLatency sends one frame at a time and reports what the wire adds to its Delay, from the write to the sending
// socket to the read from the receiving one.
func BenchmarkLatency(b *testing.B) {
	for _, delay := range []time.Duration{0, 200 * time.Microsecond, 5 * time.Millisecond} {
		b.Run(delay.String(), func(b *testing.B) {
			c := newCable(b, 1)
			c.Set(AtoB, Impairment{Delay: delay})
			var added []time.Duration
			for b.Loop() {
				c.a.send(b, 0, 100)
				m, at := c.b.receive(b)
				added = append(added, at-m.sent-delay)
			}
			slices.Sort(added)
			b.ReportMetric(float64(added[len(added)/2].Nanoseconds())/1e3, "p50-added-µs")
			b.ReportMetric(float64(added[len(added)*99/100].Nanoseconds())/1e3, "p99-added-µs")
		})
	}
}

// BenchmarkShapedCPU carries 5000 frames/s over a delayed wire and reports the processor time of the whole process,
// sender and receiver included, as a share of one processor.
func BenchmarkShapedCPU(b *testing.B) {
	c := newCable(b, 1)
	c.Set(AtoB, Impairment{Delay: 10 * time.Millisecond, Rate: 100e6})
	_ = c.b.sock.Close()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	start := cpuTime(b)
	for b.Loop() {
		<-tick.C
		for i := range uint32(5) {
			c.a.send(b, i, 500)
		}
	}
	b.ReportMetric(100*(cpuTime(b)-start).Seconds()/b.Elapsed().Seconds(), "%cpu")
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
