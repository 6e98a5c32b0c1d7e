package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"

	"guywire/mesh"
)

// onHeader names the node that is to answer in place of the one that is asked.
const onHeader = "Guywire-On"

// pass has another node answer. There it is this node that asks, whoever sits
// at the socket here: guard has looked at what that one may do.
func (s *Server) pass(w http.ResponseWriter, r *http.Request, node string) error {
	if err := mesh.CheckName(node); err != nil { // an id is one, too
		return notValid(err)
	}
	conn, err := s.backend.DialNode(r.Context(), node)
	if err != nil {
		return err
	}
	transport := &http.Transport{
		DialContext:            func(context.Context, string, string) (net.Conn, error) { return conn, nil },
		DisableKeepAlives:      true, // one connection for one call
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
	defer conn.Close()
	(&httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", node, node
			p.Out.Header.Del(onHeader)
		},
		Transport:     transport,
		FlushInterval: -1, // streams
		ErrorLog:      slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			told := Errorf(CodeUnreachable, "see meshctl nodes", "%s does not answer: %v", node, err)
			if errors.Is(err, context.DeadlineExceeded) {
				told = Errorf(CodeTimeout, "see meshctl nodes", "%s did not answer in time", node)
			}
			s.fail(w, told)
		},
	}).ServeHTTP(w, r)
	return nil
}
