package host

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"guywire/mesh"
	"guywire/mesh/core"
)

// Counters reads how many bytes each tunnel device of ours has received and
// sent. It costs one small file, so it can be asked ten times a second.
func Counters() (map[string]core.Count, error) {
	// thread-self: the network namespace is the thread's, not the process's.
	b, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return nil, fmt.Errorf("read device counters: %w", err)
	}
	return parseCounters(b), nil
}

// parseCounters reads the lines "name: received packets … (8 fields) sent …".
func parseCounters(b []byte) map[string]core.Count {
	out := map[string]core.Count{}
	for line := range bytes.Lines(b) {
		name, rest, ok := strings.Cut(string(line), ":")
		name = strings.TrimSpace(name)
		fields := strings.Fields(rest)
		if !ok || !strings.HasPrefix(name, mesh.InterfacePrefix) || len(fields) < 9 {
			continue
		}
		received, err1 := strconv.ParseUint(fields[0], 10, 64)
		sent, err2 := strconv.ParseUint(fields[8], 10, 64)
		if err1 == nil && err2 == nil {
			out[name] = core.Count{Received: received, Sent: sent}
		}
	}
	return out
}
