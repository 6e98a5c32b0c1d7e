package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"guywire/mesh"
)

// Do calls another member: in is sent as JSON unless nil, the answer is
// decoded into out unless nil. What the other end refused is an *Error. The
// connection is made to whatever address of the node answers, and only if that
// node is behind it. It waits 10 s at most.
func (p *Plane) Do(ctx context.Context, node mesh.NodeID, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, "https://"+node.String()+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	answer, err := p.client.Do(r)
	if err != nil {
		return fmt.Errorf("call %s: %w", p.name(node), err)
	}
	defer answer.Body.Close()
	if err := readAnswer(answer, out); err != nil {
		return fmt.Errorf("call %s: %w", p.name(node), err)
	}
	return nil
}
