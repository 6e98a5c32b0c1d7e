package world

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"guywire/integration/lab/flow"
)

// Transfer sends TCP from the first site's host to the second's and returns Mbit/s.
func (w *World) Transfer(ctx context.Context, streams int, length time.Duration) (float64, error) {
	a, b := w.Sites[0], w.Sites[1]
	to := netip.AddrPortFrom(b.Host4, flowPort)
	recv := w.Launch(ctx, b.Host, w.Exe, "flow", "tcp-recv", "--listen", to.String(), "--streams", fmt.Sprint(streams))
	defer recv.Kill()
	if _, err := recv.Started(ctx); err != nil {
		return 0, err
	}
	send := w.Launch(ctx, a.Host, w.Exe, "flow", "tcp-send", "--to", to.String(), "--streams", fmt.Sprint(streams), "--duration", length.String())
	defer send.Kill()
	if err := send.Finish(ctx, length+stopLimit, nil); err != nil {
		return 0, err
	}
	var r flow.TCPRecvReport
	if err := recv.Finish(ctx, stopLimit, &r); err != nil {
		return 0, err
	}
	if r.Streams != streams || r.Mbps <= 0 {
		return 0, fmt.Errorf("%s got %d of %d streams, %.1f Mbit/s", b.Host, r.Streams, streams, r.Mbps)
	}
	return r.Mbps, nil
}
