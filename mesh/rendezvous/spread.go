package rendezvous

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"guywire/discovery"
	"guywire/discovery/attempt"
)

// ErrNoSpread: this node makes no attempts by chance ports.
var ErrNoSpread = errors.New("attempts by chance ports are off at this node")

// spreading takes this node's turn to spread, of which there is one at a time, and asks
// others where the other end is. Whoever gets terms calls done at the end.
func (a *Attempter) spreading(ctx context.Context, att *active) (terms *attempt.Spread, done func(), err error) {
	if a.cfg.SeenAt == nil {
		return nil, nil, ErrNoSpread
	}
	var budget *discovery.SpreadBudget
	select {
	case budget = <-a.spreads:
	default:
		return nil, nil, fmt.Errorf("%w: another one by chance ports is under way", ErrBusy)
	}
	done = func() { a.spreads <- budget }
	seen, err := a.cfg.SeenAt(ctx, att.link.Peer, att.link.Remote)
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("no attempt by chance ports: %w", err)
	}
	return &attempt.Spread{Seen: seen, Budget: budget}, done, nil
}

// A fan is a Socket of one, or of as many as the packets of a spread name. They are
// opened when they are first sent from; one that cannot be is missing. One goroutine
// owns it.
type fan struct {
	Socket  // the first
	open    func() (Socket, error)
	in      chan discovery.Arrival
	ended   chan struct{}
	close   sync.Once
	running sync.WaitGroup
	keys    discovery.Keys
	more    map[int]Socket // nil: missing
}

func newFan(first Socket, open func() (Socket, error)) *fan {
	f := &fan{Socket: first, open: open, in: make(chan discovery.Arrival), ended: make(chan struct{}), more: map[int]Socket{}}
	f.running.Go(func() { f.forward(first, 0) })
	return f
}

// forward passes on what arrives at one of the sockets.
func (f *fan) forward(s Socket, i int) {
	for {
		select {
		case arrival := <-s.Arrivals():
			arrival.Packet.Socket = i
			select {
			case f.in <- arrival:
			case <-f.ended:
				return
			}
		case <-f.ended:
			return
		}
	}
}

func (f *fan) at(i int) Socket {
	if i == 0 {
		return f.Socket
	}
	s, known := f.more[i]
	if !known && i < discovery.SpreadSockets {
		var err error
		if s, err = f.open(); err != nil {
			s = nil
		} else {
			s.Expect(f.keys)
			f.running.Go(func() { f.forward(s, i) })
		}
		f.more[i] = s
	}
	return s
}

// portOf gives the port that a proven path begins at; any, where none is proven.
func (f *fan) portOf(p discovery.Proof) uint16 {
	if s := f.more[p.Socket]; s != nil {
		return s.Port()
	}
	return f.Port()
}

// Send implements Socket.
func (f *fan) Send(p discovery.CheckPacket, k discovery.Keys) {
	if s := f.at(p.Socket); s != nil {
		s.Send(p, k)
	}
}

// Expect implements Socket.
func (f *fan) Expect(k discovery.Keys) {
	if k == f.keys {
		return
	}
	f.keys = k
	f.Socket.Expect(k)
	for _, s := range f.more {
		if s != nil {
			s.Expect(k)
		}
	}
}

// Arrivals implements Socket.
func (f *fan) Arrivals() <-chan discovery.Arrival { return f.in }

// Sent implements Socket.
func (f *fan) Sent() (packets, bytes int) {
	packets, bytes = f.Socket.Sent()
	for _, s := range f.more {
		if s != nil {
			p, b := s.Sent()
			packets, bytes = packets+p, bytes+b
		}
	}
	return packets, bytes
}

// Close implements Socket.
func (f *fan) Close() error {
	var errs []error
	f.close.Do(func() {
		close(f.ended)
		errs = append(errs, f.Socket.Close())
		for _, s := range f.more {
			if s != nil {
				errs = append(errs, s.Close())
			}
		}
		f.running.Wait()
	})
	return errors.Join(errs...)
}
