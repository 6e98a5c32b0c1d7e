package world

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"guywire/integration/lab/flow"
)

// RoundTrip sends pings by UDP from the first site's host to the second's, one after the other, and returns their mean time in
// milliseconds. The echoes must run: see UntilTalk.
func (w *World) RoundTrip(ctx context.Context, pings int) (float64, error) {
	a, b := w.Sites[0], w.Sites[1]
	out, err := w.Run(ctx, a.Host, "", w.Exe, "flow", "ping", "--no-icmp", "--count", fmt.Sprint(pings),
		"--target", b.Name+"="+netip.AddrPortFrom(b.Host4, echoPort).String())
	if err != nil {
		return 0, err
	}
	var r flow.PingReport
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, err
	}
	if len(r.Cells) != 1 || r.Cells[0].UDP == nil || r.Cells[0].UDP.Received == 0 {
		return 0, fmt.Errorf("%s does not answer %s: %s", b.Host, a.Host, out)
	}
	return float64(r.Cells[0].UDP.Mean) / float64(time.Millisecond), nil
}
