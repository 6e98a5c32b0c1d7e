package host

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"guywire/mesh"
	"guywire/mesh/core"
)

// Counters reads what tunnel devices have received and sent. It is read as often
// as probes are sent, so the file stays open: to look it up costs more than to
// read it.
type Counters struct {
	file *os.File
	buf  []byte // grows to the file's size
}

// OpenCounters opens the counters of the network namespace it is called in.
func OpenCounters() (*Counters, error) {
	// thread-self: the network namespace is the thread's, not the process's.
	f, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return nil, fmt.Errorf("open device counters: %w", err)
	}
	return &Counters{file: f, buf: make([]byte, 4096)}, nil
}

// Read gives the bytes that each tunnel device of ours has received and sent, by
// its name. It is for one goroutine.
func (c *Counters) Read() (map[string]core.Count, error) {
	for {
		n, err := c.file.ReadAt(c.buf, 0)
		if errors.Is(err, io.EOF) {
			return parseCounters(c.buf[:n]), nil
		}
		if err != nil {
			return nil, fmt.Errorf("read device counters: %w", err)
		}
		c.buf = make([]byte, 2*len(c.buf))
	}
}

// Close ends reading.
func (c *Counters) Close() error { return c.file.Close() }

// parseCounters reads the lines "name: received packets … (8 fields) sent …".
func parseCounters(b []byte) map[string]core.Count {
	out := map[string]core.Count{}
	for line := range bytes.Lines(b) {
		name, rest, ok := bytes.Cut(bytes.TrimLeft(line, " "), []byte(":"))
		if !ok || !bytes.HasPrefix(name, []byte(mesh.InterfacePrefix)) {
			continue
		}
		fields := strings.Fields(string(rest))
		if len(fields) < 9 {
			continue
		}
		received, err1 := strconv.ParseUint(fields[0], 10, 64)
		sent, err2 := strconv.ParseUint(fields[8], 10, 64)
		if err1 == nil && err2 == nil {
			out[string(name)] = core.Count{Received: received, Sent: sent}
		}
	}
	return out
}
