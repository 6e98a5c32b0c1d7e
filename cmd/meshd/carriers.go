package main

import (
	"context"
	"errors"
	"net/netip"

	"guywire/discovery"
	"guywire/mesh/dataplane"
	"guywire/mesh/rendezvous"
)

// carriers are the data plane's, which is started when the first is made.
type carriers struct{ plane dataplane.Spawner }

func (c carriers) Pin(ctx context.Context) ([32]byte, error) {
	if err := c.plane.Ensure(ctx); err != nil {
		return [32]byte{}, err
	}
	return c.plane.Pin(ctx)
}

func (c carriers) Open(ctx context.Context, spec rendezvous.Carrier) (netip.AddrPort, error) {
	return c.plane.OpenCarrier(ctx, dataplane.Carrier{
		ID: spec.ID, Addr: spec.To, Mark: spec.Mark, PeerPin: spec.PeerPin, Token: spec.Token, Port: spec.Port,
	})
}

func (c carriers) Connected(ctx context.Context, id discovery.AttemptID) (ok bool, why string, err error) {
	all, err := c.plane.Carriers(ctx)
	for _, s := range all {
		if s.ID == id {
			return s.Connected, s.Error, nil
		}
	}
	if err == nil {
		err = dataplane.ErrNoCarrier
	}
	return false, "", err
}

func (c carriers) Close(ctx context.Context, id discovery.AttemptID) error {
	if err := c.plane.CloseCarrier(ctx, id); !errors.Is(err, dataplane.ErrNoCarrier) {
		return err
	}
	return nil // as wished
}

func (c carriers) List(ctx context.Context) ([]discovery.AttemptID, error) {
	all, err := c.plane.Carriers(ctx)
	if errors.Is(err, dataplane.ErrNotRunning) || errors.Is(err, dataplane.ErrUnsupported) {
		return nil, nil
	}
	var ids []discovery.AttemptID
	for _, s := range all {
		ids = append(ids, s.ID)
	}
	return ids, err
}
