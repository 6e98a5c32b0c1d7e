package main

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A closer is a connection that tells when it is closed.
type closer struct {
	net.Conn
	server string
	closed *atomic.Int32
}

func (c *closer) Close() error {
	c.closed.Add(1)
	return nil
}

// TestFirstServer: servers are asked side by side, the first that answers is
// taken, and no other connection is left.
func TestFirstServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed atomic.Int32
		dial := func(ctx context.Context, server string) (net.Conn, error) {
			switch server {
			case "silent":
				<-ctx.Done()
				return nil, ctx.Err()
			case "wrong":
				return nil, errors.New("of another mesh")
			case "slow": // and deaf to the end of ctx
				time.Sleep(3 * time.Second)
			case "good":
				time.Sleep(time.Second)
			}
			return &closer{server: server, closed: &closed}, nil
		}
		began := time.Now()
		conn, err := firstOf(t.Context(), []string{"silent", "slow", "wrong", "good"}, dial)
		if err != nil || conn.(*closer).server != "good" || time.Since(began) != time.Second {
			t.Errorf("%v %v after %s", conn, err, time.Since(began))
		}
		time.Sleep(time.Minute)
		if n := closed.Load(); n != 1 {
			t.Errorf("%d connections were closed, want that to the slow one", n)
		}
		_, err = firstOf(t.Context(), []string{"wrong", "wrong"}, dial)
		if err == nil || strings.Count(err.Error(), "wrong: of another mesh") != 2 {
			t.Errorf("nobody answers: %v", err)
		}
	})
}
