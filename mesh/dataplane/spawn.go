package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// A Spawner is a Client that starts the data plane when none runs.
type Spawner struct {
	Client
	// Exe and Args start a process that calls Run with Detach and this
	// Client's Socket, such as meshd with "dataplane" and the flags for these.
	Exe  string
	Args []string
	// Output receives the log of the process once it is ready, and must stay
	// writable without the agent (a file, the journal); nil: discarded.
	Output *os.File
}

// Ensure returns nil when the data plane answers; if none runs it starts one,
// in the calling thread's namespaces, and waits until it serves or has given
// up. What the process said on standard error is then the error. If two do this
// at once, one process stays and both calls succeed: the other process waits
// until it knows, and gives way.
func (s Spawner) Ensure(ctx context.Context) error {
	if err := s.Client.Ensure(ctx); !errors.Is(err, ErrNotRunning) {
		return err
	}
	said, err := s.start(ctx)
	if err != nil {
		return fmt.Errorf("start the data plane: %w", err)
	}
	err = s.Client.Ensure(ctx)
	if errors.Is(err, ErrNotRunning) && said != "" {
		return fmt.Errorf("start the data plane: %s", said)
	}
	return err
}

// start runs the process in a session of its own until it has closed its
// standard error: because it is ready, or because it has ended. It returns the
// last of what it wrote there.
func (s Spawner) start(ctx context.Context) (string, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer read.Close()
	cmd := exec.Command(s.Exe, s.Args...)
	cmd.Dir = "/" // hold no mount
	cmd.Stderr = write
	if s.Output != nil {
		cmd.Stdout = s.Output
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return "", err
	}
	// The process outlives us or we outlive it; in the second case somebody
	// has to collect its status. The goroutine ends with the process.
	go cmd.Wait()

	defer context.AfterFunc(ctx, func() { read.Close() })()
	said, err := readTail(read)
	if ctx.Err() != nil {
		return "", fmt.Errorf("%w while it was starting", ctx.Err())
	}
	return said, err
}

// readTail reads to the end and returns the last maxStartOutput bytes.
func readTail(r io.Reader) (string, error) {
	var tail []byte
	buf := make([]byte, maxStartOutput)
	for {
		n, err := r.Read(buf)
		tail = append(tail, buf[:n]...)
		if extra := len(tail) - maxStartOutput; extra > 0 {
			tail = bytes.Clone(tail[extra:])
		}
		if err == io.EOF {
			return strings.TrimSpace(string(tail)), nil
		}
		if err != nil {
			return "", err
		}
	}
}
