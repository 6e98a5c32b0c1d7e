package api_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"guywire/mesh/api"
)

// What goes wrong with a node elsewhere is not told as if it were the meshd of
// this machine.
func TestNodeElsewhereFails(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		exit         int
		want         string
		broken       bool
	}{
		{"cut in the middle", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{", api.ExitUnreachable, "The connection to the node broke off", true},
		{"cut before the answer", "", api.ExitUnreachable, "The connection to the node broke off", true},
		{"another program", "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", api.ExitUnexpected, "what answers there is not meshd: it says 404 Not Found", false},
	} {
		c := api.DialWith(func(context.Context) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				if r, err := http.ReadRequest(bufio.NewReader(there)); err == nil {
					_ = r.Body.Close()
					_, _ = io.WriteString(there, tt.answer)
				}
				_ = there.Close()
			}()
			return here, nil
		})
		_, err := c.Status(t.Context())
		if err == nil || api.ExitCode(err) != tt.exit || errors.Is(err, api.ErrBroken) != tt.broken || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: exit code %d, broken %t: %v", tt.name, api.ExitCode(err), errors.Is(err, api.ErrBroken), err)
		}
		if e, ok := errors.AsType[*api.Error](err); ok && e.Next == "" {
			t.Errorf("%s: nothing to do next", tt.name)
		}
		c.Close()
	}
}
