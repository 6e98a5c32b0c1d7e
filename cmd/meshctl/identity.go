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

// dialFirst connects to all servers side by side and keeps the first that answers
// and belongs to the mesh of the key: a silent one costs no time.
func dialFirst(ctx context.Context, key *keyring.Credential, servers []string) (net.Conn, error) {
	shown, err := transport.SelfSigned(key.Signer(), time.Now())
	if err != nil {
		return nil, err
	}
	d := transport.Dialer{Trust: transport.Trust{
		Certificate: func() *tls.Certificate { return shown },
		Pins:        func() [][32]byte { return key.Pins },
	}}
	return firstOf(ctx, servers, func(ctx context.Context, server string) (net.Conn, error) {
		return d.DialAddr(ctx, server, transport.API)
	})
}

// firstOf gives the first connection that dial makes, and ends the others.
func firstOf(ctx context.Context, servers []string, dial func(ctx context.Context, server string) (net.Conn, error)) (net.Conn, error) {
	type outcome struct {
		conn net.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	outcomes := make(chan outcome, len(servers)) // room for all: nobody waits for a reader
	for _, s := range servers {
		go func() {
			conn, err := dial(ctx, s)
			if err != nil {
				err = fmt.Errorf("%s: %w", s, err)
			}
			outcomes <- outcome{conn, err}
		}()
	}
	var failed []error
	for left := len(servers); left > 0; left-- {
		o := <-outcomes
		if o.err != nil {
			failed = append(failed, o.err)
			continue
		}
		go func() {
			for range left - 1 {
				if late := <-outcomes; late.err == nil {
					_ = late.conn.Close()
				}
			}
		}()
		return o.conn, nil
	}
	return nil, errors.Join(failed...)
}
