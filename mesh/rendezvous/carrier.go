package rendezvous

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"guywire/discovery"
	"guywire/mesh"
)

const (
	// carrierTime is the longest that an attempt by carrier takes, dialTime what
	// each address of the other end gets of it.
	carrierTime = 15 * time.Second
	dialTime    = 4 * time.Second
	// carrierPoll is how often it is looked whether a carrier stands.
	carrierPoll = 50 * time.Millisecond
	altPort     = 443 // tried first: what passes least passes this
)

// A Carrier is a stream that a tunnel's packets go through where UDP does not pass.
type Carrier struct {
	ID discovery.AttemptID
	// To is where the other end takes carriers; invalid: this end takes this one.
	To      netip.AddrPort
	Mark    uint32 // of the uplink
	PeerPin [32]byte
	Token   [16]byte
	Port    uint16 // of the tunnel
}

// Carriers makes carriers. They outlive this process.
type Carriers interface {
	// Pin names the key by which other ends know this one.
	Pin(ctx context.Context) ([32]byte, error)
	// Open begins a carrier and gives the endpoint that stands for the other end.
	Open(ctx context.Context, c Carrier) (netip.AddrPort, error)
	// Connected reports whether the other end has agreed, or else what is wrong.
	Connected(ctx context.Context, id discovery.AttemptID) (ok bool, why string, err error)
	Close(ctx context.Context, id discovery.AttemptID) error
}

// ErrNoCarrier: this node, or the other one, cannot carry a link in a stream.
var ErrNoCarrier = errors.New("no carrier")

// carry is an attempt by carrier. theirs is the offer that it answers; nil: this
// end dials.
func (a *Attempter) carry(ctx context.Context, att *active, uplink mesh.Uplink, theirs *discovery.Offer) Result {
	ctx, cancel := context.WithTimeoutCause(ctx, carrierTime, fmt.Errorf("no carrier to %s within %s", att.link.Peer, carrierTime))
	defer cancel()
	r := Result{Class: discovery.ClassCarrier, Carrier: att.id, First: theirs == nil}
	r.Err = func() error {
		if a.cfg.Carriers == nil {
			return fmt.Errorf("%w: this node has none", ErrNoCarrier)
		}
		socket, err := a.open(uplink)
		if err != nil {
			return err
		}
		defer socket.Close() // it only keeps the port for the tunnel
		r.Port = socket.Port()
		pin, err := a.cfg.Carriers.Pin(ctx)
		if err != nil {
			return fmt.Errorf("carrier: %w", err)
		}
		ours := a.offer(att, uplink, 0)
		c := Carrier{ID: att.id, Mark: uplink.Mark(), Port: r.Port}
		ours.Carrier = &discovery.CarrierTerms{Pin: pin}
		r.Epoch = ours.Epoch
		if theirs != nil {
			c.PeerPin, c.Token, ours.Carrier.Token = theirs.Carrier.Pin, theirs.Carrier.Token, theirs.Carrier.Token
			r.PeerEpoch, r.PeerKey = theirs.Epoch, theirs.Key
			r.Endpoint, err = a.cfg.Carriers.Open(ctx, c)
			if err != nil {
				return fmt.Errorf("carrier: %w", err)
			}
			att.reply(ours, nil)
			return a.connected(ctx, att.id)
		}
		_, _ = rand.Read(c.Token[:]) // never fails
		ours.Carrier.Token = c.Token
		answer, err := a.cfg.Exchange(ctx, att.link.Peer, ours)
		if err == nil {
			err = ours.ValidateAnswer(time.Now(), answer)
		}
		switch {
		case err != nil:
			return fmt.Errorf("offer carrier to %s: %w", att.link.Peer, err)
		case answer.Carrier == nil || answer.Carrier.Token != c.Token:
			return fmt.Errorf("%w: %s answers to something else", ErrNoCarrier, att.link.Peer)
		}
		r.PeerEpoch, r.PeerKey, c.PeerPin = answer.Epoch, answer.Key, answer.Carrier.Pin
		r.Endpoint, err = a.dial(ctx, att.link.Peer, c, uplink)
		return err
	}()
	if r.Err != nil && ctx.Err() != nil {
		r.Err = context.Cause(ctx)
	}
	return r
}

// dial tries the other end's addresses one after the other, and leaves nothing of
// those that fail.
func (a *Attempter) dial(ctx context.Context, peer mesh.NodeID, c Carrier, uplink mesh.Uplink) (netip.AddrPort, error) {
	addrs := slices.DeleteFunc(slices.Clone(a.cfg.ControlOf(peer)), func(to netip.AddrPort) bool {
		return to.Addr().Is4() && !uplink.Default4 || to.Addr().Is6() && !uplink.Default6
	})
	alt := func(to netip.AddrPort) bool { return to.Port() == altPort }
	addrs = append(slices.DeleteFunc(slices.Clone(addrs), func(to netip.AddrPort) bool { return !alt(to) }), slices.DeleteFunc(addrs, alt)...)
	err := fmt.Errorf("%w: node %s has no address that uplink %s leads to", ErrNoCarrier, peer, uplink.Name)
	for _, c.To = range addrs {
		var local netip.AddrPort
		if local, err = a.cfg.Carriers.Open(ctx, c); err != nil {
			return local, fmt.Errorf("carrier: %w", err)
		}
		within, cancel := context.WithTimeoutCause(ctx, dialTime, fmt.Errorf("no answer within %s", dialTime))
		err = a.connected(within, c.ID)
		cancel()
		if err == nil {
			return local, nil
		}
		err = fmt.Errorf("carrier to %s: %w", c.To, err)
	}
	return netip.AddrPort{}, err
}

// connected waits until a carrier stands. One that does not is closed.
func (a *Attempter) connected(ctx context.Context, id discovery.AttemptID) error {
	tick := time.NewTicker(carrierPoll)
	defer tick.Stop()
	for {
		ok, why, err := a.cfg.Carriers.Connected(ctx, id)
		if ok {
			return nil
		}
		if err == nil {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				err = context.Cause(ctx)
				if why != "" {
					err = errors.New(why)
				}
			}
		}
		// Whatever ended ctx, this is still to be done.
		if closing := a.cfg.Carriers.Close(context.WithoutCancel(ctx), id); closing != nil {
			a.cfg.Logger.Debug("a carrier that does not stand cannot be closed", mesh.LogError, closing)
		}
		return err
	}
}
