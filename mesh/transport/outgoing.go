package transport

import (
	"context"
	"net"
	"sync"

	"guywire/mesh"
)

// outgoing is what a Dialer has open or is about to open. An attempt is in it
// from its beginning, so that none slips through a cut. The zero value is ready.
type outgoing struct {
	mu    sync.Mutex
	lines map[*line]struct{}
}

// A line is the connection under an outgoing TLS one.
type line struct {
	net.Conn // set by the goroutine that dials, before it is established
	owner    *outgoing
	id       mesh.NodeID // dialled
	alpn     string
	cancel   context.CancelFunc // ends the attempt

	// Guarded by owner.mu.
	established, cut bool
}

func (o *outgoing) begin(id mesh.NodeID, alpn string, cancel context.CancelFunc) *line {
	l := &line{owner: o, id: id, alpn: alpn, cancel: cancel}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lines == nil {
		o.lines = map[*line]struct{}{}
	}
	o.lines[l] = struct{}{}
	return l
}

// establish ends the attempt in success. False: it was cut meanwhile.
func (o *outgoing) establish(l *line) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.established = true
	return !l.cut
}

func (o *outgoing) end(l *line) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.lines, l)
}

func (o *outgoing) cut(match func(*line) bool) {
	o.mu.Lock()
	var open []*line
	for l := range o.lines {
		if !match(l) {
			continue
		}
		l.cut = true
		if l.established {
			open = append(open, l)
		} else {
			l.cancel()
		}
	}
	o.mu.Unlock()
	for _, l := range open {
		l.Close()
	}
}

// Close implements net.Conn.
func (l *line) Close() error {
	l.owner.end(l)
	return l.Conn.Close()
}
