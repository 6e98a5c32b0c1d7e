package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"guywire/mesh"
	"guywire/mesh/api"
	"guywire/mesh/keyring"
	"guywire/mesh/transport"
)

// dial makes a client for whom the command line names: the meshd of this host,
// or with an operator's key a node of the mesh.
func (a *app) dial() (*api.Client, error) {
	switch {
	case a.identity == "" && a.server != "":
		return nil, &usageError{errors.New("--server needs --identity, the file of an operator's key")}
	case a.identity == "":
		c := api.Dial(a.socket)
		c.On(a.on)
		return c, nil
	case a.on != "":
		return nil, &usageError{errors.New("give --server or --on, not both: with a key it is the server that answers")}
	}
	key, err := keyring.ReadCredential(a.identity)
	if err != nil {
		return nil, &usageError{err}
	}
	servers := make([]string, len(key.Servers))
	for i, s := range key.Servers {
		servers[i] = s.String()
	}
	if a.server != "" {
		servers = []string{withPort(a.server)}
	}
	return api.DialWith(func(ctx context.Context) (net.Conn, error) { return dialFirst(ctx, key, servers) }), nil
}

func withPort(host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(mesh.ControlPort))
}

// dialFirst connects to the first server that answers and belongs to the mesh of
// the key.
func dialFirst(ctx context.Context, key *keyring.Credential, servers []string) (net.Conn, error) {
	shown, err := transport.SelfSigned(key.Signer(), time.Now())
	if err != nil {
		return nil, err
	}
	d := transport.Dialer{Trust: transport.Trust{
		Certificate: func() *tls.Certificate { return shown },
		Pins:        func() [][32]byte { return key.Pins },
	}}
	var failed []error
	for _, s := range servers {
		conn, err := d.DialAddr(ctx, s, transport.API)
		if err == nil {
			return conn, nil
		}
		failed = append(failed, fmt.Errorf("%s: %w", s, err))
	}
	return nil, errors.Join(failed...)
}
